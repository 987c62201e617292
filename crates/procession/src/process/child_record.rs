//! A started process as its starter sees it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use procession_sys::clock::Deadline;
use procession_sys::process::{self, Children, ExitStatus};

use super::control_channel::{Channel, Received};

use super::wire::Report;

/// Whose child, for the kernel, a process is.
pub(super) enum Origin {
    /// Ours.
    Child,
    /// Nobody's who tells us: init's, say.
    Detached,
    /// The fork server's, which tells us how it ended.
    Worker {
        /// The server's pidfd.
        server: Arc<OwnedFd>,
    },
}

pub(super) struct ChildRecord {
    pub(super) name: String,
    pub(super) pid: u32,
    pub(super) daemon: bool,
    pub(super) origin: Origin,
    pub(super) pidfd: OwnedFd,
    /// The process that started it.
    owner: u32,
    /// Whether its starter has given up its care for it.
    released: AtomicBool,
    channel: Channel,
    /// Locked while the kernel is asked, so that who finds that there is nothing to collect finds it here.
    status: Mutex<Option<ExitStatus>>,
    inbox: Mutex<Inbox>,
}

#[derive(Default)]
struct Inbox {
    /// The fork server's word.
    told: Option<ExitStatus>,
    outcome: Outcome,
    /// Nothing more will come.
    closed: bool,
}

/// What came of the function.
#[derive(Default)]
pub(super) enum Outcome {
    /// Nothing.
    #[default]
    Missing,
    /// What the process reported.
    Reported(Report),
    /// The report cannot be read.
    Unreadable(String),
    /// Its result has been taken.
    Taken,
}

/// Waits for a child that is about to end. Somebody else may collect it first.
pub(super) fn reap(pid: u32) {
    let _ = process::wait_id(Children::Pid(pid), true, false);
}

impl ChildRecord {
    pub(super) fn new(
        name: String,
        pid: u32,
        daemon: bool,
        origin: Origin,
        pidfd: OwnedFd,
        channel: Channel,
    ) -> ChildRecord {
        ChildRecord {
            name,
            pid,
            daemon,
            released: AtomicBool::new(matches!(origin, Origin::Detached)),
            origin,
            pidfd,
            owner: process::getpid(),
            channel,
            status: Mutex::default(),
            inbox: Mutex::default(),
        }
    }

    /// From now on it is nobody's concern at this process's exit.
    pub(super) fn release(&self) {
        self.released.store(true, Ordering::Relaxed);
    }

    /// Whether it is nobody's concern at this process's exit.
    pub(super) fn is_released(&self) -> bool {
        self.released.load(Ordering::Relaxed)
    }

    /// Whether this process started it, and not the one that this process was forked from.
    pub(super) fn is_ours(&self) -> bool {
        self.owner == process::getpid()
    }

    /// Whether it has ended by the deadline.
    pub(super) fn wait(&self, deadline: Deadline) -> io::Result<bool> {
        process::wait_ended(&self.pidfd, deadline)
    }

