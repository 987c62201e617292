//! Queues, pipes and listeners, and handles that travel through them.

mod abandoned;
mod errors;
mod handles;
mod keeper;
mod listener;
mod pipe;
mod pipe_transit;
mod queue_forms;
mod wait;

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use procession::connection::Connection;

/// An end, and the bare stream at the other.
fn bare() -> (Connection<(), ()>, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (OwnedFd::from(ours).try_into().unwrap(), theirs)
}
