//! Pipes and connections between processes: typed messages over sockets, after Python's
//! `multiprocessing.connection`.
//!
//! [`Pipe`] makes both ends at once, for processes that can be handed one. [`Listener`] and [`Client`] connect
//! programs that only know an address, and authenticate them. [`wait`] waits for several.
//!
//! # What every end does
//!
//! - **Messages** come whole and in order. `send` and `recv` carry values; `send_bytes` and `recv_bytes`
//!   carry bytes in CPython's framing, so that the other end may be a Python program's `Connection`.
//! - **Direction** is in the type: a [`Sender`] has no `recv`.
//!   ```compile_fail,E0599
//!   let (receiver, sender) = procession::connection::Pipe::one_way::<u8>().unwrap();
//!   sender.recv();
//!   ```
//! - **End of file.** Once every copy of the other end is closed, in every process, `recv` returns what was sent
//!   and then [`RecvError::Closed`], and `send` fails with [`SendError::Closed`]; SIGPIPE is not raised. An end
//!   that is sent to another process is *copied* there: drop the local one, or neither side ever sees the
//!   end of file.
//! - **Handles travel**: queues, locks, and ends of pipes may be part of a value. Over a pipe or local socket
//!   their descriptors go along. Over TCP they go as references that work on this machine only.
//! - **Ends travel** themselves, as arguments, through pipes and through queues. In a queue an end
//!   is a ticket. Its sender honours it once, from a helper thread, so that the first process to
//!   receive it has the end. A sender that exits leaves that to its keeper; one that is killed
//!   loses the end. A receiver waits at most 10 s for a sender that is stopped.
//! - **Threads** may share an end: messages are sent whole, one after the other, and each is received
//!   by one of them. A child forked while another thread sends must not send on that end.
//!
//! # When a process dies
//!
//! The kernel closes what it had, so nobody waits for it. A message of up to 32 KiB on a pipe or local socket is
//! sent in one step: a process killed in `send` has sent all of it or nothing. A larger one may be cut short,
//! which its receiver is told: [`RecvError::Truncated`].
//!
//! That holds while each end is *used* by one process. If several share a sending end (by `fork`, or by
//! sending it on), messages of more than 32 KiB may mix, and one that is cut short by a death is continued
//! by another's bytes. If several share a receiving end, they may take parts of each other's messages. What
//! comes of it is an error or wrong bytes, never a hang of those who have a deadline. Use a queue there.

mod address;
mod auth;
mod channel;
mod client;
mod error;
#[cfg(test)]
mod hostile;
mod listener;
mod pipe;
mod socket_file;
mod wait;

use std::time::Duration;

pub use address::Address;
pub use auth::AuthKey;
pub use client::Client;
pub use error::{AcceptError, AuthenticationError, ConnectError, ListenError, RecvError, SendError};
pub use listener::{Listener, ListenerBuilder, Peer};
pub use pipe::{Connection, Pipe, Receiver, Sender};
pub use wait::{Waitable, wait};

/// How long authentication may take unless told otherwise.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(20);
