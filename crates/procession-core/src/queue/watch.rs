//! Waiting for a queue together with other things: descriptors that poll readable.

use rustix::fd::BorrowedFd;

use super::{Queue, WatchError};
use crate::ring::Side;

impl Queue {
    /// A descriptor that polls readable while a get has something to return: there is a message, or the queue is shut down and
    /// nothing more will come. For `poll`, `epoll` and the like, to wait for the queue together with sockets and
    /// processes; not to be read from, written to or closed.
    ///
    /// Each call brings the descriptor up to date, and so does each get of this process that finds nothing. Who polls it
    /// level-triggered, and after each time takes a message without waiting or calls this again, neither misses a message nor
    /// spins. A get without waiting then finds the message, unless another consumer was faster or the producer was
    /// killed. Edge-triggered use misses messages.
    ///
    /// All handles and threads of a process have one descriptor, with the same number for as long as they have a handle. A
    /// forked child has its own once it has called this. At most 64 processes can have one.
    ///
    /// A producer killed at any point leaves it readable at most once too often. What no living process does, nobody tells of: where a
    /// consumer is killed with a delivery, the descriptor becomes readable when a process finds that out, which each
    /// does that calls this or that gets, puts or joins. Call it again at intervals where that matters.
    ///
    /// # Errors
    /// [`WatchError`]; with [`RingError::Busy`](super::RingError::Busy) while a process is stopped
    /// inside the queue, so that this one cannot say what to wait for.
    pub fn readable_fd(&self) -> Result<BorrowedFd<'_>, WatchError> {
        let shared = &self.shared;
        shared.mend()?;
        if shared.ring.deliveries_are_held() {
            shared.look_around(true)?;
        }
        shared.ring.refresh(Side::Messages)
    }

    /// A descriptor that polls readable while a put need not wait: there is room for a message, or the queue is shut down. All
    /// else is as for [`Queue::readable_fd`], with puts for gets. That of a queue without a bound on its messages is always readable.
    ///
    /// # Errors
    /// [`WatchError`].
    pub fn writable_fd(&self) -> Result<BorrowedFd<'_>, WatchError> {
        self.shared.mend()?;
        self.shared.ring.refresh(Side::Room)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hostile::dead;
    use crate::queue::QueueOptions;
    use procession_sys::clock::Deadline;
    use procession_sys::pipe;

    /// As a producer and a consumer leave it that wrote to the pipe and died before they cleared the bit, when somebody else has
    /// recovered the lock.
    #[test]
    fn who_was_told_by_the_dead_does_not_take_itself_for_armed() {
        let queue = Queue::create(&QueueOptions::new().max_messages(1)).unwrap();
        let control = queue.shared.ring.control();
        let fd = queue.readable_fd().unwrap();
        pipe::make_readable(fd).unwrap();
        control.put.lock.abandon(dead());
        queue.trim().unwrap();
        assert!(queue.get_message(Deadline::Now).is_err());
        assert!(!pipe::is_readable(fd).unwrap());
        queue.put(b"one", Deadline::Now).unwrap();
        assert!(pipe::is_readable(fd).unwrap());
        let room = queue.writable_fd().unwrap();
        pipe::make_readable(room).unwrap();
        control.get.lock.abandon(dead());
        queue.trim().unwrap();
        assert!(queue.put(b"two", Deadline::Now).is_err());
        assert!(!pipe::is_readable(room).unwrap());
        drop(queue.get_message(Deadline::Now).unwrap());
        assert!(pipe::is_readable(room).unwrap());
    }
}
