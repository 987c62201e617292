//! Waiting for several things at once.

use std::io;
use std::time::Duration;

use procession_core::os::clock::Deadline;
use procession_core::os::socket;
use rustix::event::{PollFd, PollFlags};
use rustix::fd::AsFd;

/// Waits until at least one of the objects is ready and returns which, by index in ascending order; all that
/// are, so that none is starved. Empty when the time is up; with `None` it waits as long as it takes.
///
/// Ready is: a connection or [`Receiver`](super::Receiver) with a message or at its end
/// of file, a [`Sender`](super::Sender) whose receivers are all gone, a [`Listener`](super::Listener) with a
/// peer (which may yet have to authenticate: accept it with a timeout), a [`Process`](crate::Process) that has ended, any
/// other descriptor that is readable or has failed. There is no limit on the number of objects but that of descriptors.
/// Without any object it returns at once.
///
/// A death needs no care: the kernel closes what the process had, and that is ready.
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
/// `InvalidInput` for more objects than this process may have descriptors; out of memory.
pub fn wait(objects: &[&dyn AsFd], timeout: Option<Duration>) -> io::Result<Vec<usize>> {
    if objects.is_empty() {
        return Ok(Vec::new());
    }
    let mut fds: Vec<PollFd<'_>> =
        objects.iter().map(|object| PollFd::from_borrowed_fd(object.as_fd(), PollFlags::IN)).collect();
    socket::poll(&mut fds, Deadline::from(timeout))?;
    Ok(fds.iter().enumerate().filter(|(_, fd)| !fd.revents().is_empty()).map(|(index, _)| index).collect())
}
