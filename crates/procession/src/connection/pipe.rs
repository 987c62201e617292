//! The two ends of a pipe or connection.

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::time::Duration;

use procession_core::shm::mailbox::{self, Ticket};
use procession_core::shm::{OpenError, transfer};
use procession_sys::clock::Deadline;
use procession_sys::socket;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use serde::de::{self, DeserializeOwned, Deserializer};
use serde::ser::{self, Serializer};
use serde::{Deserialize, Serialize};

use super::channel::{Channel, Message};
use super::error::{RecvError, SendError};
use crate::codec::{Readable, append};

/// Makes pipes: pairs of connected ends, as Python's `multiprocessing.Pipe` does.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use procession::connection::Pipe;
///
/// let (client, server) = Pipe::duplex::<String, usize>()?;
/// client.send(&"four".to_owned())?;
/// let word = server.recv()?;
/// server.send(&word.len())?;
/// assert_eq!(client.recv()?, 4);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub enum Pipe {}

impl Pipe {
    /// A pipe of two directions. The first end sends `A` and receives `B`, the second the other way round.
    ///
    /// # Errors
    /// Out of descriptors (a pipe takes two) or memory.
    pub fn duplex<A, B>() -> io::Result<(Connection<A, B>, Connection<B, A>)> {
        let (first, second) = socket::pair()?;
        Ok((Connection::try_from(first)?, Connection::try_from(second)?))
    }

    /// A pipe of one direction: the end that receives, then the end that sends, as in Python.
    ///
    /// # Errors
    /// Out of descriptors (a pipe takes two) or memory.
    pub fn one_way<T>() -> io::Result<(Receiver<T>, Sender<T>)> {
        let (receiver, sender) = socket::pair()?;
        Ok((Receiver::try_from(receiver)?, Sender::try_from(sender)?))
    }
}

/// One end of a duplex pipe, or a connection made by a [`Listener`](super::Listener) or
/// [`Client`](super::Client): sends `S`, receives `R`. See [the module](super) for what all ends have in common.
pub struct Connection<S, R> {
    channel: Channel,
    sent: Readable<S>,
    types: PhantomData<fn(S) -> R>,
}

/// The end of a one-way pipe that sends. See [the module](super) for what all ends have in common.
pub struct Sender<T> {
    channel: Channel,
    sent: Readable<T>,
    types: PhantomData<fn(T)>,
}

/// The end of a one-way pipe that receives. See [the module](super) for what all ends have in common.
pub struct Receiver<T> {
    channel: Channel,
    types: PhantomData<fn() -> T>,
}

/// What every end is and does.
macro_rules! end {
    ($end:ident<$($param:ident),+> $({ $sent:ident })?, $kind:expr) => {
        impl<$($param),+> AsFd for $end<$($param),+> {
            fn as_fd(&self) -> BorrowedFd<'_> {
                self.channel.as_fd()
            }
        }

        impl<$($param),+> fmt::Debug for $end<$($param),+> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_tuple(stringify!($end)).field(&self.channel.as_fd()).finish()
            }
        }

        /// Takes over a connected stream socket, whose other end frames its messages as CPython does.
        /// Fails with `InvalidInput` for anything else.
        impl<$($param),+> TryFrom<OwnedFd> for $end<$($param),+> {
            type Error = io::Error;

            fn try_from(socket: OwnedFd) -> io::Result<Self> {
                let channel = Channel::new(socket)?;
                Ok($end { channel, $($sent: Readable::default(),)? types: PhantomData })
            }
        }

        /// The bare socket. A message that a timeout has left received in part is lost.
        impl<$($param),+> From<$end<$($param),+>> for OwnedFd {
            fn from(end: $end<$($param),+>) -> OwnedFd {
                end.channel.into_socket()
            }
        }

        /// Sends this end to another process, which then has it too; this one keeps its copy until dropped.
        impl<$($param),+> Serialize for $end<$($param),+> {
            fn serialize<Z: Serializer>(&self, serializer: Z) -> Result<Z::Ok, Z::Error> {
                serialize_end($kind, &self.channel, serializer)
            }
        }

        impl<'de, $($param),+> Deserialize<'de> for $end<$($param),+> {
            fn deserialize<Z: Deserializer<'de>>(deserializer: Z) -> Result<Self, Z::Error> {
                let channel = deserialize_end($kind, deserializer)?;
                Ok($end { channel, $($sent: Readable::default(),)? types: PhantomData })
            }
        }
    };
}

