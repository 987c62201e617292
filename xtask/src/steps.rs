//! Running cargo, and the steps of `ci`.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::python::{self, Profile};
use crate::test;

/// The workspace, and the one of the benchmarks, as folders below the project's.
pub(crate) const ROOT: &str = "";
pub(crate) const BENCHES: &str = "benches";

/// Why a command ends without success, and the exit status that says so.
pub(crate) struct Failure {
    /// What to tell; nothing when the program that failed has told already.
    pub(crate) message: Option<String>,
    pub(crate) status: u8,
}

impl Failure {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Failure { message: Some(message.into()), status: 1 }
    }
}

/// A program to run, in the caller's folder unless told.
pub(crate) struct Tool(pub(crate) Command);

/// A cargo command on one of the workspaces.
pub(crate) fn cargo(subcommand: &str, workspace: &str) -> Tool {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.arg(subcommand).arg("--manifest-path").arg(manifest(workspace));
    Tool(command)
}

/// The project's folder.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the project's folder")
}

/// The manifest of a workspace.
pub(crate) fn manifest(workspace: &str) -> PathBuf {
    root().join(workspace).join("Cargo.toml")
}

impl Tool {
    pub(crate) fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.0.args(args);
        self
    }

    pub(crate) fn folder(mut self, folder: &Path) -> Self {
        self.0.current_dir(folder);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.0.env(name, value);
        self
    }

    /// Runs it to its end. Its exit status becomes the failure's.
    pub(crate) fn run(mut self) -> Result<(), Failure> {
        let status = self.0.status().map_err(|error| self.not_started(&error))?;
        match status.code() {
            Some(0) => Ok(()),
            Some(code) => Err(Failure { message: None, status: u8::try_from(code).unwrap_or(1) }),
            None => Err(Failure::new(format!("{} was ended: {status}", self.name()))),
        }
    }

    /// What it prints on standard output; nothing of that is shown.
    pub(crate) fn output(mut self, stderr: Stdio) -> Result<Vec<u8>, Failure> {
        let output = self.0.stderr(stderr).output().map_err(|error| self.not_started(&error))?;
        if output.status.success() {
            Ok(output.stdout)
        } else {
            Err(Failure::new(format!("{} failed", self.name())))
        }
    }

    pub(crate) fn not_started(&self, error: &std::io::Error) -> Failure {
        Failure::new(format!("cannot start {}: {error}", self.name()))
    }

    fn name(&self) -> String {
        self.0.get_program().to_string_lossy().into_owned()
    }
}

/// The folder of the Rust toolchain.
pub(crate) fn sysroot() -> Result<PathBuf, Failure> {
    let output = Tool(Command::new("rustc")).args(["--print", "sysroot"]).output(Stdio::inherit())?;
    let line = String::from_utf8(output)
        .map_err(|_| Failure::new("the toolchain's folder is not UTF-8: name one"))?;
    Ok(PathBuf::from(line.trim_end_matches('\n')))
}

/// Runs each step, says how long it took, and stops at the first that fails.
pub(crate) fn ci() -> Result<(), Failure> {
    for (component, subcommand) in [("rustfmt", "fmt"), ("clippy", "clippy")] {
        if Tool(Command::new("cargo")).args([subcommand, "--version"]).output(Stdio::null()).is_err() {
            return Err(Failure::new(format!(
                "cargo {subcommand} is missing: install it with `rustup component add {component}`"
            )));
        }
    }
    step("format", || cargo("fmt", ROOT).args(["--all", "--check"]).run())?;
    step("lints", || {
        let but_models = ["--workspace", "--exclude", "procession-models", "--all-targets"];
        cargo("clippy", ROOT).args(but_models).args(["--", "--deny", "warnings"]).run()
    })?;
    step("lints of the models", || {
        // Not as tests: the library's files that they run have tests that belong to the library.
        let models =
            ["--package", "procession-models", "--lib", "--bins", "--test", "models", "--test", "orders"];
        cargo("clippy", ROOT).args(models).args(["--", "--deny", "warnings"]).run()
    })?;
    step("lints of the steps", || {
        let core = [
            "--package",
            "procession-sys",
            "--package",
            "procession-core",
            "--features",
            "procession-core/crash-points",
            "--all-targets",
        ];
        cargo("clippy", ROOT).args(core).args(["--", "--deny", "warnings"]).run()
    })?;
    step("format and lints in Python", python::lints)?;
    step("documentation", || {
        cargo("doc", ROOT).args(["--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings").run()
    })?;
    step("tests", || test::run(None))?;
    step("models", models)?;
    step("every death", || every_death(false, None))?;
    step("storm", || storm().args(["--seconds", "40"]).run())?;
    step("demo under kills", || {
        demo_under_kills(cargo("run", ROOT).args(["--release", "--package", "checksum", "--"]))
    })?;
    // As the tests had it compiled.
    step("demo in Python under kills", || demo_under_kills(python::demo(Profile::Dev)?))?;
    step("storm in Python", || python::storm(Profile::Dev)?.args(["--seconds", "20"]).run())?;
    step("CPython's own tests", || python::conformance(["--quick"]))
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
pub(crate) fn storm() -> Tool {
    cargo("run", ROOT).args(["--release", "--package", "procession-storm", "--"])
}

/// The demo on real input, its workers being killed; its output against that of `sha256sum`.
fn demo_under_kills(demo: Tool) -> Result<(), Failure> {
    let dir = sysroot()?;
    let printed = demo.args(["--chaos", "--"]).args([&dir]).output(Stdio::inherit())?;
    let by_path = r#"find "$1" -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum --"#;
    let sha256sum = Tool(Command::new("sh")).args(["-c", by_path, "sh"]).args([&dir]);
    if printed.is_empty() || printed != sha256sum.output(Stdio::inherit())? {
        return Err(Failure::new(format!(
            "the demo does not print what sha256sum prints for {}",
            dir.display()
        )));
    }
    Ok(())
}

fn step(name: &str, work: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
    eprintln!("== {name}");
    let start = Instant::now();
    let outcome = work();
    let seconds = start.elapsed().as_secs_f64();
    match outcome {
        Ok(()) => {
            eprintln!("== {name}: passed in {seconds:.1} s");
            Ok(())
        }
        Err(failure) => {
            let reason = failure.message.map(|message| format!(": {message}")).unwrap_or_default();
            let message = format!("step '{name}' failed after {seconds:.1} s{reason}");
            Err(Failure { message: Some(message), status: failure.status })
        }
    }
}
