//! One turn of one kind of traffic: its processes, the blows that hit them, and the end.

mod blows;
mod ending;

use std::sync::atomic::Ordering::{Acquire, Release};
use std::time::Duration;

use procession::process::JoinError;
use procession::{Process, StartMethod};
use procession_sys::identity::Identity;

use self::blows::{Blows, Stopped};
use crate::account::{Tally, audit};
use crate::board::{Board, Log, now};
use crate::kinds::{Game, Kind};
use crate::pulse::Pulse;
use crate::roles::{DOINGS, Fault, Order, Outcome, Role};
use crate::watch::{Progress, Watch};

/// How long anything may take in the end (µs).
const PATIENCE: u64 = 10_000_000;
/// How long a killed process's daemons may live on (µs), less what is excused.
const DAEMONS_END_WITHIN: u64 = 1_000_000;

/// How a turn went.
#[derive(Clone, Debug, Default)]
pub(crate) struct Record {
    pub(crate) turns: u64,
    pub(crate) blows: Blows,
    pub(crate) tally: Tally,
    pub(crate) progress: Progress,
    /// Of the kills, how many hit a process in the middle of what: by [`crate::roles::Doing`].
    pub(crate) amid: [u64; DOINGS.len()],
}

impl Record {
    pub(crate) fn add(&mut self, other: &Record) {
        self.turns += other.turns;
        self.blows += other.blows;
        self.tally.add(&other.tally);
        self.progress.add(&other.progress);
        for (sum, kills) in self.amid.iter_mut().zip(other.amid) {
            *sum += kills;
        }
    }
}

/// A started process of the supervisor's.
struct Child {
    process: Process<Outcome>,
    slot: u64,
    /// When it was killed, if it was.
    killed: Option<u64>,
}

/// A daemon whose parent was killed.
struct Orphan {
    slot: u64,
    /// When, and what had been excused by then.
    since: u64,
}

pub(crate) struct Turn<'a> {
    board: &'a Board,
    game: &'a Game,
    kind: &'a Kind,
    random: fastrand::Rng,
    fault: Option<Fault>,
    pulse: &'a Pulse,
    /// By seat.
    children: Vec<Option<Child>>,
    /// Killed, or with no seat any more.
    leaving: Vec<Child>,
    stopped: Vec<Stopped>,
    orphans: Vec<Orphan>,
    server_killed: u64,
    watch: Watch,
    record: Record,
    /// What is wrong, first of all.
    wrong: Option<String>,
}

impl<'a> Turn<'a> {
    pub(crate) fn new(
        board: &'a Board,
        game: &'a Game,
        kind: &'a Kind,
        seed: u64,
        fault: Option<Fault>,
        pulse: &'a Pulse,
    ) -> Self {
        Turn {
            board,
            game,
            kind,
            random: fastrand::Rng::with_seed(seed),
            fault,
            pulse,
            children: game.seats.iter().map(|_| None).collect(),
            leaving: Vec::new(),
            stopped: Vec::new(),
            orphans: Vec::new(),
            server_killed: now(),
            watch: Watch::default(),
            record: Record { turns: 1, ..Record::default() },
            wrong: None,
        }
    }

    /// Runs for so long and to the end; what was counted. When something is wrong, `on_failure` is called while everything
    /// is as it was then.
    pub(crate) fn run(mut self, time: Duration, on_failure: impl FnOnce(&str)) -> Record {
        let end = now() + time.as_micros() as u64;
        // Every second turn without stops, which excuse much.
        let stops = self.random.bool();
        let mut next_blow = now() + 50_000;
        while now() < end && self.wrong.is_none() {
            self.look_after(true);
            if now() >= next_blow {
                self.strike(stops);
                next_blow = now() + self.random.u64(500..=self.kind.gap.as_micros() as u64);
            }
        }
        if self.wrong.is_none() {
            self.finish();
        }
        if let Some(wrong) = &self.wrong {
            on_failure(wrong);
        }
        self.clear();
        self.record.blows.nested_starts = (0..self.board.count())
            .filter(|slot| self.board.slot(*slot).parent.load(Acquire) != 0)
            .count() as u64;
        // The dead say no more: what they did last is what they were killed in.
        for slot in (0..self.board.count()).map(|slot| self.board.slot(slot)) {
            if slot.killed.load(Acquire) != 0
                && slot.ended.load(Acquire) == 0
                && slot.identity.load(Acquire) != 0
                && let Some(kills) = self.record.amid.get_mut(slot.doing.load(Acquire) as usize)
            {
                *kills += 1;
            }
        }
        match self.wrong.take() {
            Some(wrong) => self.record.tally.faults.push(wrong),
            None => match audit(self.board, self.kind.book) {
                Ok(tally) => self.record.tally = tally,
                Err(error) => self.record.tally.faults.push(format!("reading the logs: {error}")),
            },
        }
        self.record.progress = self.watch.progress;
        self.record
    }

