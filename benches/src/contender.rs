//! What every contender offers: a way to open its channels, an end to send with and an end to receive with.

use std::error::Error;

/// Any failure of a contender; it becomes a failed cell, never a failed run.
pub type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// What a workload asks of a contender.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// How many independent channels.
    pub lanes: usize,
    /// Size in bytes of the largest message.
    pub largest: usize,
    /// How many messages may wait in a lane, as far as the contender can be told.
    pub capacity: usize,
}

impl Shape {
    /// `lanes` channels for messages of `size` bytes, with room for 1 MiB of them, but at least 8 and at
    /// most 1024 messages.
    pub fn new(lanes: usize, size: usize) -> Self {
        Shape { lanes, largest: size, capacity: ((1 << 20) / size.max(1)).clamp(8, 1024) }
    }
}

/// A way to move messages of type `M` from one process (or thread) to another.
///
/// [`Contender::open`] is called once a trial in a single-threaded parent; the ends are asked for in the
/// processes or threads that use them.
pub trait Contender<M: ?Sized>: Sized + Sync {
    /// The end that sends.
    type Sender: Send<M>;
    /// The end that receives.
    type Receiver: Receive<M>;

    /// Makes whatever has to exist before the processes start.
    fn open(shape: Shape) -> Result<Self>;
    /// The sending end of a lane, for the calling process. At most once for each process and lane.
    fn sender(&self, lane: usize) -> Result<Self::Sender>;
    /// The receiving end of a lane, for the calling process. At most once for each process and lane.
    fn receiver(&self, lane: usize) -> Result<Self::Receiver>;
}

/// Sends messages, blocking while the channel is full.
pub trait Send<M: ?Sized> {
    /// Sends one message.
    fn send(&mut self, message: &M) -> Result<()>;
}

/// Receives messages, blocking while the channel is empty.
pub trait Receive<M: ?Sized> {
    /// Receives one message and shows it to `look`: in memory of its own for a contender that copies out, in
    /// place for one that does not.
    fn receive<R>(&mut self, look: impl FnOnce(&M) -> R) -> Result<R>;
}

/// An end made in the parent, to be taken by the one process that uses it.
pub struct Taken<T>(std::sync::Mutex<Option<T>>);

impl<T> Taken<T> {
    /// Keeps `end` for [`Taken::take`].
    pub fn new(end: T) -> Self {
        Taken(std::sync::Mutex::new(Some(end)))
    }

    /// The end; an error the second time in one process.
    pub fn take(&self) -> Result<T> {
        let mut end = self.0.lock().map_err(|_| "a panic while an end was taken")?;
        Ok(end.take().ok_or("the end was taken before")?)
    }
}

/// A lane whose two ends were made in the parent.
pub type Lane<S, R> = (Taken<S>, Taken<R>);
