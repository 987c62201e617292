//! Shared memory with a checked header, and descriptors that travel between processes.

pub mod arena;
pub(crate) mod copy;
mod error;
mod fd_ref;
pub(crate) mod handed_out;
mod header;
mod holders;
#[cfg(test)]
mod hostile;
pub mod keeper;
mod kind;
pub mod mailbox;
pub mod named;
pub mod posix;
mod receivable;
pub mod registry;
pub mod tally;
pub mod transfer;
pub mod windows;

pub use error::{CreateError, OpenError};
pub use fd_ref::FdRef;
pub use header::{Header, ObjectId};
pub use kind::Kind;
