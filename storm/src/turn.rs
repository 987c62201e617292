//! One turn of one kind of traffic: its processes, the blows that hit them, and the end.

use std::ops::AddAssign;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::time::Duration;

use procession::process::JoinError;
use procession::{Process, StartMethod};
use procession_core::os::identity::Identity;
use rustix::fd::AsFd;
use rustix::process::{Pid, Signal, pidfd_send_signal};

use crate::account::{Tally, audit};
use crate::board::{Board, now};
use crate::kinds::{Game, Kind};
use crate::leaks;
use crate::pulse::Pulse;
use crate::roles::{Fault, Order, Outcome, Role};
use crate::watch::{Progress, Watch};

/// How long anything may take in the end (µs).
const PATIENCE: u64 = 10_000_000;
/// How long a killed process's daemons may live on (µs), less what is excused.
const DAEMONS_END_WITHIN: u64 = 1_000_000;
/// The longest stop (µs).
const LONGEST_STOP: u64 = 300_000;
/// Between two kills of the fork server (µs), at least.
const SERVER_LIVES: u64 = 700_000;

/// What was done to the processes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Blows {
    pub(crate) kills: u64,
    /// Of these, of processes that were stopped.
    pub(crate) kills_while_stopped: u64,
    /// Of these, of processes with children.
    pub(crate) trees: u64,
    pub(crate) servers: u64,
    pub(crate) stops: u64,
    /// By start method, in the order of [`StartMethod::ALL`]; those that were started by processes of the storm apart.
    pub(crate) starts: [u64; 3],
    pub(crate) nested_starts: u64,
}

impl AddAssign for Blows {
    fn add_assign(&mut self, other: Blows) {
        self.kills += other.kills;
        self.kills_while_stopped += other.kills_while_stopped;
        self.trees += other.trees;
        self.servers += other.servers;
        self.stops += other.stops;
        for (sum, starts) in self.starts.iter_mut().zip(other.starts) {
            *sum += starts;
        }
        self.nested_starts += other.nested_starts;
    }
}

/// How a turn went.
#[derive(Clone, Debug, Default)]
pub(crate) struct Record {
    pub(crate) turns: u64,
    pub(crate) blows: Blows,
    pub(crate) tally: Tally,
    pub(crate) progress: Progress,
}

impl Record {
    pub(crate) fn add(&mut self, other: &Record) {
        self.turns += other.turns;
        self.blows += other.blows;
        self.tally.add(&other.tally);
        self.progress.add(&other.progress);
    }
}

/// A started process of the supervisor's.
struct Child {
    process: Process<Outcome>,
    slot: u64,
    /// When it was killed, if it was.
    killed: Option<u64>,
}

