//! The project's build tool: `cargo xtask demo | test | python | conformance | software | models | steps | storm | sanitize | bench | ci`.

mod python;
mod sanitize;
mod steps;
mod test;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use python::{Profile, With};
use steps::{BENCHES, Failure, ROOT, cargo};

/// Builds, runs and checks this project
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Hash all files below a folder with worker processes, as sha256sum prints them
    Demo {
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
    },
    /// Run all tests: of both languages, of the documentation and of the examples
    Test {
        /// Only tests whose name contains this
        filter: Option<OsString>,
    },
    /// Run Python with the package, as in `cargo xtask python program.py` or `cargo xtask python -m pytest -k queue`
    #[command(disable_help_flag = true)]
    Python {
        /// Passed on to Python
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Run CPython's own tests of multiprocessing against the Python package; --help lists what can be chosen
    #[command(disable_help_flag = true)]
    Conformance {
        /// Passed on to their runner
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Try the Python package with software from PyPI that was written for multiprocessing
    Software,
    /// Measure against other libraries; --help lists what can be chosen
    #[command(disable_help_flag = true)]
    Bench {
        /// Passed on to the benchmark program
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Explore the models of the protocols, in which processes die at any step
    Models,
    /// Kill a process at every step that changes shared memory, in turn
    Steps {
        /// Also a second one at every step of repairing what the first left, of which otherwise some are tried. Takes hours
        #[arg(long)]
        pairs: bool,
        /// Only situations whose name contains this
        #[arg(long)]
        only: Option<String>,
    },
    /// Kill processes at random while they use everything there is; --help lists what can be chosen
    #[command(disable_help_flag = true)]
    Storm {
        /// The storm over processes in Python
        #[arg(long)]
        python: bool,
        /// Passed on to the storm
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Run the libraries' tests under a sanitizer, or all of them, with a nightly toolchain
    Sanitize {
        /// Which one [default: all]
        which: Option<sanitize::Sanitizer>,
    },
    /// All that a change has to pass: format, lints, documentation, tests, models, deaths, the storm, the demo under kills
    Ci,
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Demo { dir, chaos, workers, python } => demo(dir, chaos, workers, python),
        Command::Test { filter } => test::run(filter),
        Command::Python { arguments } => {
            python::python(Profile::Release, With::Tests).and_then(|python| python.args(arguments).run())
        }
        Command::Conformance { arguments } => python::conformance(arguments),
        Command::Software => python::software(),
        Command::Bench { arguments } => cargo("run", BENCHES).args(["--release", "--"]).args(arguments).run(),
        Command::Steps { pairs, only } => steps::every_death(pairs, only.as_deref()),
        Command::Storm { python, arguments } => {
            let storm = if python { python::storm(Profile::Release) } else { Ok(steps::storm()) };
            storm.and_then(|storm| storm.args(arguments).run())
        }
        Command::Sanitize { which } => sanitize::run(which),
        Command::Models => steps::models(),
        Command::Ci => steps::ci(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if let Some(message) = failure.message {
                eprintln!("error: {message}");
            }
            ExitCode::from(failure.status)
        }
    }
}

/// Runs `examples/checksum`, or the same in Python. Its exit status is this command's.
fn demo(dir: Option<PathBuf>, chaos: bool, workers: Option<u32>, python: bool) -> Result<(), Failure> {
    let dir = dir.map_or_else(steps::sysroot, Ok)?;
    let mut demo = if python {
        python::demo(Profile::Release)?
    } else {
        cargo("run", ROOT).args(["--release", "--package", "checksum", "--"])
    };
    if chaos {
        demo = demo.args(["--chaos"]);
    }
    if let Some(workers) = workers {
        demo = demo.args(["--workers".into(), workers.to_string()]);
    }
    demo.args(["--".as_ref(), dir.as_os_str()]).run()
}
