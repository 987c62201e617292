//! Connecting to a manager.

use std::io;
use std::time::Duration;

use procession_sys::clock::Deadline;
use procession_sys::identity::Identity;

use super::error::CallError;
use super::wire::{Answer, Encoded, Machine, Refusal, Reply, Request, VERSION, Welcome};
use crate::connection::{Address, AuthKey, AuthenticationError, Client, ConnectError, Connection, RecvError};

/// How long connecting may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often who waits for an answer looks whether the manager lives.
const SLICE: Duration = Duration::from_millis(250);

/// A connection to a manager.
pub(super) type Stream = Connection<Request, Reply<Encoded>>;

/// Connects to a manager, whose process this may be. When more connect at once than a manager looks at, it turns some away: they
/// try again.
pub(super) fn connect(
    address: &Address,
    key: &AuthKey,
    deadline: Deadline,
    process: Option<Identity>,
) -> Result<Stream, CallError> {
    let deadline = Deadline::after(deadline.slice(PATIENCE).unwrap_or_default());
    let mut pause = Duration::from_millis(1);
    loop {
        let left = deadline.slice(PATIENCE).unwrap_or_default();
        match Client::connect_to_process(address, key, left, process) {
            Err(ConnectError::Authentication { cause: AuthenticationError::Closed, .. })
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
    process: Option<Identity>,
) -> Result<(Welcome, Stream), CallError> {
    let stream = connect(address, key, deadline, process)?;
    let machine = Machine::this().map_err(|cause| system(address, "asking for the machine", cause))?;
    if stream.send(&Request::Begin { version: VERSION, machine }).is_err() {
        return Err(CallError::Disconnected { address: address.clone() });
    }
    let deadline = Deadline::after(deadline.slice(PATIENCE).unwrap_or_default());
    match receive(&stream, process, deadline) {
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

/// Waits for an answer. [`RecvError::Closed`] also when the manager's process has ended: one that it has forked may have copies
/// of its sockets.
pub(super) fn receive(
    stream: &Stream,
    process: Option<Identity>,
    deadline: Deadline,
) -> Result<Reply<Encoded>, RecvError> {
    loop {
        match stream.recv_timeout(deadline.slice(SLICE).unwrap_or_default()) {
            Err(RecvError::Timeout) => {}
            result => return result,
        }
        if process.is_some_and(|process| !process.is_alive()) {
            return match stream.recv_timeout(Duration::ZERO) {
                Err(RecvError::Timeout) => Err(RecvError::Closed),
                result => result,
            };
        }
        if deadline.passed() {
            return Err(RecvError::Timeout);
        }
    }
}

pub(super) fn silent(address: &Address) -> CallError {
    CallError::TimedOut { object: format!("the manager at {address}"), timeout: PATIENCE }
}

pub(super) fn not_a_manager(address: &Address) -> CallError {
    CallError::NotAManager { address: address.clone(), problem: "its answer is not a manager's".into() }
}

pub(super) fn system(address: &Address, action: &'static str, cause: io::Error) -> CallError {
    CallError::System { address: address.clone(), action, cause }
}
