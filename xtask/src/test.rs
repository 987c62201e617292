//! Running the tests, with one total over all of cargo's test programs.

use std::ffi::OsString;
use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use clap::Args;

use crate::python;
use crate::tool::{Failure, ROOT, Tool, cargo};

/// Which tests are run
#[derive(Args)]
pub(crate) struct Selection {
    /// Only tests whose name contains this
    filter: Option<OsString>,
    /// Only those in Rust
    #[arg(long, conflicts_with = "python")]
    rust: bool,
    /// Only those in Python
    #[arg(long)]
    python: bool,
    /// Only those of Rust that take no longer than a minute together
    #[arg(long, conflicts_with = "python")]
    quick: bool,
}

/// Tests of one program that run at once: most of what they do is wait.
const THREADS: &str = "4";

/// Runs the tests that are selected, those of the documentation and the examples too. Prints how many of Rust's passed and failed;
/// pytest does so itself.
pub(crate) fn run(Selection { filter, rust, python, quick }: Selection) -> Result<(), Failure> {
    let mut passed = true;
    if !python {
        let tool = cargo("test", ROOT).args(["--no-fail-fast"]);
        let packages = ["procession-sys", "procession-core", "procession", "xtask"];
        let packages = packages.iter().flat_map(|package| ["--package", package]);
        let tool = match quick {
            true => tool.args(["--lib", "--bins", "--test", "core", "--test", "imports"]).args(packages),
            // The models are explored by `models`, and have no other tests.
            false => tool.args(["--workspace", "--exclude", "procession-models"]),
        };
        let tool = match std::env::var_os("RUST_TEST_THREADS") {
            Some(_) => tool,
            None => tool.env("RUST_TEST_THREADS", THREADS),
        };
        let (total, all) = run_counting(tool.args(&filter))?;
        println!("\nRust: {total}");
        passed = all;
    }
    let rest = if rust || quick { Ok(()) } else { python::test(filter.as_deref()) };
    if passed { rest } else { Err(Failure { message: None, status: 1 }) }
}

/// Runs a `cargo test`, showing what it prints; its total, and whether all of it passed.
pub(crate) fn run_counting(mut tool: Tool) -> Result<(Total, bool), Failure> {
    tool.0.stdout(Stdio::piped());
    let mut child = tool.0.spawn().map_err(|error| tool.not_started(&error))?;
    let total = match child.stdout.take() {
        Some(output) => copy_and_count(BufReader::new(output), std::io::stdout()),
        None => Ok(Total::default()),
    };
    let status = child.wait();
    let lost = |error| Failure::new(format!("lost sight of the tests: {error}"));
    let (total, status) = (total.map_err(lost)?, status.map_err(lost)?);
    let passed = status.success() && total.failed == 0;
    Ok((total, passed))
}

/// How many tests of all programs passed and failed.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Total {
    passed: u64,
    failed: u64,
}

impl std::ops::AddAssign for Total {
    fn add_assign(&mut self, more: Total) {
        self.passed += more.passed;
        self.failed += more.failed;
    }
}

impl fmt::Display for Total {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

fn copy_and_count(mut output: impl BufRead, mut to: impl Write) -> std::io::Result<Total> {
    let mut total = Total::default();
    let mut line = Vec::new();
    while output.read_until(b'\n', &mut line)? > 0 {
        to.write_all(&line)?;
        if let Some((passed, failed)) = counts(&String::from_utf8_lossy(&line)) {
            total += Total { passed, failed };
        }
        line.clear();
    }
    Ok(total)
}

/// The numbers in `test result: ok. 3 passed; 0 failed; …`.
fn counts(line: &str) -> Option<(u64, u64)> {
    let (_, result) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let mut parts = result.split("; ");
    let passed = parts.next()?.strip_suffix(" passed")?.parse().ok()?;
    let failed = parts.next()?.strip_suffix(" failed")?.parse().ok()?;
    Some((passed, failed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_all_programs_add_up() {
        let output = "running 2 tests\ntest a ... ok\n\
            test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
            test result: FAILED. 1 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.1s\n";
        let mut shown = Vec::new();
        let total = copy_and_count(output.as_bytes(), &mut shown).expect("reading and writing memory");
        assert_eq!(shown, output.as_bytes());
        assert_eq!(total, Total { passed: 3, failed: 3 });
    }

    #[test]
    fn other_lines_count_nothing() {
        assert_eq!(counts("test result of mine: 3 passed; 0 failed"), None);
        assert_eq!(counts("test a ... ok"), None);
    }
}
