//! The project's build tool: `cargo xtask demo | test | bench | models | ci`.

mod steps;
mod test;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

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
    },
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
    /// Explore the models of the protocols, in which processes die at any step
    Models,
    /// All that a change has to pass: format, lints, documentation, tests, models, the demo under kills
    Ci,
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Demo { dir, chaos, workers } => demo(dir, chaos, workers),
        Command::Test { filter } => test::run(filter),
        Command::Bench { arguments } => cargo("run", BENCHES).args(["--release", "--"]).args(arguments).run(),
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

/// Builds `examples/checksum` and runs it. Its exit status is this command's.
fn demo(dir: Option<PathBuf>, chaos: bool, workers: Option<u32>) -> Result<(), Failure> {
    let dir = dir.map_or_else(steps::sysroot, Ok)?;
    let mut demo = cargo("run", ROOT).args(["--release", "--package", "checksum", "--"]);
    if chaos {
        demo = demo.args(["--chaos"]);
    }
    if let Some(workers) = workers {
        demo = demo.args(["--workers".into(), workers.to_string()]);
    }
    demo.args(["--".as_ref(), dir.as_os_str()]).run()
}
