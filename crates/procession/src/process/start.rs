//! A new process, from its start until it has its order.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use procession_sys::privilege;
use procession_sys::process;
use rustix::process::Signal;

use super::child_record::{ChildRecord, Origin, reap};
use super::control_channel::Channel;
use super::error::StartError;
use super::marker::{self, MARKER};
use super::order::Settings;
use super::reaper;
use super::spawn;
use super::wire::Report;

/// A process that exists but has no order yet.
pub(super) struct Fresh {
    pub(super) pid: u32,
    pub(super) pidfd: OwnedFd,
    pub(super) channel: Channel,
    pub(super) origin: Origin,
}

/// Executes the program once more.
pub(super) fn execute() -> Result<Fresh, StartError> {
    if marker::startup_was_skipped() {
        return Err(StartError::StartupSkipped);
    }
    if let Some(reason) = privilege::gained_by_executing() {
        return Err(StartError::GainsPrivileges { reason });
    }
    let (channel, theirs) = Channel::pair().map_err(StartError::system("making its connection"))?;
    let marker = theirs.ticket().map(marker::marker).map_err(StartError::system("making its connection"))?;
    let pid = spawn::same_program(MARKER, &marker, theirs.as_fd())
        .map_err(StartError::system("executing the program once more"))?;
    drop(theirs);
    match process::open(pid) {
        Ok(pidfd) => Ok(Fresh { pid, pidfd, channel, origin: Origin::Child }),
        Err(error) => {
            // It ends when it finds its connection closed.
            drop(channel);
            reap(pid);
            Err(StartError::System { action: "opening its pidfd", cause: error })
        }
    }
}

impl Fresh {
    /// Hands the order over and has the process attended to.
    pub(super) fn order(
        self,
        settings: &Settings,
        order: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Arc<ChildRecord>, StartError> {
        match self.channel.send(order, descriptors, Some(self.pidfd.as_fd())) {
            Ok(()) => {}
            // It was killed already: joining it tells how.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe && !settings.detached => {}
            Err(error) => {
                self.abandon();
                return Err(StartError::System { action: "handing its order over", cause: error });
            }
        }
        self.begun(settings)
    }

    /// Has the process, which has its order, attended to.
    pub(super) fn begun(self, settings: &Settings) -> Result<Arc<ChildRecord>, StartError> {
        let fresh = if settings.detached { self.detached()? } else { self };
        let running = Arc::new(ChildRecord::new(
            settings.name.clone(),
            fresh.pid,
            settings.daemon,
            fresh.origin,
            fresh.pidfd,
            fresh.channel,
        ));
        reaper::attend(Arc::clone(&running));
        Ok(running)
    }

    /// The process that this one leaves behind as it detaches itself.
    pub(super) fn detached(self) -> Result<Fresh, StartError> {
        let report = loop {
            let message =
                self.channel.receive(None).map_err(StartError::system("waiting for it to detach"))?;
            match message.and_then(Report::read) {
                // From the fork server, about the process that detached itself.
                Some(Report::Status(_)) => {}
                report => break report,
            }
        };
        if matches!(self.origin, Origin::Child) {
            reap(self.pid);
        }
        let problem = match report {
            Some(Report::Detached { pid, pidfd }) => {
                return Ok(Fresh { pid, pidfd, channel: self.channel, origin: Origin::Detached });
            }
            Some(Report::Begin(message)) => message,
            _ => "the process ended before it had detached itself".into(),
        };
        Err(StartError::System { action: "detaching it", cause: io::Error::other(problem) })
    }

    /// Ends a process that got no order.
    pub(super) fn abandon(self) {
        // Its own process by the pidfd: at worst gone already.
        let _ = process::send_signal(&self.pidfd, Signal::KILL);
        if matches!(self.origin, Origin::Child) {
            reap(self.pid);
        }
    }
}
