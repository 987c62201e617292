//! The end of a turn: the mortals are killed, the survivors end by themselves, and nothing is left.

use std::path::Path;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::time::Duration;

use rustix::process::Signal;

use super::{PATIENCE, Turn};
use crate::board::now;
use crate::leaks;
use crate::roles::Role;

impl Turn<'_> {
    /// The end: the mortals are killed, the survivors do what is left and end by themselves.
    pub(super) fn finish(&mut self) {
        self.board.head().stop.store(1, Release);
        self.continue_stopped(true);
        for seat in 0..self.children.len() {
            if self.game.seats[seat].mortal
                && let Some(child) = &self.children[seat]
            {
                self.kill(Some(seat), child.slot);
            }
        }
        // The daemons of the killed, too: one that has a moment left would find the queue shut down.
        self.wait_for("the killed and their daemons to be gone", |turn| {
            let lives = |slot| turn.identity(slot).is_some_and(|identity| identity.is_alive());
            turn.leaving.is_empty() && !turn.orphans.iter().any(|orphan| lives(orphan.slot))
        });
        self.wait_for("those who bring things about to end", |turn| {
            turn.children.iter().flatten().all(|child| {
                turn.board.slot(child.slot).ended.load(Acquire) != 0
                    || matches!(
                        crate::roles::NAMES[turn.board.slot(child.slot).role.load(Relaxed) as usize],
                        "consumer" | "worker" | "notifier" | "setter" | "party"
                    )
            })
        });
        self.board.head().stop.store(2, Release);
        if let Some(closer) = &self.game.closer {
            let close = closer(false);
            self.run_closer(close);
        }
        self.wait_for("all others to end", |turn| turn.children.iter().all(Option::is_none));
        self.wait_for("the killed to be gone", |turn| turn.leaving.is_empty() && turn.stopped.is_empty());
        let folder = self.board.folder();
        if let Some(closer) = &self.game.closer {
            let close = closer(true);
            // The daemons of the killed may still be about to end.
            self.wait_for("all processes of the turn to be gone", |_| leaks::mappers(folder).is_empty());
            self.run_closer(close);
        }
        self.wait_for("all processes of the turn to be gone", |_| leaks::mappers(folder).is_empty());
        if let Some(fault) = first_fault(folder) {
            self.wrong(fault);
        }
    }

    fn run_closer(&mut self, role: Role) {
        if self.wrong.is_some() {
            return;
        }
        if let Some(closer) = self.start(role, None) {
            let slot = closer.slot;
            self.leaving.push(closer);
            self.wait_for("the queue to be closed", |turn| {
                turn.leaving.iter().all(|child| child.slot != slot)
            });
        }
    }

    fn wait_for(&mut self, what: &str, done: impl Fn(&Turn) -> bool) {
        let start = now();
        while self.wrong.is_none() && !done(self) {
            self.look_after(false);
            if now() > start + PATIENCE {
                self.wrong(format!("waited 10 s for {what}"));
            }
        }
    }

    /// Ends whatever is left.
    pub(super) fn clear(&mut self) {
        let _ = self.board.head().stop.fetch_max(2, Relaxed);
        self.continue_stopped(true);
        for child in self.children.iter().flatten().chain(&self.leaving) {
            // One that ended meanwhile is fine.
            let _ = child.process.kill();
        }
        for slot in 0..self.board.count() {
            if self.board.slot(slot).ended.load(Acquire) == 0 {
                let _ = self.signal(slot, Signal::KILL);
            }
        }
        for child in self.children.drain(..).flatten().chain(self.leaving.drain(..)) {
            let _ = child.process.join_timeout(Duration::from_secs(10));
        }
    }
}

/// What the first process says that found something wrong.
fn first_fault(folder: &Path) -> Option<String> {
    let files = std::fs::read_dir(folder).ok()?;
    files.flatten().find_map(|file| {
        let name = file.file_name().to_string_lossy().into_owned();
        let slot = name.strip_prefix("fault-")?.to_owned();
        Some(format!("process {slot}: {}", std::fs::read_to_string(file.path()).unwrap_or_default()))
    })
}
