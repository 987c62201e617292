//! Why sending, receiving, waiting, listening and connecting failed.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use procession_core::shm::OpenError;

use super::address::Address;
use crate::codec::SerializeError;

/// A message was not sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// Nobody can receive it: every copy of the other end is closed.
    #[error("cannot send: the other end of the connection is closed, in every process that had it")]
    Closed,
    /// The value could not be serialised. Nothing was sent.
    #[error("cannot send a {type_name}: it cannot be serialised: {cause}")]
    Serialize {
        /// The type of the value.
        type_name: &'static str,
        /// What the serialiser said.
        cause: SerializeError,
    },
    /// A handle in the value could not be made ready to travel. Nothing was sent.
    #[error("cannot send a {type_name}: a handle in it cannot travel: {cause}")]
    Handle {
        /// The type of the value.
        type_name: &'static str,
        /// Why.
        cause: OpenError,
    },
    /// An earlier message was sent in part before the system refused the rest; the other end has been told
    /// that nothing more comes.
    #[error("cannot send: an earlier message was cut short by an error; make a new connection")]
    CutShort,
    /// The system refused.
    #[error("cannot send {length} bytes: {cause}")]
    System {
        /// The message's size.
        length: usize,
        /// What the system said.
        cause: io::Error,
    },
}

/// No message was received.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecvError {
    /// End of file: all messages have been received and every copy of the other end is closed.
    #[error("the other end of the connection is closed, and every message has been received")]
    Closed,
    /// The time is up. What of a message has come so far is kept for the next call.
    #[error("no whole message came within the time given")]
    Timeout,
    /// The sender ended, or was killed, in the middle of a message; nothing comes after it.
    #[error(
        "the message was cut short: its sender is gone after {received} bytes{}",
        .expected.map(|expected| format!(" of {expected}")).unwrap_or_default()
    )]
    Truncated {
        /// How many of its bytes came.
        received: u64,
        /// How many it should have; `None` when not even that came.
        expected: Option<u64>,
    },
    /// The message is larger than the caller allows. It is skipped; the next call receives the next one.
    #[error("the message has {length} bytes, over the {max} allowed; it is skipped")]
    TooLong {
        /// Its size in bytes.
        length: u64,
        /// The limit given.
        max: usize,
    },
    /// The message does not fit into the buffer. Here it is.
    #[error("the buffer of {room} bytes is too short for a message of {}; the error holds it", .message.len())]
    BufferTooShort {
        /// The whole message.
        message: Vec<u8>,
        /// The size of the buffer.
        room: usize,
    },
    /// There is no memory for the message. It is skipped; the next call receives the next one.
    #[error("there is no memory for a message of {length} bytes; it is skipped")]
    OutOfMemory {
        /// Its size in bytes.
        length: u64,
    },
    /// What came is not this protocol, and where the next message begins cannot be known. Every later call
    /// says the same.
    #[error(
        "the other end does not send messages: a length of {length}; two processes may have sent at once \
         over one end, or the peer speaks another protocol"
    )]
    NotAMessage {
        /// What stands in the place of the length.
        length: i32,
    },
    /// The message's handles could not be taken for lack of descriptors. The message is lost.
    #[error("the message's handles are lost: this process has no descriptors left; raise RLIMIT_NOFILE")]
    HandlesLost,
    /// A handle in the message cannot be opened. The message is lost, the next call receives the next one.
    #[error("a {type_name} was received with a handle that cannot be opened: {cause}")]
    Handle {
        /// The type expected.
        type_name: &'static str,
        /// Why.
        cause: OpenError,
    },
    /// The message is not a value of the expected type. It is lost; the next call receives the next one.
    #[error("a message of {length} bytes is no {type_name}: {cause}")]
    Deserialize {
        /// The type expected.
        type_name: &'static str,
        /// The message's size.
        length: usize,
        /// What the deserialiser said.
        cause: postcard::Error,
    },
    /// The message begins with a value of the expected type and goes on after it, so it was of another type.
    #[error("a message of {length} bytes is no {type_name}: {rest} bytes are left after it")]
    Trailing {
        /// The type expected.
        type_name: &'static str,
        /// The message's size.
        length: usize,
        /// How many bytes are left.
        rest: usize,
    },
    /// The system refused.
    #[error("cannot receive: {0}")]
    System(io::Error),
}

/// A peer could not be authenticated, or did not accept us.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthenticationError {
    /// Its digest is wrong.
    #[error("the peer does not have our key: its digest is wrong")]
    WrongKey,
    /// It says that ours is.
    #[error("the peer rejected our digest: its key is another one")]
    Rejected,
    /// It does not follow the protocol.
    #[error("the peer does not speak the authentication protocol: {0}; does it have a key at all?")]
    Protocol(&'static str),
    /// It closed the connection.
    #[error("the peer closed the connection during authentication; does it have the key?")]
    Closed,
    /// It did not finish in time.
    #[error("the peer did not finish the authentication within {0:?}; does it have a key at all?")]
    Timeout(Duration),
    /// The key given has no bytes, which would let everybody in.
    #[error("the authentication key is empty; give a secret, or none for no authentication")]
    EmptyKey,
    /// The system refused.
    #[error("cannot exchange authentication messages: {0}")]
    System(io::Error),
}

/// A listener could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// Somebody listens there.
    #[error("cannot listen at {0}: somebody does already; stop that program or choose another address")]
    InUse(Address),
    /// At the path there is something that is not a socket. It is left alone.
    #[error(
        "cannot listen at {0:?}: something that is not a socket has that name; remove it or choose another"
    )]
    NotASocket(PathBuf),
    /// A socket's path or name has at most 107 bytes.
    #[error("cannot listen at {0}: a socket's path has at most 107 bytes; choose a shorter one")]
    PathTooLong(Address),
    /// The key given has no bytes, which would let everybody in.
    #[error("cannot listen with an empty authentication key; give a secret, or none for no authentication")]
    EmptyKey,
    /// The system refused.
    #[error("cannot listen at {address}: {action}: {cause}")]
    System {
        /// Where.
        address: Address,
        /// The step that failed.
        action: &'static str,
        /// What the system said.
        cause: io::Error,
    },
}

/// No connection was accepted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AcceptError {
    /// Nobody connected, and authenticated, within the time given.
    #[error("nobody connected within the time given")]
    Timeout,
    /// The system refused. The listener goes on; out of descriptors, the peer still waits.
    #[error("cannot accept a connection: {0}")]
    System(io::Error),
}

/// A connection could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// Nobody listens there.
    #[error("nobody listens at {address}: {cause}")]
    Refused {
        /// Where.
        address: Address,
        /// What the system said.
        cause: io::Error,
    },
    /// The listener is there but takes no connection.
    #[error("{address} did not take the connection within {timeout:?}; its program may be stopped or busy")]
    Timeout {
        /// Where.
        address: Address,
        /// The time given.
        timeout: Duration,
    },
    /// The two do not agree on a key.
    #[error("cannot connect to {address}: {cause}")]
    Authentication {
        /// Where.
        address: Address,
        /// Why.
        cause: AuthenticationError,
    },
    /// The system refused.
    #[error("cannot connect to {address}: {cause}")]
    System {
        /// Where.
        address: Address,
        /// What the system said.
        cause: io::Error,
    },
}
