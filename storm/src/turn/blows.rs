//! What hits the processes: kills, of single ones, of whole trees and of the fork server, and stops.

use std::ops::AddAssign;
use std::sync::atomic::Ordering::{Acquire, Release};

use procession_sys::identity::Identity;
use rustix::fd::AsFd;
use rustix::process::{Pid, Signal, pidfd_send_signal};

use super::Turn;
use crate::board::now;
use crate::roles::Doing;

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
    /// By start method, in the order of `StartMethod::ALL`; those that were started by processes of the storm apart.
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

/// A process that is stopped.
pub(super) struct Stopped {
    pub(super) slot: u64,
    identity: Identity,
    until: u64,
    /// Whether it is killed then, in place of going on.
    dies: bool,
}

impl Turn<'_> {
    /// Kills or stops somebody.
    pub(super) fn strike(&mut self, stops: bool) {
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
    pub(super) fn grandchildren(&self) -> impl Iterator<Item = u64> {
        (0..self.board.count()).filter(|slot| {
            let slot = self.board.slot(*slot);
            slot.parent.load(Acquire) != 0
                && slot.identity.load(Acquire) != 0
                && slot.ended.load(Acquire) == 0
                && slot.killed.load(Acquire) == 0
        })
    }

    pub(super) fn kill(&mut self, seat: Option<usize>, slot: u64) {
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
    pub(super) fn signal(&self, slot: u64, signal: Signal) -> Result<(), String> {
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

    /// Whether a process that is stopped has something that others wait for: then they may wait.
    pub(super) fn somebody_is_held_up(&self) -> bool {
        if self.stopped.is_empty() || self.game.all_needed {
            return !self.stopped.is_empty();
        }
        let state = (self.game.describe)();
        self.stopped.iter().any(|stopped| {
            let doing = self.board.slot(stopped.slot).doing.load(Acquire);
            // A start is a matter between two processes, whatever objects there are.
            doing == Doing::Beginning as u64
                || doing == Doing::Starting as u64
                || holds_something(&state, stopped.identity.pid())
        })
    }

    /// Lets those go on, or kills them, whose time is up; all of them if told.
    pub(super) fn continue_stopped(&mut self, all: bool) {
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
}

/// Whether the description of an object names the process otherwise than as one that waits. One that was cut may have named it.
fn holds_something(state: &str, pid: Pid) -> bool {
    let name = format!("pid {}, ", pid.as_raw_nonzero());
    state.lines().any(|line| line.trim() == "…" || line.contains(&name) && !line.ends_with("sleeps"))
}

/// Field 4 of `/proc/PID/stat`.
fn parent_of(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()
}