    /// Waits until it has received its order. Until then it ends if its starter does: it takes
    /// orders from its parent alone.
    pub(super) fn wait_for_order(&self) {
        // An error means that memory is short: then nothing is waited for.
        while !self.channel.is_received().unwrap_or(true) && !self.wait(Deadline::Now).unwrap_or(true) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known_status(&self) -> MutexGuard<'_, Option<ExitStatus>> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the kernel forget the process if it has ended; whether it has. Never blocks.
    pub(super) fn collect(&self) -> bool {
        if !self.wait(Deadline::Now).unwrap_or(false) {
            return false;
        }
        let mut known = self.known_status();
        if known.is_some() {
            return true;
        }
        // Also for one that is not our child: a detached one is, where this process takes orphans in.
        match process::wait_id(Children::Pidfd(self.pidfd.as_fd()), false, false) {
            Ok(Some((_, status))) => {
                *known = Some(status);
                true
            }
            // A debugger has it.
            Ok(None) => false,
            Err(_) => true,
        }
    }

    /// How the process ended; `None` while it runs. Blocks briefly where another process has to collect it.
    pub(super) fn status(&self) -> Option<ExitStatus> {
        if !self.is_ours() {
            return process::collected_status(&self.pidfd).ok().flatten();
        }
        if !self.collect() {
            return None;
        }
        if let Some(status) = *self.known_status() {
            return Some(status);
        }
        let mut inbox = self.inbox();
        // Another thread may have found it out meanwhile.
        if let Some(status) = *self.known_status() {
            return Some(status);
        }
        let status = self.foreign_status(&mut inbox);
        *self.known_status() = Some(status);
        Some(status)
    }

    /// The status of an ended process that something else collected, or will.
    fn foreign_status(&self, inbox: &mut Inbox) -> ExitStatus {
        let since = Instant::now();
        loop {
            let kept = process::collected_status(&self.pidfd);
            if let Ok(Some(status)) = kept {
                return status;
            }
            self.read(inbox);
            if let Some(status) = inbox.told {
                return status;
            }
            let teller = match &self.origin {
                Origin::Worker { server } => !process::wait_ended(server, Deadline::Now).unwrap_or(false),
                Origin::Child | Origin::Detached => false,
            };
            if !teller && let Some(status) = process::zombie_status(self.pid, &self.pidfd) {
                return status;
            }
            let hopeless = if teller { inbox.closed } else { kept.is_err() };
            if hopeless || (!teller && since.elapsed() > super::COLLECTED_WITHIN) {
                break;
            }
            match &self.origin {
                // Its word wakes this; its death does too. An error is want of memory, and is looked at again.
                Origin::Worker { server } if teller => {
                    let fds = [self.channel.as_fd(), server.as_fd()];
                    let _ = process::wait_readable(&fds, Deadline::after(Duration::from_millis(20)));
                }
                _ => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        // A process that reported ends by itself with these.
        match &inbox.outcome {
            Outcome::Reported(Report::Returned { .. }) | Outcome::Taken => ExitStatus::Exited(0),
            Outcome::Reported(Report::Panicked { .. }) => ExitStatus::Exited(super::PANIC_CODE),
            Outcome::Reported(_) => ExitStatus::Exited(super::FAILURE_CODE),
            _ => ExitStatus::Unknown,
        }
    }

    /// Takes what has arrived from the process.
    fn read(&self, inbox: &mut Inbox) {
        while !inbox.closed {
            match self.channel.try_receive() {
                Ok(Received::Nothing) => break,
                Ok(Received::End) => inbox.closed = true,
                Ok(Received::Message(message)) => match Report::read(message) {
                    // A detached process is a child of the server's child, whose status this is.
                    Some(Report::Status(_)) if matches!(self.origin, Origin::Detached) => {}
                    Some(Report::Status(status)) => inbox.told = Some(status),
                    Some(report) => inbox.outcome = Outcome::Reported(report),
                    None => inbox.outcome = Outcome::Unreadable("it is damaged".into()),
                },
                Err(error) => {
                    inbox.outcome = Outcome::Unreadable(error.to_string());
                    inbox.closed = true;
                }
            }
        }
    }

    /// What came of the function of an ended process. A result can be taken once; an error each time.
    pub(super) fn outcome(&self) -> Outcome {
        let mut inbox = self.inbox();
        self.read(&mut inbox);
        match &inbox.outcome {
            Outcome::Missing => Outcome::Missing,
            Outcome::Reported(Report::Panicked { message, location }) => {
                Outcome::Reported(Report::Panicked { message: message.clone(), location: location.clone() })
            }
            Outcome::Reported(Report::Arguments(message)) => {
                Outcome::Reported(Report::Arguments(message.clone()))
            }
            Outcome::Reported(Report::Result(message)) => Outcome::Reported(Report::Result(message.clone())),
            Outcome::Reported(Report::Begin(message)) => Outcome::Reported(Report::Begin(message.clone())),
            Outcome::Unreadable(message) => Outcome::Unreadable(message.clone()),
            Outcome::Reported(_) | Outcome::Taken => std::mem::replace(&mut inbox.outcome, Outcome::Taken),
        }
    }
}
