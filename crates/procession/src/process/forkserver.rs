//! A program's connection to its fork server.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use procession_sys::clock::Deadline;
use procession_sys::identity::Identity;
use procession_sys::process;

use super::child_record::Origin;
use super::control_channel::Channel;
use super::error::StartError;
use super::forkserver_process::Answer;
use super::order::Order;
use super::start::{self, Fresh};
use super::wire::{decode, encode};

/// A program's connection to its server.
pub(super) struct Server {
    channel: Channel,
    pidfd: Arc<OwnedFd>,
    /// A forked child must not talk to its parent's server.
    owner: u32,
    /// Whose processes the server forks. A program that has become another user needs another
    /// server.
    user: User,
}

/// The effective user and group, and the real ones.
type User = [u32; 4];

fn user() -> User {
    use rustix::process::{getegid, geteuid, getgid, getuid};
    [geteuid().as_raw(), getegid().as_raw(), getuid().as_raw(), getgid().as_raw()]
}

static SERVER: Mutex<Option<Server>> = Mutex::new(None);

/// This process's server, if it has one.
pub(super) fn lock() -> MutexGuard<'static, Option<Server>> {
    let mut server = SERVER.lock().unwrap_or_else(PoisonError::into_inner);
    if server.as_ref().is_some_and(|server| server.owner != process::getpid()) {
        *server = None;
    }
    server
}

/// Has the server fork a worker. Starts the server first unless there is one that lives.
pub(super) fn fork_worker() -> Result<Fresh, StartError> {
    let mut current = lock();
    // A server that is killed between two looks costs one more attempt; a program that kills its servers as
    // fast as they start gets an error.
    for _ in 0..3 {
        let server = match current.take() {
            Some(server)
                if server.user == user()
                    && !process::wait_ended(&server.pidfd, Deadline::Now).unwrap_or(false) =>
            {
                server
            }
            _ => Server::start()?,
        };
        let (channel, theirs) = Channel::pair().map_err(StartError::system("making its connection"))?;
        match server.request(&theirs) {
            Ok(Some((pid, pidfd))) => {
                let origin = Origin::Worker { server: Arc::clone(&server.pidfd) };
                *current = Some(server);
                return Ok(Fresh { pid, pidfd, channel, origin });
            }
            Ok(None) => {}
            Err(error) => {
                *current = Some(server);
                return Err(StartError::System { action: "forking in the fork server", cause: error });
            }
        }
    }
    Err(StartError::System {
        action: "asking the fork server",
        cause: io::Error::new(io::ErrorKind::BrokenPipe, "it was killed again and again"),
    })
}

impl Server {
    fn start() -> Result<Server, StartError> {
        let fresh = start::execute()?;
        let failed = StartError::system("starting the fork server");
        let order = Order::Serve { program: Identity::current().to_bits() };
        match encode(&order).and_then(|order| fresh.channel.send(&order, &[], Some(fresh.pidfd.as_fd()))) {
            Ok(()) => {}
            // It was killed; waiting for it to detach says so.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            Err(error) => {
                fresh.abandon();
                return Err(failed(error));
            }
        }
        let fresh = fresh.detached()?;
        Ok(Server {
            channel: fresh.channel,
            pidfd: Arc::new(fresh.pidfd),
            owner: process::getpid(),
            user: user(),
        })
    }

    /// A new worker's pid and pidfd; `None` when the server is gone.
    fn request(&self, theirs: &Channel) -> io::Result<Option<(u32, OwnedFd)>> {
        match self.channel.send(b"fork", &[theirs.as_fd()], Some(self.pidfd.as_fd())) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(None),
            Err(error) => return Err(error),
        }
        let Some(mut message) = self.channel.receive(Some(self.pidfd.as_fd()))? else { return Ok(None) };
        let (answer, _) = decode::<Answer>(&message.body)?;
        let pid = answer.map_err(io::Error::from_raw_os_error)?;
        match message.descriptors.pop() {
            Some(pidfd) => Ok(Some((pid, pidfd))),
            None => Err(io::Error::new(io::ErrorKind::InvalidData, "no pidfd in the answer")),
        }
    }
}
