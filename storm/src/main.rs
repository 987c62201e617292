//! The SIGKILL storm: processes that use everything the library has, killed and stopped at random; what they
//! acknowledged is accounted for against logs that they write outside the library, and whoever lives must get on.
//!
//! Kinds of traffic have turns of a few seconds. In each some seats are taken by processes that are killed and replaced, others by
//! survivors, for whom the promise holds: no second without progress. See `docs/reliability.md`.

mod account;
mod board;
mod kinds;
mod leaks;
mod parcel;
mod pulse;
mod report;
mod roles;
mod turn;
mod watch;

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use clap::Parser;

use board::Board;
use kinds::Kind;
use pulse::Pulse;
use report::Report;
use roles::Fault;
use turn::{Record, Turn};

/// Kills processes at random while they use the library, and accounts for what is left
#[derive(Parser)]
#[command(name = "storm", bin_name = "cargo xtask storm")]
struct Arguments {
    /// How long it takes in all
    #[arg(long, default_value_t = 60.0, value_name = "N")]
    seconds: f64,
    /// What chance begins with [default: at random]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Only this kind of traffic
    #[arg(long, value_name = "KIND", value_parser = kinds::ALL.map(|kind| kind.name))]
    only: Option<String>,
    /// Makes this fault, to see that it is found
    #[arg(long, value_enum, value_name = "FAULT", hide = true)]
    r#break: Option<Fault>,
}

/// The longest and the shortest turn.
const LONGEST: Duration = Duration::from_secs(5);
const SHORTEST: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if std::env::var_os(leaks::MARK).is_none() {
        return marked();
    }
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(..));
    println!("seed {seed}");
    match storm(&arguments, seed) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Begins again with a mark in the environment, which all processes of the storm inherit and by which they are found.
fn marked() -> ExitCode {
    let mark = format!("{}-{:x}", std::process::id(), fastrand::u64(..));
    let error = match std::env::current_exe() {
        Ok(program) => Command::new(program).args(std::env::args_os().skip(1)).env(leaks::MARK, mark).exec(),
        Err(error) => error,
    };
    eprintln!("error: the storm cannot run itself again: {error}");
    ExitCode::FAILURE
}

/// Whether all was as promised.
fn storm(arguments: &Arguments, seed: u64) -> Result<bool, String> {
    let mut random = fastrand::Rng::with_seed(seed);
    let chosen: Vec<&Kind> = kinds::ALL
        .iter()
        .filter(|kind| arguments.only.as_deref().is_none_or(|only| only == kind.name))
        .collect();
    let time =
        Duration::try_from_secs_f64(arguments.seconds).map_err(|error| format!("--seconds: {error}"))?;
    let work = Work::new()?;
    let mut report = Report::new(seed, &chosen);
    let (start, mut before) = (Instant::now(), None);
    let mut played = Duration::ZERO;
    for (number, kind) in chosen.iter().cycle().enumerate() {
        let left = time.saturating_sub(start.elapsed());
        // Every kind once, so long that all have their turn in the time, as far as can be told from those that had; then until
        // the time is up.
        let turns_left = chosen.len().saturating_sub(number).max(1) as u32;
        if number >= chosen.len() && left < SHORTEST {
            break;
        }
        let endings = start.elapsed().saturating_sub(played) / (number as u32).max(1);
        let turn_time = (left / turns_left).saturating_sub(endings).clamp(SHORTEST, LONGEST);
        played += turn_time;
        let mut record = work.turn(kind, number, turn_time, random.u64(..), arguments.r#break)?;
        let holdings = leaks::Holdings::now().map_err(|error| error.to_string())?;
        // The first turn starts the fork server and the library's own thread.
        if let Some(grown) = holdings.grown_since(before.get_or_insert(holdings)) {
            record.tally.faults.push(grown);
        }
        let failed = !record.tally.faults.is_empty();
        report.add(kind, &record);
        if failed {
            report.print(start.elapsed());
            report.explain(&record, kind, &work.folder);
            work.keep();
            return Ok(false);
        }
    }
    report.print(start.elapsed());
    Ok(true)
}

/// The folder with the logs, removed in the end unless something is wrong.
struct Work {
    folder: PathBuf,
    pulse: Pulse,
    keep: std::cell::Cell<bool>,
}

impl Work {
    fn new() -> Result<Self, String> {
        let folder = std::env::temp_dir().join(format!("procession-storm-{}", std::process::id()));
        std::fs::create_dir(&folder).map_err(|error| format!("making {}: {error}", folder.display()))?;
        let pulse = Pulse::start(&folder)?;
        Ok(Work { folder, pulse, keep: false.into() })
    }

    fn keep(&self) {
        self.keep.set(true);
    }

    fn turn(
        &self,
        kind: &Kind,
        number: usize,
        time: Duration,
        seed: u64,
        fault: Option<Fault>,
    ) -> Result<Record, String> {
        let folder = self.folder.join(format!("{number}-{}", kind.name));
        let tag = format!("procession-storm-{}-{number}", std::process::id());
        std::fs::create_dir(&folder).map_err(|error| format!("making {}: {error}", folder.display()))?;
        let board = Board::open(&folder).map_err(|error| format!("the board: {error}"))?;
        let game = kind.set_up(&tag)?;
        let before = leaks::marked().map_err(|error| format!("looking at the processes: {error}"))?;
        let turn = Turn::new(&board, &game, kind, seed, fault, &self.pulse);
        let mut record = turn.run(time, |wrong| {
            leave_state(&folder, wrong, &format!("{}\n{}", (game.describe)(), board.describe()))
        });
        if !record.tally.faults.is_empty() && !folder.join("state.txt").exists() {
            leave_state(
                &folder,
                &record.tally.faults[0],
                &format!("{}\n{}", (game.describe)(), board.describe()),
            );
        }
        drop((game, board));
        if let Some(left) = leaks::processes_left(&before) {
            record.tally.faults.push(left);
        }
        match leaks::named(&tag) {
            Ok(left) if left.is_empty() => {}
            Ok(left) => record.tally.faults.push(format!("left in /dev/shm: {left:?}")),
            Err(error) => record.tally.faults.push(format!("looking at /dev/shm: {error}")),
        }
        if record.tally.faults.is_empty() {
            std::fs::remove_dir_all(&folder).map_err(|error| format!("removing the logs: {error}"))?;
        } else {
            let faults = record.tally.faults.join("\n");
            let text = format!("kind {}, turn {number}, its seed {seed}\n{faults}\n", kind.name);
            std::fs::write(folder.join("faults.txt"), text)
                .map_err(|error| format!("faults.txt: {error}"))?;
        }
        Ok(record)
    }
}

fn leave_state(folder: &Path, wrong: &str, state: &str) {
    if let Err(error) = std::fs::write(folder.join("state.txt"), format!("{wrong}\n\n{state}\n")) {
        eprintln!("cannot write the state of the objects to {}: {error}\n{state}", folder.display());
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if !self.keep.get()
            && let Err(error) = std::fs::remove_dir_all(&self.folder)
        {
            eprintln!("cannot remove {}: {error}", self.folder.display());
        }
    }
}
