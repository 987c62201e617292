//! The project's build tool: `cargo xtask test | bench | ci`.

mod steps;
mod test;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use steps::{BENCHES, cargo};

/// Builds, runs and checks this project
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run all tests, documentation tests and those of the examples too
    Test {
        /// Only tests whose name contains this
        filter: Option<OsString>,
    },
    /// Measure against other libraries; --help lists what can be chosen
    #[command(disable_help_flag = true)]
    Bench {
        /// Passed on to the benchmark program
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// All that a change has to pass: format, lints, documentation, tests
    Ci,
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Test { filter } => test::run(filter),
        Command::Bench { arguments } => cargo("run", BENCHES).args(["--release", "--"]).args(arguments).run(),
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
