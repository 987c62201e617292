//! Queues between processes: many producers, many consumers, any of which may die at any time.

mod builder;
mod codec;
mod error;
mod joinable;
mod plain;
mod reservation;
mod simple;

pub(crate) use self::codec::with_buffer;

pub use self::builder::{Builder, Kind};
pub use self::error::{GetError, PutError, PutManyError};
pub use self::joinable::{Delivery, JoinableQueue};
pub use self::plain::{Iter, Queue};
pub use self::reservation::Reservation;
pub use self::simple::SimpleQueue;
pub use crate::codec::SerializeError;
pub use procession_core::queue::{
    INLINE_MAX, JoinError, MAX_MESSAGES, Message, RingError as MemoryError, TaskDoneError,
};
