//! Waiting for several things at once.

use std::io;
use std::time::Duration;

use procession_core::queue as core;
use procession_sys::clock::Deadline;
use procession_sys::socket;
use rustix::event::{PollFd, PollFlags};
use rustix::fd::{AsFd, BorrowedFd};

use crate::queue::{JoinableQueue, Queue, SimpleQueue};

/// How often a wait looks whether a holder of deliveries has died.
const SLICE: Duration = Duration::from_millis(250);

mod sealed {
    use std::io;

    use rustix::fd::BorrowedFd;

    pub trait Sealed {
        /// What to poll, which may be another one in a forked child. `None` while that cannot be
        /// said: then to be called again soon.
        fn descriptor(&self) -> io::Result<Option<BorrowedFd<'_>>>;

        /// Whether [`Sealed::descriptor`] is to be called again now and then.
        fn must_look_again(&self) -> bool {
            false
        }
    }
}

/// What [`wait`] can wait for: whatever has a descriptor, and queues.
pub trait Waitable: sealed::Sealed {}

impl<T: sealed::Sealed + ?Sized> Waitable for T {}

impl<T: AsFd + ?Sized> sealed::Sealed for T {
    fn descriptor(&self) -> io::Result<Option<BorrowedFd<'_>>> {
        Ok(Some(self.as_fd()))
    }
}

impl<T> sealed::Sealed for Queue<T> {
    fn descriptor(&self) -> io::Result<Option<BorrowedFd<'_>>> {
        of_queue(self.as_core())
    }
}

impl<T> sealed::Sealed for SimpleQueue<T> {
    fn descriptor(&self) -> io::Result<Option<BorrowedFd<'_>>> {
        of_queue(self.as_core())
    }
}

impl<T> sealed::Sealed for JoinableQueue<T> {
    fn descriptor(&self) -> io::Result<Option<BorrowedFd<'_>>> {
        of_queue(self.as_core())
    }

    fn must_look_again(&self) -> bool {
        true
    }
}

fn of_queue(queue: &core::Queue) -> io::Result<Option<BorrowedFd<'_>>> {
    match queue.readable_fd() {
        Ok(fd) => Ok(Some(fd)),
        // A process is stopped inside the queue.
        Err(core::WatchError::Queue(core::RingError::Busy)) => Ok(None),
        Err(error) => Err(io::Error::other(error)),
    }
}

/// Waits until at least one of the objects is ready and returns which, by index in ascending order; all that
/// are, so that none is starved. Empty when the time is up; with `None` it waits as long as it takes.
///
/// Ready is: a connection or [`Receiver`](super::Receiver) with a message or at its end
/// of file, a [`Sender`](super::Sender) whose receivers are all gone, a [`Listener`](super::Listener) with a
/// peer (which may yet have to authenticate: accept it with a timeout), a [`Process`](crate::Process) that has ended, a
/// [`Queue`], [`SimpleQueue`] or [`JoinableQueue`] with a message or shut down, any other descriptor that is readable or has
/// failed. There is no limit on the number of objects but that of descriptors. Without any object it returns at once.
///
/// Of what several processes or threads share, another may have taken the message meanwhile: take it from a queue with
/// `try_get`. At most 64 processes can wait for one queue like this.
///
/// A death needs no care: the kernel closes what the process had, and that is ready; a task of a killed consumer makes its
/// queue ready within a second.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use procession::connection::{Pipe, wait};
///
/// let (a, _keep) = Pipe::one_way::<u8>()?;
/// let (b, to_b) = Pipe::one_way::<u8>()?;
/// to_b.send(&7)?;
/// assert_eq!(wait(&[&a, &b], None)?, [1]);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// `InvalidInput` for more objects than this process may have descriptors; out of memory or descriptors; a queue for which
/// too many processes wait, or whose memory is damaged.
pub fn wait(objects: &[&dyn Waitable], timeout: Option<Duration>) -> io::Result<Vec<usize>> {
    if objects.is_empty() {
        return Ok(Vec::new());
    }
    let deadline = Deadline::from(timeout);
    let sliced = objects.iter().any(|object| object.must_look_again());
    loop {
        let mut fds = Vec::with_capacity(objects.len());
        let mut indices = Vec::with_capacity(objects.len());
        for (index, object) in objects.iter().enumerate() {
            if let Some(fd) = object.descriptor()? {
                fds.push(PollFd::from_borrowed_fd(fd, PollFlags::IN));
                indices.push(index);
            }
        }
        let sliced = sliced || indices.len() < objects.len();
        let until = match deadline.slice(SLICE) {
            Some(slice) if sliced => Deadline::after(slice),
            _ => deadline,
        };
        let ready = socket::poll(&mut fds, until)?;
        if ready != 0 || !sliced || deadline.passed() {
            let ready = fds.iter().zip(indices).filter(|(fd, _)| !fd.revents().is_empty());
            return Ok(ready.map(|(_, index)| index).collect());
        }
    }
}
