//! Connecting to a manager.

use std::io;
use std::time::Duration;

use procession_core::os::clock::Deadline;

use super::error::CallError;
use super::wire::{Answer, Machine, Packed, Refusal, Reply, Request, VERSION, Welcome};
use crate::connection::{Address, AuthKey, AuthenticationError, Client, ConnectError, Connection, RecvError};

/// How long connecting may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A connection to a manager.
pub(super) type Stream = Connection<Request, Reply<Packed>>;

/// Connects. When more connect at once than a manager looks at, it turns some away: they try again.
pub(super) fn dial(address: &Address, key: &AuthKey, deadline: Deadline) -> Result<Stream, CallError> {
    let deadline = Deadline::after(deadline.slice(PATIENCE).unwrap_or_default());
    let mut pause = Duration::from_millis(1);
    loop {
        let left = deadline.slice(PATIENCE).unwrap_or_default();
        match Client::connect_timeout(address, Some(key), left) {
            Err(ConnectError::Authentication { source: AuthenticationError::Closed, .. })
                if !deadline.passed() => {}
            result => return Ok(result?),
        }
        std::thread::sleep(deadline.slice(pause).unwrap_or_default());
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

/// Begins a session.
pub(super) fn begin(
    address: &Address,
    key: &AuthKey,
    deadline: Deadline,
) -> Result<(Welcome, Stream), CallError> {
    let stream = dial(address, key, deadline)?;
    let machine = Machine::this().map_err(|source| system(address, "asking for the machine", source))?;
    if stream.send(&Request::Begin { version: VERSION, machine }).is_err() {
        return Err(CallError::Disconnected { address: address.clone() });
    }
    match stream.recv_timeout(deadline.slice(PATIENCE).unwrap_or_default()) {
        Ok(Ok(Answer::Welcome(welcome))) => Ok((welcome, stream)),
        Ok(Err(Refusal::Version(version))) => Err(CallError::NotAManager {
            address: address.clone(),
            problem: format!("it speaks version {version}, this program version {VERSION}"),
        }),
        Err(RecvError::Closed | RecvError::Truncated { .. }) => {
            Err(CallError::Disconnected { address: address.clone() })
        }
        Err(RecvError::Timeout) => Err(silent(address)),
        _ => Err(not_a_manager(address)),
    }
}

pub(super) fn silent(address: &Address) -> CallError {
    CallError::TimedOut { object: format!("the manager at {address}"), timeout: PATIENCE }
}

pub(super) fn not_a_manager(address: &Address) -> CallError {
    CallError::NotAManager { address: address.clone(), problem: "its answer is not a manager's".into() }
}

pub(super) fn system(address: &Address, action: &'static str, source: io::Error) -> CallError {
    CallError::System { address: address.clone(), action, source }
}
