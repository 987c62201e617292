//! Queues between processes: many producers, many consumers, any of which may die at any time.

mod codec;
mod error;
mod joinable;
mod plain;
mod simple;

pub use self::error::{GetError, PutError};
pub use self::joinable::{Delivery, JoinableQueue};
pub use self::plain::{Builder, Iter, Queue};
pub use self::simple::SimpleQueue;
pub use procession_core::queue::{
    JoinError, MAX_MESSAGES, Message, Reservation, RingError as MemoryError, TaskDoneError,
};
