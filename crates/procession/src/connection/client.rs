//! Connecting to a listener.

use std::io;
use std::time::Duration;

use procession_sys::clock::Deadline;
use procession_sys::identity::Identity;
use procession_sys::socket;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};

use super::HANDSHAKE_TIMEOUT;
use super::address::Address;
use super::auth::{AuthKey, Handshake, Role};
use super::error::{AuthenticationError, ConnectError};
use super::pipe::Connection;

/// Connects to a [`Listener`](super::Listener), or to CPython's `multiprocessing.connection.Listener`.
#[derive(Debug)]
pub enum Client {}

impl Client {
    /// Connects, and with a key authenticates both sides, within 20 s. The listener must have the same key, or
    /// neither side one.
    ///
    /// # Errors
    /// [`ConnectError::Refused`] when nobody listens there, [`ConnectError::Authentication`] when the keys
    /// differ or only one side has one.
    pub fn connect<S, R>(
        address: &Address,
        authkey: Option<&AuthKey>,
    ) -> Result<Connection<S, R>, ConnectError> {
        Self::connect_timeout(address, authkey, HANDSHAKE_TIMEOUT)
    }

    /// As [`Client::connect`], within `timeout`. Resolving a host's name may take longer.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub fn connect_timeout<S, R>(
        address: &Address,
        authkey: Option<&AuthKey>,
        timeout: Duration,
    ) -> Result<Connection<S, R>, ConnectError> {
        let attempt = Attempt::new(address, authkey, timeout, Owner::Anybody)?;
        let socket = attempt.open()?;
        attempt.finish(socket)
    }

    /// As [`Client::connect_timeout`], to a listener whose process accepts the connections itself: its end is
    /// [`ConnectError::Refused`] half a second later, though a process that it forked may have a copy of its socket. `process`
    /// is that process, if it is known; that of a local listener the kernel knows.
    pub(crate) fn connect_to_process<S, R>(
        address: &Address,
        authkey: &AuthKey,
        timeout: Duration,
        process: Option<Identity>,
    ) -> Result<Connection<S, R>, ConnectError> {
        let owner = process.map_or(Owner::Anybody, Owner::Process);
        let mut attempt = Attempt::new(address, Some(authkey), timeout, owner)?;
        let socket = attempt.open()?;
        attempt.find_owner(&socket)?;
        attempt.finish(socket)
    }
}

/// How often who connects looks whether the listener's process lives. One that began to listen for another machine's, as the end of
/// a tunnel, may have left that to a child and have ended: the handshake has this long then.
const LOOK: Duration = Duration::from_millis(500);

/// Who accepts.
#[derive(Clone, Copy)]
enum Owner {
    /// Whoever has the socket, as far as is known.
    Anybody,
    /// The process that had this pid when it began to listen.
    Pid(Pid),
    Process(Identity),
}

impl Owner {
    fn has_ended(self) -> bool {
        match self {
            Owner::Anybody => false,
            Owner::Process(process) => !process.is_alive(),
            Owner::Pid(pid) => match Identity::of_pid(pid) {
                Ok(process) => !process.is_alive(),
                // `/proc` may hide the processes of other users. Without a descriptor, another look later decides.
                Err(error) => {
                    error.kind() == io::ErrorKind::NotFound && test_kill_process(pid) == Err(Errno::SRCH)
                }
            },
        }
    }
}

struct Attempt<'a> {
    address: &'a Address,
    authkey: Option<&'a AuthKey>,
    timeout: Duration,
    deadline: Deadline,
    owner: Owner,
}

impl<'a> Attempt<'a> {
    fn new(
        address: &'a Address,
        authkey: Option<&'a AuthKey>,
        timeout: Duration,
        owner: Owner,
    ) -> Result<Self, ConnectError> {
        if authkey.is_some_and(AuthKey::is_empty) {
            let cause = AuthenticationError::EmptyKey;
            return Err(ConnectError::Authentication { address: address.clone(), cause });
        }
        Ok(Attempt { address, authkey, timeout, deadline: Deadline::after(timeout), owner })
    }

    /// How long to wait before the next look at the process.
    fn slice(&self) -> Duration {
        let longest = if matches!(self.owner, Owner::Anybody) { Duration::MAX } else { LOOK };
        self.deadline.slice(longest).unwrap_or_default()
    }

    fn look(&self) -> Result<(), ConnectError> {
        if self.owner.has_ended() {
            let cause =
                io::Error::new(io::ErrorKind::ConnectionRefused, "the process that listened there has ended");
            return Err(ConnectError::Refused { address: self.address.clone(), cause });
        }
        Ok(())
    }

    /// Connects to the first of the host's addresses that can be had.
    fn open(&self) -> Result<OwnedFd, ConnectError> {
        let endpoints = self.address.resolve().map_err(|cause| self.failed(cause))?;
        loop {
            let deadline = Deadline::after(self.slice());
            let mut failed = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
            for endpoint in &endpoints {
                match socket::connect(endpoint, deadline) {
                    Ok(socket) => return Ok(socket),
                    Err(error) => failed = error,
                }
            }
            let gave_up = matches!(self.owner, Owner::Anybody) || self.deadline.passed();
            if failed.kind() != io::ErrorKind::TimedOut || gave_up {
                return Err(self.failed(failed));
            }
            self.look()?;
        }
    }

    /// Asks the kernel who began to listen, unless it is known who accepts.
    fn find_owner(&mut self, socket: &OwnedFd) -> Result<(), ConnectError> {
        if matches!((self.owner, self.address), (Owner::Anybody, Address::Unix(_) | Address::Abstract(_))) {
            let found = socket::peer_credentials(socket).map_err(|cause| self.failed(cause))?;
            // None in another pid namespace.
            self.owner = Pid::from_raw(found.pid).map_or(Owner::Anybody, Owner::Pid);
        }
        Ok(())
    }

    /// Authenticates both sides, if there is a key.
    fn finish<S, R>(&self, socket: OwnedFd) -> Result<Connection<S, R>, ConnectError> {
        let authentication = |cause| ConnectError::Authentication { address: self.address.clone(), cause };
        if let Some(key) = self.authkey {
            let mut handshake = Handshake::new(key, Role::Client, &socket).map_err(authentication)?;
            loop {
                match handshake.run(&socket, self.slice()) {
                    Ok(()) => break,
                    Err(AuthenticationError::Timeout(_)) if !self.deadline.passed() => self.look()?,
                    Err(AuthenticationError::Timeout(_)) => {
                        return Err(authentication(AuthenticationError::Timeout(self.timeout)));
                    }
                    Err(error) => return Err(authentication(error)),
                }
            }
        }
        Connection::try_from(socket).map_err(|cause| self.failed(cause))
    }

    fn failed(&self, cause: io::Error) -> ConnectError {
        let address = self.address.clone();
        match cause.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => {
                ConnectError::Refused { address, cause }
            }
            io::ErrorKind::TimedOut => ConnectError::Timeout { address, timeout: self.timeout },
            _ => ConnectError::System { address, cause },
        }
    }
}
