//! The tests under ThreadSanitizer and AddressSanitizer, with a nightly toolchain.

use std::path::Path;
use std::process::{Command, Stdio};

use clap::ValueEnum;

use crate::steps::{Failure, Tool, manifest, root};

/// What to look for
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Sanitizer {
    /// Data races between the threads of a process (ThreadSanitizer)
    Thread,
    /// Use of memory that is not there, or no longer, and leaked memory (AddressSanitizer, LeakSanitizer)
    Address,
}

/// Tests that a sanitizer cannot run, by parts of their names, and why.
struct Exclusion {
    sanitizer: Sanitizer,
    tests: &'static [&'static str],
    #[allow(dead_code, reason = "for who reads the list")]
    reason: &'static str,
}

const EXCLUSIONS: &[Exclusion] = &[Exclusion {
    sanitizer: Sanitizer::Thread,
    tests: &[
        "os::apart::",
        "without_descriptors_a_process_knows_itself",
        "a_forked_child_without_descriptors",
    ],
    reason: "ThreadSanitizer takes a clone() that shares the memory for a fork, and counts its thread twice",
}];

impl Sanitizer {
    fn name(self) -> &'static str {
        match self {
            Sanitizer::Thread => "thread",
            Sanitizer::Address => "address",
        }
    }

    /// The variable of its options, and those that the tests need.
    fn options(self) -> (&'static str, &'static str) {
        match self {
            // A child that is forked among threads may start some of its own.
            Sanitizer::Thread => ("TSAN_OPTIONS", "die_after_fork=0"),
            Sanitizer::Address => ("ASAN_OPTIONS", "detect_leaks=1"),
        }
    }
}

/// Runs the tests of the libraries under each of them, or under the one that is named.
pub(crate) fn run(which: Option<Sanitizer>) -> Result<(), Failure> {
    let host = host()?;
    let all = [Sanitizer::Thread, Sanitizer::Address];
    for sanitizer in all.into_iter().filter(|sanitizer| which.is_none_or(|which| which == *sanitizer)) {
        eprintln!("== tests under the {} sanitizer", sanitizer.name());
        test(sanitizer, &host)?;
    }
    Ok(())
}

fn test(sanitizer: Sanitizer, host: &str) -> Result<(), Failure> {
    let (variable, needed) = sanitizer.options();
    let options = match std::env::var(variable) {
        Ok(given) => format!("{needed}:{given}"),
        Err(_) => needed.to_owned(),
    };
    let mut tool = nightly("cargo");
    tool.0.arg("test").arg("--manifest-path").arg(manifest(""));
    // A folder of its own: other flags build everything anew.
    tool.0.arg("--target-dir").arg(root().join("target").join(format!("sanitize-{}", sanitizer.name())));
    // Without an instrumented standard library its own locks and channels would look like races.
    let tool = tool
        .args(["-Zbuild-std", "--target", host, "--package", "procession-core", "--package", "procession"])
        .args(["--lib", "--tests", "--no-fail-fast", "--", "--test-threads=2"]);
    let excluded = EXCLUSIONS.iter().filter(|exclusion| exclusion.sanitizer == sanitizer);
    let skips = excluded.flat_map(|exclusion| exclusion.tests).flat_map(|test| ["--skip", test]);
    tool.args(skips)
        .env("RUSTFLAGS", &format!("-Zsanitizer={} -Cunsafe-allow-abi-mismatch=sanitizer", sanitizer.name()))
        .env(variable, &options)
        .run()
}

/// A tool of the nightly toolchain. (The variable CARGO names this program's own.)
fn nightly(tool: &str) -> Tool {
    let mut command = Command::new("rustup");
    command.args(["run", "nightly", tool]).env_remove("CARGO").env_remove("RUSTUP_TOOLCHAIN");
    Tool(command)
}

/// The target to build for, after a look at whether the toolchain has all that is needed.
fn host() -> Result<String, Failure> {
    let missing = |what: &str, how: &str| {
        Failure::new(format!("sanitizers need {what}: install it with `rustup {how}`"))
    };
    let version = nightly("rustc")
        .args(["-vV"])
        .output(Stdio::null())
        .map_err(|_| missing("a nightly toolchain", "toolchain install nightly --component rust-src"))?;
    let version = String::from_utf8_lossy(&version).into_owned();
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    let sysroot = nightly("rustc").args(["--print", "sysroot"]).output(Stdio::inherit())?;
    let sysroot = String::from_utf8_lossy(&sysroot);
    let library = Path::new(sysroot.trim_end()).join("lib/rustlib/src/rust/library/Cargo.toml");
    if !library.exists() {
        return Err(missing("the standard library's source", "component add rust-src --toolchain nightly"));
    }
    host.map(str::to_owned).ok_or_else(|| Failure::new("rustc does not say what it builds for"))
}
