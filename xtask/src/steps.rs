//! The single steps: lints, documentation, models, crash points, the storm, the demo.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::Args;

use crate::python::{self, Profile};
use crate::tool::{Failure, ROOT, Tool, cargo, manifest};

/// How the demo is run
#[derive(Args)]
pub(crate) struct Demo {
    /// The folder [default: the Rust toolchain's own]
    dir: Option<PathBuf>,
    /// Kill a random worker every 50 ms meanwhile
    #[arg(long)]
    chaos: bool,
    /// Worker processes [default: one for each CPU]
    #[arg(long)]
    workers: Option<u32>,
    /// The same job by the Python package
    #[arg(long)]
    python: bool,
    /// Print nothing, and fail unless the output is that of sha256sum
    #[arg(long)]
    verify: bool,
    /// Build without optimisation, as the tests are
    #[arg(long)]
    dev: bool,
}

impl Demo {
    fn profile(&self) -> Profile {
        Profile::of(self.dev)
    }
}

/// What cargo builds when it is told so.
fn release(profile: Profile) -> Option<&'static str> {
    (profile == Profile::Release).then_some("--release")
}

/// The folder of the Rust toolchain.
pub(crate) fn sysroot() -> Result<PathBuf, Failure> {
    let output = Tool(Command::new("rustc")).args(["--print", "sysroot"]).output(Stdio::inherit())?;
    let line = String::from_utf8(output)
        .map_err(|_| Failure::new("the toolchain's folder is not UTF-8: name one"))?;
    Ok(PathBuf::from(line.trim_end_matches('\n')))
}

/// Format and lints of everything in Rust.
pub(crate) fn lints() -> Result<(), Failure> {
    for (component, subcommand) in [("rustfmt", "fmt"), ("clippy", "clippy")] {
        if Tool(Command::new("cargo")).args([subcommand, "--version"]).output(Stdio::null()).is_err() {
            return Err(Failure::new(format!(
                "cargo {subcommand} is missing: install it with `rustup component add {component}`"
            )));
        }
    }
    cargo("fmt", ROOT).args(["--all", "--check"]).run()?;
    let clippy =
        |arguments: &[&str]| cargo("clippy", ROOT).args(arguments).args(["--", "--deny", "warnings"]).run();
    clippy(&["--workspace", "--exclude", "procession-models", "--all-targets"])?;
    // Not as tests: the library's files that they run have tests that belong to the library.
    clippy(&["--package", "procession-models", "--lib", "--bins"])?;
    clippy(&["--package", "procession-core", "--features", "crash-points", "--test", "crash_points"])
}

/// The documentation of the Rust crates, without a warning.
pub(crate) fn documentation() -> Result<(), Failure> {
    cargo("doc", ROOT).args(["--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings").run()
}

/// Checks that the workspace builds with the Rust version that its manifests name.
pub(crate) fn msrv() -> Result<(), Failure> {
    // This tool's manifest inherits the workspace's version.
    let version = env!("CARGO_PKG_RUST_VERSION");
    let check = ["run", "--install", version, "cargo", "check", "--workspace", "--locked", "--manifest-path"];
    Tool(Command::new("rustup")).args(check).args([manifest(ROOT)]).run()
}

/// Explores the models, and prints their states.
pub(crate) fn models() -> Result<(), Failure> {
    // Optimised in any profile, see the workspace's manifest.
    cargo("run", ROOT).args(["--package", "procession-models"]).run()
}

/// The test that has a process die at each step, see `crates/procession-core/tests/crash_points`.
pub(crate) fn every_death(pairs: bool, only: Option<&str>) -> Result<(), Failure> {
    let test = ["--package", "procession-core", "--features", "crash-points", "--test", "crash_points"];
    let mut tool = cargo("test", ROOT).args(test);
    if pairs {
        tool = tool.env("PAIRS", "all");
    }
    if let Some(only) = only {
        tool = tool.env("ONLY", only);
    }
    tool.run()
}

/// The program that kills processes at random and accounts for what is left.
pub(crate) fn storm(profile: Profile) -> Tool {
    cargo("run", ROOT).args(release(profile)).args(["--package", "procession-storm", "--"])
}

/// Runs `examples/checksum`, or the same in Python. Its exit status is this command's.
pub(crate) fn demo(demo: Demo) -> Result<(), Failure> {
    let dir = demo.dir.clone().map_or_else(sysroot, Ok)?;
    let mut tool = if demo.python {
        python::demo(demo.profile())?
    } else {
        cargo("run", ROOT).args(release(demo.profile())).args(["--package", "checksum", "--"])
    };
    if demo.chaos {
        tool = tool.args(["--chaos"]);
    }
    if let Some(workers) = demo.workers {
        tool = tool.args(["--workers".into(), workers.to_string()]);
    }
    let tool = tool.args(["--".as_ref(), dir.as_os_str()]);
    if demo.verify { as_sha256sum(tool, &dir) } else { tool.run() }
}

/// Runs the demo, and compares its output with that of `sha256sum`.
fn as_sha256sum(demo: Tool, dir: &Path) -> Result<(), Failure> {
    let printed = demo.output(Stdio::inherit())?;
    let by_path = r#"find "$1" -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum --"#;
    let sha256sum = Tool(Command::new("sh")).args(["-c", by_path, "sh"]).args([dir]);
    if printed.is_empty() || printed != sha256sum.output(Stdio::inherit())? {
        return Err(Failure::new(format!(
            "the demo does not print what sha256sum prints for {}",
            dir.display()
        )));
    }
    println!("as sha256sum prints for {}", dir.display());
    Ok(())
}