end!(Connection < S, R > { sent }, Kind::Connection);
end!(Sender<T> { sent }, Kind::Sender);
end!(Receiver<T>, Kind::Receiver);

/// What an end that sends does.
macro_rules! sending {
    ($end:ident<$($param:ident),+>, $sent:ident) => {
        impl<$($param),+> $end<$($param),+> {
            /// Sends a value. Handles inside it travel along.
            ///
            /// Blocks while the receiver lives and has no room for it (a pipe takes about 200 KiB of large messages, and fewer
            /// bytes of small ones).
            ///
            /// # Errors
            /// [`SendError::Serialize`] and [`SendError::Handle`] for the value itself, with nothing sent;
            /// [`SendError::Closed`] when nobody can receive it.
            pub fn send(&self, value: &$sent) -> Result<(), SendError>
            where
                $sent: Serialize + DeserializeOwned,
            {
                let type_name = std::any::type_name::<$sent>();
                self.sent.check().map_err(|cause| SendError::Serialize { type_name, cause })?;
                send_value(&self.channel, value)
            }

            /// As [`Self::send`], for a value that is received as another type.
            #[allow(dead_code, reason = "a one-way pipe has no use for it")]
            pub(crate) fn send_as_other(&self, value: &$sent) -> Result<(), SendError>
            where
                $sent: Serialize,
            {
                send_value(&self.channel, value)
            }

            /// Sends bytes as one message, which CPython's `recv_bytes` receives and the other way round.
            /// Blocks as [`Self::send`] does.
            ///
            /// # Errors
            /// [`SendError::Closed`] when nobody can receive it.
            pub fn send_bytes(&self, message: &[u8]) -> Result<(), SendError> {
                self.channel.send(message, &[])
            }
        }
    };
}

sending!(Connection<S, R>, S);
sending!(Sender<T>, T);

/// What an end that receives does.
macro_rules! receiving {
    ($end:ident<$($param:ident),+>, $received:ident) => {
        impl<$($param),+> $end<$($param),+> {
            /// Receives the next value. Blocks until it has come whole or the other end is closed.
            ///
            /// # Errors
            /// [`RecvError::Closed`] at the end of file; [`RecvError::Truncated`] when the sender died in
            /// the middle of the message; [`RecvError::Deserialize`], [`RecvError::Trailing`] and
            /// [`RecvError::Handle`] when the message is no such value: the connection then goes on.
            pub fn recv(&self) -> Result<$received, RecvError>
            where
                $received: DeserializeOwned,
            {
                receive_value(&self.channel, Deadline::Never)
            }

            /// As [`Self::recv`], for at most `timeout`.
            ///
            /// # Errors
            /// Also [`RecvError::Timeout`]: what of the message has come is kept for the next call, in this
            /// process.
            pub fn recv_timeout(&self, timeout: Duration) -> Result<$received, RecvError>
            where
                $received: DeserializeOwned,
            {
                receive_value(&self.channel, Deadline::after(timeout))
            }

            /// Receives the next message as its bytes. Blocks as [`Self::recv`] does.
            ///
            /// # Errors
            /// [`RecvError::Closed`], [`RecvError::Truncated`].
            pub fn recv_bytes(&self) -> Result<Vec<u8>, RecvError> {
                Ok(self.channel.receive(None, Deadline::Never)?.bytes)
            }

            /// As [`Self::recv_bytes`], for a message of at most `max` bytes.
            ///
            /// # Errors
            /// Also [`RecvError::TooLong`], as soon as the length of a larger message is known. That message
            /// is skipped and the connection goes on (CPython's becomes unreadable).
            pub fn recv_bytes_max(&self, max: usize) -> Result<Vec<u8>, RecvError> {
                Ok(self.channel.receive(Some(max), Deadline::Never)?.bytes)
            }

            /// As [`Self::recv_bytes`], into `buffer`; returns how many bytes the message has.
            ///
            /// # Errors
            /// Also [`RecvError::BufferTooShort`], which holds the whole message.
            pub fn recv_bytes_into(&self, buffer: &mut [u8]) -> Result<usize, RecvError> {
                let message = self.channel.receive(None, Deadline::Never)?.bytes;
                match buffer.get_mut(..message.len()) {
                    Some(room) => room.copy_from_slice(&message),
                    None => return Err(RecvError::BufferTooShort { message, room: buffer.len() }),
                }
                Ok(message.len())
            }

            /// Waits at most `timeout` until there is something to receive; whether there is. True also at the
            /// end of file, and when a message has begun to come whose rest `recv` would wait for.
            ///
            /// # Errors
            /// [`RecvError::System`].
            pub fn poll(&self, timeout: Duration) -> Result<bool, RecvError> {
                match self.channel.poll(Deadline::after(timeout)) {
                    // The next receive says so.
                    Err(RecvError::Closed) => Ok(true),
                    other => other,
                }
            }
        }
    };
}

