//! The project's build tool: `cargo xtask --help` lists its commands. `check`, `ci` and `nightly` run several of them.

mod lanes;
mod python;
mod sanitize;
mod steps;
mod test;
mod tool;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

use python::{Profile, With};
use tool::{BENCHES, cargo};

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
    Demo(steps::Demo),
    /// Check format and lints, of one language or both
    Lint {
        #[arg(value_enum)]
        language: Option<Language>,
    },
    /// Build the documentation of the Rust crates, without warnings
    Doc,
    /// Run all tests: of both languages, of the documentation and of the examples
    Test(test::Selection),
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
    /// Run the Python tests with every other Python that there is
    Interpreters,
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
        /// Build without optimisation, as the tests are
        #[arg(long)]
        dev: bool,
        /// Passed on to the storm
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Run the libraries' tests under a sanitizer, or all of them, with a nightly toolchain
    Sanitize {
        /// Which one [default: all]
        which: Option<sanitize::Sanitizer>,
    },
    /// Build with the oldest Rust that the manifests name, which rustup installs where it is missing
    Msrv,
    /// What to run before each commit, in minutes: format, lints, the quick tests, the demo under kills
    Check,
    /// All that a change has to pass: lints, documentation, tests, models, deaths, storms, demos under kills, CPython's own tests
    Ci,
    /// What takes hours: long storms, all of CPython's own tests, other software and interpreters, sanitizers, pairs of deaths
    Nightly,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Language {
    Rust,
    Python,
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Demo(demo) => steps::demo(demo),
        Command::Lint { language: Some(Language::Rust) } => steps::lints(),
        Command::Lint { language: Some(Language::Python) } => python::lints(),
        Command::Lint { language: None } => steps::lints().and_then(|()| python::lints()),
        Command::Doc => steps::documentation(),
        Command::Test(selection) => test::run(selection),
        Command::Python { arguments } => {
            python::python(Profile::Release, With::Tests).and_then(|python| python.args(arguments).run())
        }
        Command::Conformance { arguments } => python::conformance(arguments),
        Command::Interpreters => python::interpreters(),
        Command::Software => python::software(),
        Command::Bench { arguments } => cargo("run", BENCHES).args(["--release", "--"]).args(arguments).run(),
        Command::Steps { pairs, only } => steps::every_death(pairs, only.as_deref()),
        Command::Storm { python, dev, arguments } => {
            let profile = Profile::of(dev);
            let storm = if python { python::storm(profile) } else { Ok(steps::storm(profile)) };
            storm.and_then(|storm| storm.args(arguments).run())
        }
        Command::Sanitize { which } => sanitize::run(which),
        Command::Models => steps::models(),
        Command::Msrv => steps::msrv(),
        Command::Check => lanes::check(),
        Command::Ci => lanes::ci(),
        Command::Nightly => lanes::nightly(),
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
