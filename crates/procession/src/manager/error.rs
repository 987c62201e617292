//! Why a manager could not be had, or did not do what it was asked.

use std::io;
use std::time::Duration;

use procession_core::shm::{CreateError, OpenError};

use crate::connection::{Address, ConnectError, SendError};
use crate::process::{JoinError, StartError};

/// A manager could not be started, found or ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManagerError {
    /// Its process could not be started.
    #[error("cannot start a manager: {0}")]
    Start(StartError),
    /// Its process ended before it listened.
    #[error("cannot start a manager: its process ended: {0}")]
    Ended(JoinError),
    /// Its process could not listen at the address.
    #[error("cannot start a manager: {0}")]
    Listen(String),
    /// A name is registered twice, or is empty.
    #[error("cannot register a type under the name {name:?}: {problem}")]
    Register {
        /// The name.
        name: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// It could not be reached.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The system refused.
    #[error("cannot start a manager: {action}: {cause}")]
    System {
        /// The step that failed.
        action: &'static str,
        /// What the system said.
        cause: io::Error,
    },
}

/// A manager, or an object that it keeps, did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The manager's process has ended, and all its objects with it. Whether the call was carried out before that is not known.
    #[error(
        "the manager at {address}{} has ended, and its objects with it; start another one",
        .pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
    )]
    ManagerDied {
        /// Where it was.
        address: Address,
        /// Its process, if it was one of this machine.
        pid: Option<u32>,
    },
    /// The connection ended, though the manager's process has not, as far as can be known from here. Whether the call was
    /// carried out is not known.
    #[error("the manager at {address} closed the connection in the middle of a call; its log may say why")]
    Disconnected {
        /// Where it is.
        address: Address,
    },
    /// The manager could not be reached.
    #[error("cannot reach the manager: {0}")]
    Connect(ConnectError),
    /// What listens at the address is no manager, or is one of another version of this library.
    #[error("what listens at {address} is not a manager that this program can use: {problem}")]
    NotAManager {
        /// The address.
        address: Address,
        /// What is wrong with it.
        problem: String,
    },
    /// This process does not know the key of a manager from which it received a proxy.
    #[error(
        "this process does not know the key of the manager at {address}: keys do not travel over TCP or through \
         queues of a manager with a TCP address; call Manager::connect with that address and its key first"
    )]
    NoKey {
        /// The manager's address.
        address: Address,
    },
    /// The object is gone: its last proxy was dropped, or was held only by processes that have ended.
    #[error(
        "{object} is gone: all who had a proxy of it have dropped it or ended; keep one, give it a name, or send \
         it while its sender lives"
    )]
    Gone {
        /// Which object.
        object: String,
    },
    /// There is an object of another kind under the name, or the proxy was received as another kind's.
    #[error("{object} is a {found}, not a {expected}")]
    Kind {
        /// Which object.
        object: String,
        /// What it is.
        found: String,
        /// What it was taken for.
        expected: String,
    },
    /// No type with that name is registered with the manager.
    #[error(
        "no type is registered with the manager as {name:?}{}; register it with Manager::builder().register",
        if .registered.is_empty() { String::new() } else { format!(" (but {})", .registered.join(", ")) }
    )]
    NotRegistered {
        /// The name.
        name: String,
        /// The names that are.
        registered: Vec<String>,
    },
    /// The list has no such element.
    #[error("{object} has {len} elements, and none at {index}")]
    Index {
        /// Which list.
        object: String,
        /// The index asked for.
        index: u64,
        /// How many elements there are.
        len: u64,
    },
    /// The handler of a registered type panicked. The object is as the panic left it, and the manager goes on.
    #[error("{object} panicked{}: {message}", .location.as_ref().map(|at| format!(" at {at}")).unwrap_or_default())]
    Panicked {
        /// Which object.
        object: String,
        /// The panic's message.
        message: String,
        /// File, line and column of the panic, unless the handler replaced the panic hook.
        location: Option<String>,
    },
    /// A value could not be serialised. Nothing was sent.
    #[error("cannot hand a {type_name} to a manager: it cannot be serialised: {cause}")]
    Serialize {
        /// The value's type.
        type_name: &'static str,
        /// What the serialiser said.
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A handle in a value could not be made ready to travel, or a key has one. Nothing was sent.
    #[error("cannot hand a {type_name} to a manager: a handle in it cannot travel: {cause}")]
    Send {
        /// The value's type.
        type_name: &'static str,
        /// Why.
        cause: OpenError,
    },
    /// A value from the manager has a handle that cannot be opened here.
    #[error("a {type_name} of a manager has a handle that cannot be opened: {cause}")]
    Open {
        /// The type expected.
        type_name: &'static str,
        /// Why.
        cause: OpenError,
    },
    /// A value from the manager is not of the type expected: who put it there had another type.
    #[error("a value of {len} bytes of a manager is no {type_name}: {cause}")]
    Deserialize {
        /// The type expected.
        type_name: &'static str,
        /// The value's size in bytes.
        len: usize,
        /// What the deserialiser said.
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The manager could not read the request, or could not hand its answer over.
    #[error("{object}: {problem}")]
    Refused {
        /// Which object.
        object: String,
        /// What the manager said.
        problem: String,
    },
    /// The manager runs on another machine, with which no memory can be shared.
    #[error(
        "the manager at {address} runs on another machine (or in another container), with which no memory can be \
         shared: {what} cannot be had from it or kept by it; use its dict, list, namespace or a registered type"
    )]
    NotOnThisMachine {
        /// The manager's address.
        address: Address,
        /// What was asked for.
        what: &'static str,
    },
    /// The manager did not answer in time. It may carry the call out yet.
    #[error("{object} did not answer within {timeout:?}; it may do what it was asked all the same")]
    TimedOut {
        /// Which object.
        object: String,
        /// The time given.
        timeout: Duration,
    },
    /// A shared-memory object could not be made.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// The request could not be sent.
    #[error("cannot send a request to the manager at {address}: {cause}")]
    Request {
        /// The manager's address.
        address: Address,
        /// Why.
        cause: SendError,
    },
    /// The system refused.
    #[error("cannot use the manager at {address}: {action}: {cause}")]
    System {
        /// The manager's address.
        address: Address,
        /// The step that failed.
        action: &'static str,
        /// What the system said.
        cause: io::Error,
    },
}

impl From<StartError> for ManagerError {
    fn from(error: StartError) -> Self {
        ManagerError::Start(error)
    }
}

impl From<JoinError> for ManagerError {
    fn from(error: JoinError) -> Self {
        ManagerError::Ended(error)
    }
}

impl From<ConnectError> for CallError {
    fn from(error: ConnectError) -> Self {
        CallError::Connect(error)
    }
}
