//! Watches the supervisor: it calls the library too, to start processes and to collect them, and must not hang over that.

use std::path::Path;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::time::Duration;

use procession::Process;
use rustix::process::{Signal, getppid, kill_process};

use crate::board::{Board, now};

/// The supervisor may be silent for so long (µs).
const LIMIT: u64 = 60_000_000;

/// The supervisor's heartbeat.
pub(crate) struct Pulse {
    board: Board,
    /// Ends with this process.
    _watcher: Process<()>,
}

impl Pulse {
    /// Begins to beat, and starts a process that watches it: should it fall silent, the storm is killed.
    pub(crate) fn start(folder: &Path) -> Result<Self, String> {
        let board = Board::open(folder).map_err(|error| format!("the pulse's board: {error}"))?;
        let storm = std::process::id();
        board.head().counter.store(now(), Release);
        let watcher = Process::forking(|| watch(&board, storm)).daemon(true).start();
        let watcher = watcher.map_err(|error| format!("starting the watcher: {error}"))?;
        Ok(Pulse { board, _watcher: watcher })
    }

    pub(crate) fn beat(&self) {
        self.board.head().counter.store(now(), Release);
    }
}

fn watch(board: &Board, storm: u32) {
    while let Some(parent) = getppid().filter(|parent| parent.as_raw_nonzero().get().unsigned_abs() == storm)
    {
        std::thread::sleep(Duration::from_millis(100));
        let silent = now().saturating_sub(board.head().counter.load(Acquire));
        if silent > LIMIT {
            eprintln!(
                "FAILED: the storm itself has hung for {} s; its logs: {}",
                silent / 1_000_000,
                board.folder().display()
            );
            if let Err(error) = kill_process(parent, Signal::KILL) {
                eprintln!("and cannot be killed: {error}");
            }
            return;
        }
    }
}