/// A process that is stopped.
struct Stopped {
    slot: u64,
    identity: Identity,
    until: u64,
    /// Whether it is killed then, in place of going on.
    dies: bool,
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
        self.watch.tick(!self.stopped.is_empty());
        self.continue_stopped(false);
        for seat in 0..self.children.len() {
            let ended = self.children[seat].as_ref().is_some_and(|child| !child.process.is_alive());
            if ended && let Some(child) = self.children[seat].take() {
                self.see_off(&child);
            }
            if replace && self.children[seat].is_none() && self.wrong.is_none() {
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
        let Some(slot) = self.board.take_slot(role.number(), None, false) else {
            self.wrong("no slot is left on the board");
            return None;
        };
        let way = self.random.usize(0..3);
        let order =
            Order { folder: self.board.folder().to_owned(), slot, seed: self.random.u64(..), fault, role };
        match order.start(StartMethod::ALL[way], false) {
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

    /// Kills or stops somebody.
    fn strike(&mut self, stops: bool) {
        if stops && self.stopped.len() < 2 && self.random.u8(..) < 40 {
            return self.stop();
        }
        if now() > self.server_killed + SERVER_LIVES && self.random.u8(..) < 10 {
            return self.kill_server();
        }
        // The mortals that sit, and the children of whoever sits.
        let mut victims: Vec<(Option<usize>, u64)> = (0..self.children.len())
            .filter(|seat| self.game.seats[*seat].mortal)
            .filter_map(|seat| Some((Some(seat), self.children[seat].as_ref()?.slot)))
            .collect();
        victims.extend(self.grandchildren().map(|slot| (None, slot)));
        let Some((seat, slot)) = self.random.choice(victims) else { return };
        if self.stopped.iter().any(|stopped| stopped.slot == slot) {
            return;
        }
        self.kill(seat, slot);
    }

    /// Running processes that were started by processes of the storm.
    fn grandchildren(&self) -> impl Iterator<Item = u64> {
        (0..self.board.count()).filter(|slot| {
            let slot = self.board.slot(*slot);
            slot.parent.load(Acquire) != 0
                && slot.identity.load(Acquire) != 0
                && slot.ended.load(Acquire) == 0
                && slot.killed.load(Acquire) == 0
        })
    }

    fn kill(&mut self, seat: Option<usize>, slot: u64) {
        self.board.slot(slot).killed.store(1, Release);
        let killed = match seat.and_then(|seat| self.children[seat].take()) {
            Some(mut child) => {
                let killed = child.process.kill();
                let has_children =
                    self.grandchildren().any(|other| self.board.slot(other).parent.load(Acquire) == slot + 1);
                self.record.blows.trees += u64::from(has_children);
                child.killed = Some(now());
                self.leaving.push(child);
                killed.map_err(|error| error.to_string())
            }
            None => self.signal(slot, Signal::KILL),
        };
        self.record.blows.kills += 1;
        if let Err(error) = killed {
            self.wrong(format!("killing process {slot}: {error}"));
        }
    }

    /// Sends a signal to exactly this process, if it is there.
    fn signal(&self, slot: u64, signal: Signal) -> Result<(), String> {
        let Some(Ok(pidfd)) = self.identity(slot).map(Identity::open) else { return Ok(()) };
        match pidfd_send_signal(pidfd.as_fd(), signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    fn stop(&mut self) {
        let mut candidates: Vec<u64> = self.children.iter().flatten().map(|child| child.slot).collect();
        candidates.extend(self.grandchildren());
        let Some(slot) = self.random.choice(candidates) else { return };
        let Some(identity) = self.identity(slot) else { return };
        if self.stopped.iter().any(|stopped| stopped.slot == slot) {
            return;
        }
        if let Err(error) = self.signal(slot, Signal::STOP) {
            return self.wrong(format!("stopping process {slot}: {error}"));
        }
        self.record.blows.stops += 1;
        let mortal = self.seat_of(slot).is_none_or(|seat| self.game.seats[seat].mortal);
        let until = now() + self.random.u64(1_000..=LONGEST_STOP);
        self.stopped.push(Stopped { slot, identity, until, dies: mortal && self.random.u8(..) < 80 });
    }

    fn seat_of(&self, slot: u64) -> Option<usize> {
        self.children.iter().position(|child| child.as_ref().is_some_and(|child| child.slot == slot))
    }

    /// Lets those go on, or kills them, whose time is up; all of them if told.
    fn continue_stopped(&mut self, all: bool) {
        let due = |stopped: &Stopped| all || now() >= stopped.until;
        let (over, left) = std::mem::take(&mut self.stopped).into_iter().partition(due);
        self.stopped = left;
        let over: Vec<Stopped> = over;
        for stopped in over {
            if self.identity(stopped.slot) != Some(stopped.identity) {
                continue;
            }
            if stopped.dies && self.board.slot(stopped.slot).killed.load(Acquire) == 0 {
                self.record.blows.kills_while_stopped += 1;
                self.kill(self.seat_of(stopped.slot), stopped.slot);
            } else if let Err(error) = self.signal(stopped.slot, Signal::CONT) {
                self.wrong(format!("continuing process {}: {error}", stopped.slot));
            }
        }
    }

    /// Kills the fork server: the parent of a process that it has made.
    fn kill_server(&mut self) {
        for child in self.children.iter().flatten() {
            let Some(server) = parent_of(child.process.pid()) else { continue };
            if server == std::process::id() {
                continue;
            }
            let Some(server) = i32::try_from(server).ok().and_then(Pid::from_raw) else { continue };
            let Ok(identity) = Identity::of_pid(server) else { continue };
            let Ok(pidfd) = identity.open() else { continue };
            // Still the parent, and this program: not init, with whom orphans end up.
            let exe = |pid: Pid| std::fs::read_link(format!("/proc/{}/exe", pid.as_raw_nonzero())).ok();
            let is_server = parent_of(child.process.pid())
                == Some(server.as_raw_nonzero().get().unsigned_abs())
                && exe(server) == std::fs::read_link("/proc/self/exe").ok();
            if is_server && pidfd_send_signal(&pidfd, Signal::KILL).is_ok() {
                self.server_killed = now();
                self.record.blows.servers += 1;
                return;
            }
        }
    }

    /// The end: the mortals are killed, the survivors do what is left and end by themselves.
    fn finish(&mut self) {
        self.board.head().stop.store(1, Release);
        self.continue_stopped(true);
        for seat in 0..self.children.len() {
            if self.game.seats[seat].mortal
                && let Some(child) = &self.children[seat]
            {
                self.kill(Some(seat), child.slot);
            }
        }
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
    fn clear(&mut self) {
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
fn first_fault(folder: &std::path::Path) -> Option<String> {
    let files = std::fs::read_dir(folder).ok()?;
    files.flatten().find_map(|file| {
        let name = file.file_name().to_string_lossy().into_owned();
        let slot = name.strip_prefix("fault-")?.to_owned();
        Some(format!("process {slot}: {}", std::fs::read_to_string(file.path()).unwrap_or_default()))
    })
}

/// Field 4 of `/proc/PID/stat`.
fn parent_of(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()
}
