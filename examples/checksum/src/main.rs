//! SHA-256 of all files below a folder, hashed by worker processes. Standard output is, byte for byte, what
//! `sha256sum` prints for the same files sorted by path; everything else goes to standard error.
//!
//! The exit status is 0 when all is hashed, 1 when something could not be read (it is named), 2 when nothing
//! could be done. Ctrl-C ends all processes at once: the status is that of SIGINT, which a shell shows as 130. Whoever closes
//! standard output early has seen enough: no complaint, and the status 141 that a shell shows for SIGPIPE.

mod digest;
mod parallel;
mod pooled;
mod report;
mod walk;
mod worker;

use std::fmt;
use std::io::{self, BufWriter, ErrorKind, IsTerminal, Write};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::digest::Hash;
use crate::parallel::Plan;
use crate::report::Unreadable;
use crate::walk::File;

/// Prints the SHA-256 of all regular files below DIR, as sha256sum does, sorted by path
#[derive(Parser)]
#[command(name = "checksum", version)]
struct Arguments {
    /// The folder; links below it are not followed
    dir: PathBuf,
    /// Worker processes [default: one for each CPU]
    #[arg(long, value_name = "N")]
    workers: Option<NonZeroU32>,
    /// Kill a random worker every 50 ms and start another in its place
    #[arg(long)]
    chaos: bool,
    /// Use a pool instead of processes, a queue of tasks and one of reports
    #[arg(long)]
    pool: bool,
    /// Show neither progress nor summary
    #[arg(long)]
    quiet: bool,
}

/// Something could not be read.
const INCOMPLETE: u8 = 1;
/// Nothing could be done.
const FAILED: u8 = 2;
/// Standard output was closed: 128 and SIGPIPE's number.
const CLOSED: u8 = 141;

/// Why not everything was printed.
enum Failure {
    /// Nobody reads standard output any more.
    Closed,
    /// What to say.
    Message(String),
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(INCOMPLETE),
        Err(Failure::Closed) => ExitCode::from(CLOSED),
        Err(Failure::Message(message)) => {
            say(format_args!("checksum: {message}"));
            ExitCode::from(FAILED)
        }
    }
}

/// Writes a line to standard error.
fn say(line: fmt::Arguments<'_>) {
    // Where nobody reads it there is nobody to tell.
    let _ = writeln!(io::stderr(), "{line}");
}

/// Whether everything could be read.
fn run(arguments: &Arguments) -> Result<bool, Failure> {
    let start = Instant::now();
    let (files, mut unreadable) = walk::find(&arguments.dir)
        .map_err(|error| format!("{}: {}", report::name(&arguments.dir), report::reason(&error)))
        .map_err(Failure::Message)?;
    let workers = arguments.workers.map_or_else(procession::cpu_count, |workers| workers.get() as usize);
    let bytes = files.iter().map(|file| file.size).sum();
    let bar = progress_bar(bytes, arguments.quiet);
    let plan = Plan { workers, chaos: arguments.chaos };
    let progress = |done: u64| bar.set_position(done.min(bytes));
    let outcome = if arguments.pool {
        pooled::hash_all(&files, &plan, progress)
    } else {
        parallel::hash_all(&files, &plan, progress)
    };
    bar.finish_and_clear();
    let outcome = outcome.map_err(|error| Failure::Message(error.to_string()))?;

    let hashed = print(files, outcome.hashes, &mut unreadable).map_err(|error| match error.kind() {
        ErrorKind::BrokenPipe => Failure::Closed,
        _ => Failure::Message(format!("standard output: {}", report::reason(&error))),
    })?;
    for file in &unreadable {
        say(format_args!("{}", report::complaint(file)));
    }
    if !arguments.quiet {
        let mut summary = format!("{}, {}", counted(hashed, "file"), counted(bytes, "byte"));
        let workers = counted(outcome.workers as u64, "worker");
        summary += &format!(" in {:.2} s with {workers}", start.elapsed().as_secs_f64());
        if arguments.chaos {
            summary += &format!(", {} killed", outcome.killed);
        }
        if outcome.died > 0 {
            summary += &format!(", {} died", outcome.died);
        }
        say(format_args!("{summary}"));
    }
    Ok(unreadable.is_empty())
}

/// A number of things in words.
fn counted(number: u64, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

/// Writes a line for each file that was hashed and notes the others; how many were hashed.
fn print(
    files: Vec<File>,
    hashes: Vec<io::Result<Hash>>,
    unreadable: &mut Vec<Unreadable>,
) -> io::Result<u64> {
    let mut out = BufWriter::new(io::stdout().lock());
    let mut hashed = 0;
    for (file, hash) in files.into_iter().zip(hashes) {
        match hash {
            Ok(hash) => {
                report::write_line(&mut out, &hash, &file.path)?;
                hashed += 1;
            }
            Err(reason) => unreadable.push(Unreadable { path: file.path, reason }),
        }
    }
    out.flush()?;
    Ok(hashed)
}

/// A bar on standard error while that is a terminal; otherwise one that draws nothing.
fn progress_bar(bytes: u64, quiet: bool) -> ProgressBar {
    if quiet || !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(Some(bytes), ProgressDrawTarget::stderr()).with_style(style)
}