    fn wrong(&mut self, what: impl Into<String>) {
        self.wrong.get_or_insert(what.into());
    }

    /// Lets a millisecond pass, and does what is due: replaces who is gone, lets the stopped go on, looks who hangs.
    fn look_after(&mut self, replace: bool) {
        self.pulse.beat();
        let excused = self.somebody_is_held_up();
        self.watch.tick(excused);
        self.continue_stopped(false);
        for seat in 0..self.children.len() {
            let ended = self.children[seat].as_ref().is_some_and(|child| !child.process.is_alive());
            let mut is_full = false;
            if ended && let Some(child) = self.children[seat].take() {
                is_full = Log::is_nearly_full(self.board.slot(child.slot));
                self.see_off(&child);
            }
            // One that had no room to log more has left what it was to take.
            if (replace || is_full) && self.children[seat].is_none() && self.wrong.is_none() {
                self.fill(seat);
            }
        }
        let mut leaving = std::mem::take(&mut self.leaving);
        leaving.retain(|child| {
            let ended = !child.process.is_alive();
            if ended {
                self.see_off(child);
            } else if child.killed.is_some_and(|killed| now() > killed + PATIENCE) {
                self.wrong(format!("process {} lives 10 s after SIGKILL", child.slot));
            }
            !ended
        });
        self.leaving.append(&mut leaving);
        self.look_at_orphans();
        if let Some((slot, fault)) = self.watch.look(self.board) {
            match self.identity(slot) {
                Some(identity) if !identity.is_alive() => {
                    // Its parent will say how it ended, or was killed before it could.
                    self.board.slot(slot).killed.store(1, Release);
                }
                _ => self.wrong(fault),
            }
        }
    }

    fn identity(&self, slot: u64) -> Option<Identity> {
        Identity::from_bits(self.board.slot(slot).identity.load(Acquire))
    }

    fn fill(&mut self, seat: usize) {
        let role = (self.game.seats[seat].role)();
        // One fault is enough.
        let fault = self.fault.filter(|_| !self.game.seats[seat].mortal);
        self.children[seat] = self.start(role, fault);
    }

    fn start(&mut self, role: Role, fault: Option<Fault>) -> Option<Child> {
        let Some(slot) = self.board.take_slot(role.number(), None, true) else {
            self.wrong("no slot is left on the board");
            return None;
        };
        let way = self.random.usize(0..3);
        let order =
            Order { folder: self.board.folder().to_owned(), slot, seed: self.random.u64(..), fault, role };
        // A daemon: whoever kills the storm has killed all of it.
        match order.start(StartMethod::ALL[way], true) {
            Ok(process) => {
                self.record.blows.starts[way] += 1;
                Some(Child { process, slot, killed: None })
            }
            Err(error) => {
                self.wrong(format!("starting by {:?}: {error}", StartMethod::ALL[way]));
                None
            }
        }
    }

    /// Takes a process's last word.
    fn see_off(&mut self, child: &Child) {
        self.stopped.retain(|stopped| stopped.slot != child.slot);
        match (child.process.join(), child.killed) {
            (Ok(Ok(())), _) => {}
            (Ok(Err(fault)), _) => self.wrong(format!("process {}: {fault}", child.slot)),
            (Err(JoinError::Killed { signal: 9, .. } | JoinError::Unknown { .. }), Some(_)) => {
                self.orphan_children_of(child.slot);
            }
            (Err(error), _) => self.wrong(format!("process {} ended by itself: {error}", child.slot)),
        }
    }

    /// Marks the daemons of a killed process: they are to end with it.
    fn orphan_children_of(&mut self, parent: u64) {
        for slot in 0..self.board.count() {
            let child = self.board.slot(slot);
            let is_daemon = child.parent.load(Acquire) == parent + 1 && child.daemon.load(Acquire) == 1;
            if is_daemon
                && child.ended.load(Acquire) == 0
                && self.orphans.iter().all(|orphan| orphan.slot != slot)
            {
                child.killed.store(1, Release);
                self.orphans.push(Orphan { slot, since: now() });
            }
        }
    }

    fn look_at_orphans(&mut self) {
        let mut orphans = std::mem::take(&mut self.orphans);
        orphans.retain(|orphan| {
            let Some(identity) = self.identity(orphan.slot) else {
                // It has not begun, and perhaps never will.
                return true;
            };
            if !identity.is_alive() {
                return false;
            }
            let excuse = self.stopped.iter().any(|stopped| stopped.slot == orphan.slot);
            if !excuse && now() > orphan.since + DAEMONS_END_WITHIN + self.watch.progress.late {
                self.wrong(format!("the daemon {} has outlived its killed parent by a second", orphan.slot));
            }
            true
        });
        self.orphans.append(&mut orphans);
    }
}
