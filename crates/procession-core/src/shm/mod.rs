//! Shared memory with a checked header, and descriptors that travel between processes.

mod error;
mod header;
pub mod named;
pub mod registry;
pub mod transfer;
pub mod windows;

pub use error::{CreateError, OpenError};
pub use header::{Header, Kind, ObjectId};
