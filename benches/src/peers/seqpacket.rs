//! A Unix SEQPACKET socket pair: the kernel keeps the messages apart, many may send and many receive.

use std::os::fd::OwnedFd;

use rustix::net::sockopt::set_socket_send_buffer_size;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};

use crate::contender::{Contender, Receive, Result, Send, Shape};

/// A socket pair a lane.
pub struct SeqPacket {
    lanes: Vec<(OwnedFd, OwnedFd)>,
    largest: usize,
}

/// The sending side.
pub struct Sender(OwnedFd);

/// The receiving side.
pub struct Receiver(OwnedFd, Vec<u8>);

impl Contender<[u8]> for SeqPacket {
    type Sender = Sender;
    type Receiver = Receiver;

    fn open(shape: Shape) -> Result<Self> {
        let lane = |_| -> Result<_> {
            let (sender, receiver) =
                socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
            // The kernel takes what it allows of this.
            set_socket_send_buffer_size(&sender, shape.capacity * shape.largest)?;
            Ok((sender, receiver))
        };
        Ok(SeqPacket { lanes: (0..shape.lanes).map(lane).collect::<Result<_>>()?, largest: shape.largest })
    }

    fn sender(&self, lane: usize) -> Result<Sender> {
        Ok(Sender(self.lanes[lane].0.try_clone()?))
    }

    fn receiver(&self, lane: usize) -> Result<Receiver> {
        Ok(Receiver(self.lanes[lane].1.try_clone()?, vec![0; self.largest]))
    }
}

impl Send<[u8]> for Sender {
    fn send(&mut self, message: &[u8]) -> Result<()> {
        send(&self.0, message, SendFlags::NOSIGNAL)?;
        Ok(())
    }
}

impl Receive<[u8]> for Receiver {
    fn receive<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Result<R> {
        let (_, length) = recv(&self.0, &mut self.1[..], RecvFlags::empty())?;
        Ok(look(&self.1[..length]))
    }
}
