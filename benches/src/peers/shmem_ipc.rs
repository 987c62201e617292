//! shmem-ipc: a ring for messages of one type, one producer, one consumer, eventfds to wait on.

use shmem_ipc::sharedring;

use crate::contender::{Contender, Lane, Receive, Result, Send, Shape, Taken};

/// Rings of messages of exactly `N` bytes.
pub struct ShmemIpc<const N: usize>(Vec<Lane<Sender<N>, Receiver<N>>>);

/// The producer's side.
pub struct Sender<const N: usize>(sharedring::Sender<[u8; N]>);

/// The consumer's side.
pub struct Receiver<const N: usize>(sharedring::Receiver<[u8; N]>);

impl<const N: usize> Contender<[u8]> for ShmemIpc<N> {
    type Sender = Sender<N>;
    type Receiver = Receiver<N>;

    fn open(shape: Shape) -> Result<Self> {
        let mut lanes = Vec::new();
        for _ in 0..shape.lanes {
            let sender = sharedring::Sender::new(shape.capacity)?;
            let memory = sender.memfd().as_file().try_clone()?;
            let empty = sender.empty_signal().try_clone()?;
            let full = sender.full_signal().try_clone()?;
            let receiver = sharedring::Receiver::open(shape.capacity, memory, empty, full)?;
            lanes.push((Taken::new(Sender(sender)), Taken::new(Receiver(receiver))));
        }
        Ok(ShmemIpc(lanes))
    }

    fn sender(&self, lane: usize) -> Result<Self::Sender> {
        self.0[lane].0.take()
    }

    fn receiver(&self, lane: usize) -> Result<Self::Receiver> {
        self.0[lane].1.take()
    }
}

impl<const N: usize> Send<[u8]> for Sender<N> {
    fn send(&mut self, message: &[u8]) -> Result<()> {
        let message: &[u8; N] = message.try_into()?;
        self.0.block_until_writable()?;
        self.0.send_raw(|at, _room| {
            // SAFETY: `block_until_writable` returned, and nobody else sends: there is room for one.
            unsafe { at.write(*message) };
            1
        })?;
        Ok(())
    }
}

impl<const N: usize> Receive<[u8]> for Receiver<N> {
    fn receive<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Result<R> {
        self.0.block_until_readable()?;
        let mut looked = None;
        self.0.receive_raw(|at, _count| {
            // SAFETY: `block_until_readable` returned, and nobody else receives: there is one, and its
            // producer leaves it alone until this closure returns.
            looked = Some(look(unsafe { &*at }));
            1
        })?;
        Ok(looked.ok_or("a message vanished")?)
    }
}
