//! Connecting to a listener.

use std::io;
use std::time::{Duration, Instant};

use procession_core::os::clock::Deadline;
use procession_core::os::socket;
use rustix::fd::OwnedFd;

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
        let authentication = |source| ConnectError::Authentication { address: address.clone(), source };
        if authkey.is_some_and(AuthKey::is_empty) {
            return Err(authentication(AuthenticationError::EmptyKey));
        }
        let begun = Instant::now();
        let socket = open(address, timeout)?;
        if let Some(key) = authkey {
            let left = timeout.saturating_sub(begun.elapsed());
            Handshake::new(key, Role::Client, &socket)
                .and_then(|mut handshake| handshake.run(&socket, left))
                .map_err(|error| {
                    authentication(match error {
                        AuthenticationError::Timeout(_) => AuthenticationError::Timeout(timeout),
                        error => error,
                    })
                })?;
        }
        Connection::try_from(socket).map_err(|source| system(address, source))
    }
}

/// Tries each address of a host.
fn open(address: &Address, timeout: Duration) -> Result<OwnedFd, ConnectError> {
    let endpoints = address.resolve().map_err(|source| system(address, source))?;
    let deadline = Deadline::after(timeout);
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for endpoint in endpoints {
        match socket::connect(&endpoint, deadline) {
            Ok(socket) => return Ok(socket),
            Err(error) => failed = error,
        }
    }
    Err(match failed.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => {
            ConnectError::Refused { address: address.clone(), source: failed }
        }
        io::ErrorKind::TimedOut => ConnectError::Timeout { address: address.clone(), timeout },
        _ => system(address, failed),
    })
}

fn system(address: &Address, source: io::Error) -> ConnectError {
    ConnectError::System { address: address.clone(), source }
}
