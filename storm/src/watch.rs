//! Who has been without progress, for how long, and how much of that the library is not to blame for.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Acquire;
use std::time::Duration;

use crate::board::{Board, now};
use crate::roles::{DOINGS, Doing, NAMES};

/// No survivor may be without progress for so long (µs), less what is excused.
const LIMIT: u64 = 1_000_000;
/// Nor for so long, whatever is excused.
const LAST_LIMIT: u64 = 10_000_000;
/// A sleep that is so much too long tells that the machine ran somebody else.
const LATE: u64 = 3_000;

/// The longest time without progress that was seen.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Stall {
    /// Less what is excused, in µs.
    pub(crate) net: u64,
    /// With what is excused, in µs.
    pub(crate) raw: u64,
    doing: u64,
}

impl Stall {
    pub(crate) fn longer(self, other: Stall) -> Stall {
        if other.net > self.net { other } else { self }
    }

    pub(crate) fn doing(self) -> &'static str {
        DOINGS.get(self.doing as usize).copied().unwrap_or("")
    }
}

/// What was excused, and seen, during a turn.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress {
    /// For each role.
    pub(crate) stalls: BTreeMap<&'static str, Stall>,
    /// µs during which a process was stopped that had something which others may have waited for.
    pub(crate) stopped: u64,
    /// µs by which sleeps were too long.
    pub(crate) late: u64,
}

impl Progress {
    pub(crate) fn add(&mut self, other: &Progress) {
        for (role, stall) in &other.stalls {
            let longest = self.stalls.entry(role).or_default();
            *longest = longest.longer(*stall);
        }
        self.stopped += other.stopped;
        self.late += other.late;
    }

    pub(crate) fn longest(&self) -> Option<(&'static str, Stall)> {
        self.stalls.iter().max_by_key(|(_, stall)| stall.net).map(|(role, stall)| (*role, *stall))
    }
}

/// How many processes and threads of the whole machine run or could run now.
fn runnable() -> u64 {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split([' ', '/']).nth(3).and_then(|running| running.parse().ok()).unwrap_or(0)
}

/// What is known of one process's progress.
#[derive(Clone, Copy, Default)]
struct Seen {
    beat: u64,
    /// What had been excused in all when the beat was first seen.
    excused: u64,
}

/// Looks at the progress of all processes of a turn.
#[derive(Default)]
pub(crate) struct Watch {
    seen: Vec<Seen>,
    excused: u64,
    last_look: u64,
    /// Processes of the turn that lived at the last look.
    alive: u64,
    /// How much all processes had logged when that last grew, and when.
    logged: u64,
    served: Seen,
    pub(crate) progress: Progress,
}

impl Watch {
    /// Sleeps a millisecond, and notes by how much it was longer, what the machine spent on others than the processes of
    /// the turn, and whether somebody may wait for a stopped process meanwhile.
    pub(crate) fn tick(&mut self, held_up: bool) {
        let before = now();
        std::thread::sleep(Duration::from_millis(1));
        let after = now();
        let since = if self.last_look == 0 { before } else { self.last_look };
        self.last_look = after;
        let late = (after - before).saturating_sub(1_000);
        if held_up {
            self.progress.stopped += after - since;
            self.excused += after - since;
            return;
        }
        let late = if late > LATE { late } else { 0 };
        // As if all of the turn's, and this one, were running: others get at least so much.
        let own = self.alive + 1;
        let others = runnable().saturating_sub(own);
        let spent = (after - since) * others / (others + own);
        self.progress.late += late.max(spent);
        self.excused += late.max(spent);
    }

    /// Looks at every process that lives; says who hangs.
    pub(crate) fn look(&mut self, board: &Board) -> Option<(u64, String)> {
        let mut hangs = None;
        self.seen.resize(board.count() as usize, Seen::default());
        let mut alive = 0;
        let logged = (0..board.count()).map(|number| board.slot(number).entries.load(Acquire)).sum();
        if logged != self.logged {
            self.logged = logged;
            self.served = Seen { beat: now(), excused: self.excused };
        }
        for (number, seen) in self.seen.iter_mut().enumerate() {
            let slot = board.slot(number as u64);
            let over = slot.identity.load(Acquire) == 0
                || slot.ended.load(Acquire) != 0
                || slot.killed.load(Acquire) != 0;
            if over {
                continue;
            }
            alive += 1;
            let beat = slot.beat.load(Acquire);
            if beat != seen.beat {
                *seen = Seen { beat, excused: self.excused };
            }
            let raw = now().saturating_sub(beat);
            let doing = slot.doing.load(Acquire);
            // Who waits for all tasks gets on as long as some are worked on.
            let served = doing == Doing::Joining as u64 && self.served.beat > beat;
            let last = if served { self.served } else { *seen };
            let net = now().saturating_sub(last.beat).saturating_sub(self.excused - last.excused);
            // Its beat may have come meanwhile.
            if slot.beat.load(Acquire) != beat || slot.ended.load(Acquire) != 0 {
                continue;
            }
            let role = NAMES.get(slot.role.load(Acquire) as usize).copied().unwrap_or("?");
            let stall = Stall { net, raw, doing };
            let longest = self.progress.stalls.entry(role).or_default();
            *longest = longest.longer(stall);
            if net > LIMIT || raw > LAST_LIMIT {
                let fault = format!(
                    "{role} {number} has been without progress for {} ms ({} ms less what is excused), {}",
                    raw / 1000,
                    net / 1000,
                    stall.doing()
                );
                hangs = Some((number as u64, fault));
            }
        }
        self.alive = alive;
        hangs
    }
}
