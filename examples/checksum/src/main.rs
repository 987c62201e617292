//! SHA-256 of all files below a folder, hashed by worker processes. Standard output is, byte for byte, what
//! `sha256sum` prints for the same files sorted by path; everything else goes to standard error.
//!
//! The exit status is 0 when all is hashed, 1 when something could not be read (it is named), 2 when nothing
//! could be done.

mod digest;
mod parallel;
mod report;
mod walk;

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
    /// Show neither progress nor summary
    #[arg(long)]
    quiet: bool,
}

/// Something could not be read.
const INCOMPLETE: u8 = 1;
/// Nothing could be done.
const FAILED: u8 = 2;

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(INCOMPLETE),
        Err(message) => {
            eprintln!("checksum: {message}");
            ExitCode::from(FAILED)
        }
    }
}

/// Whether everything could be read.
fn run(arguments: &Arguments) -> Result<bool, String> {
    let start = Instant::now();
    let (files, mut unreadable) = walk::find(&arguments.dir)
        .map_err(|error| format!("{}: {}", report::name(&arguments.dir), report::reason(&error)))?;
    let workers = arguments.workers.map_or_else(parallel::cpu_count, |workers| workers.get() as usize);
    let bytes = files.iter().map(|file| file.size).sum();
    let bar = progress_bar(bytes, arguments.quiet);
    let plan = Plan { workers, chaos: arguments.chaos };
    let outcome = parallel::hash_all(&files, &plan, |done| bar.set_position(done.min(bytes)));
    bar.finish_and_clear();
    let outcome = outcome.map_err(|error| error.to_string())?;

    let hashed = print(files, outcome.hashes, &mut unreadable).map_err(|error| match error.kind() {
        // Whoever read the output has seen enough.
        ErrorKind::BrokenPipe => "standard output was closed".into(),
        _ => format!("standard output: {}", report::reason(&error)),
    })?;
    for file in &unreadable {
        eprintln!("{}", report::complaint(file));
    }
    if !arguments.quiet {
        let killed = if arguments.chaos { format!(", {} killed", outcome.killed) } else { String::new() };
        let seconds = start.elapsed().as_secs_f64();
        eprintln!("{hashed} files, {bytes} bytes in {seconds:.2} s with {workers} workers{killed}");
    }
    Ok(unreadable.is_empty())
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