receiving!(Connection<S, R>, R);
receiving!(Receiver<T>, T);

fn send_value<T: Serialize>(channel: &Channel, value: &T) -> Result<(), SendError> {
    let type_name = std::any::type_name::<T>();
    let mut bytes = Vec::new();
    let mut serialize = || append(value, &mut bytes);
    let _stale = transfer::failure();
    let (result, descriptors) = match channel.carries_descriptors() {
        true => transfer::collect(serialize),
        false => (serialize(), Vec::new()),
    };
    result.map_err(|error| match (transfer::failure(), error.out_of_memory()) {
        (Some(cause), _) => SendError::Handle { type_name, cause },
        (None, Some(cause)) => SendError::System { length: 0, cause },
        (None, None) => SendError::Serialize { type_name, cause: error },
    })?;
    channel.send(&bytes, &descriptors)
}

fn receive_value<T: DeserializeOwned>(channel: &Channel, deadline: Deadline) -> Result<T, RecvError> {
    let type_name = std::any::type_name::<T>();
    let Message { bytes, descriptors, descriptors_lost } = channel.receive(None, deadline)?;
    if descriptors_lost {
        return Err(RecvError::HandlesLost);
    }
    let _stale = transfer::failure();
    let result = transfer::deliver(descriptors, || postcard::take_from_bytes(&bytes));
    let (value, rest) = result.map_err(|cause| match transfer::failure() {
        Some(cause) => RecvError::Handle { type_name, cause },
        None => RecvError::Deserialize { type_name, length: bytes.len(), cause },
    })?;
    if !rest.is_empty() {
        return Err(RecvError::Trailing { type_name, length: bytes.len(), rest: rest.len() });
    }
    Ok(value)
}

/// Which end a handle's bytes stand for.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Connection = 1,
    Sender = 2,
    Receiver = 3,
}

/// The kind and the ticket's two halves: serde's arrays have at most 32 elements.
type Encoded = (u8, [u8; Ticket::LEN / 2], [u8; Ticket::LEN / 2]);

fn serialize_end<Z: Serializer>(kind: Kind, channel: &Channel, serializer: Z) -> Result<Z::Ok, Z::Error> {
    let sent = if channel.is_amid_message() {
        Err(io::Error::new(
            io::ErrorKind::ResourceBusy,
            "a timeout has left a message received in part; receive it whole first",
        ))
    } else {
        mailbox::send(channel.as_fd())
    };
    let ticket = sent.map_err(|error| {
        ser::Error::custom(transfer::fail(OpenError::system("handing a connection over")(error)))
    })?;
    let mut encoded: Encoded = (kind as u8, [0; _], [0; _]);
    let bytes = ticket.to_bytes();
    encoded.1.copy_from_slice(&bytes[..Ticket::LEN / 2]);
    encoded.2.copy_from_slice(&bytes[Ticket::LEN / 2..]);
    encoded.serialize(serializer)
}

fn deserialize_end<'de, Z: Deserializer<'de>>(kind: Kind, deserializer: Z) -> Result<Channel, Z::Error> {
    let (found, first, second) = Encoded::deserialize(deserializer)?;
    let open = || {
        if found != kind as u8 {
            return Err(OpenError::Malformed("it is another end of a pipe, or no end of a pipe at all"));
        }
        let socket = mailbox::receive(Ticket::from_bytes(&[first, second].concat())?)?;
        Channel::new(socket).map_err(OpenError::system("taking a connection over"))
    };
    open().map_err(|error| de::Error::custom(transfer::fail(error)))
}
