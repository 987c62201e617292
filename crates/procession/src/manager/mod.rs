//! Objects that live in a process of their own, after Python's `multiprocessing.Manager`.
//!
//! [`Manager`] starts that process, or connects to one that another program has started, on this machine or elsewhere.
//! It keeps [`Dict`], [`List`], [`Namespace`] and objects of types that a program registers ([`Service`]). What a program
//! has of them are proxies: each call is a message to the manager, and its answer.
//!
//! Queues, locks and values of a manager are the shared-memory ones of this library: no process stands between
//! those who use them. Put into a dict or namespace, they are kept by the manager for as long as they are there, whoever ends.
//!
//! # What every proxy does
//!
//! - **Clones** are of the same object, and cost nothing. A proxy can be used by all threads at once; each call has a
//!   connection of its own, kept for later ones.
//! - **Travels** anywhere: as an argument or result of a process, through queues and pipes, inside of values of the same or
//!   another manager. Reading it connects the process to the manager. Proxies of a manager at a local socket have its key
//!   in them; at a TCP address only those that go over a local socket (arguments, pipes), so that the key is never seen on a network.
//!   Elsewhere the receiver has to know the key: see [`CallError::NoKey`].
//! - **Keeps** its object. An object goes with its last proxy in all processes, or when all that had one have ended,
//!   however they ended. A proxy on its way keeps the object until it is read; if its sender ends before that, for an hour. One in
//!   a value that its own manager keeps, keeps it too (so two objects in each other stay as long as the manager); one that is kept by another
//!   manager does as long as the process lives that put it there.
//!   An object with a name stays until the name is forgotten.
//! - **Forked children** have the proxies of their parent, which keep the objects while the child lives, and connections
//!   of their own. That holds for this library's forks; for others (`libc::fork`) the parent has to keep a proxy until the child
//!   has used its own.
//! - **Blocking.** A call waits until the manager has answered, which takes as long as the object's other
//!   callers do; for dicts, lists and namespaces that is no time to speak of. A manager that is stopped (SIGSTOP) is
//!   waited for; but connecting to it gives up after 20 s.
//!
//! # When a process dies
//!
//! - **A client**, at any instruction: its references vanish, its call was carried out or not. Nobody waits for it. The same
//!   holds for one that is stopped, or does not read what it asked for: others are not disturbed.
//! - **The manager**: each call fails with [`CallError::ManagerDied`], at once also where a thread waits for an answer. Its
//!   objects are gone; what lies in shared memory is not. Where a handler had forked a process that lives on, it takes up to half a second to notice.
//! - **The process that started the manager**: the manager ends too, at once.
//!
//! # Who may connect
//!
//! Whoever has the key. It is random unless given. Each side shows the other that it has it, without sending it. Who has
//! not is turned away after a few hundred bytes, after 10 s, or sooner when others wait; 256 may try at once (of few descriptors, a quarter as
//! many as there may be). A crowd of them delays who connects by half a second at most, and nobody who is connected. With the key
//! comes full trust: clients can change and fill everything there is. What is sent over TCP is not encrypted.

mod builder;
mod client;
mod connect;
mod dict;
mod error;
#[cfg(test)]
mod hostile;
mod list;
mod namespace;
mod reference;
mod server;
mod service;
mod table;
mod value;
mod wire;

pub use builder::{Builder, Manager};
pub use dict::Dict;
pub use error::{CallError, ManagerError};
pub use list::{Iter, List};
pub use namespace::Namespace;
pub use service::{Proxy, Service};
