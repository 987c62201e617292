//! crossbeam-channel, between threads: the bar for what two processes can reach.

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::contender::{Contender, Receive, Result, Send, Shape};
use crate::payload::Order;

/// Channels of `T`, moved.
pub struct Crossbeam<T>(Vec<(Sender<T>, Receiver<T>)>);

impl<T> Crossbeam<T> {
    fn new(shape: Shape) -> Self {
        Crossbeam((0..shape.lanes).map(|_| bounded(shape.capacity)).collect())
    }
}

impl<const N: usize> Contender<[u8]> for Crossbeam<[u8; N]> {
    type Sender = Sender<[u8; N]>;
    type Receiver = Receiver<[u8; N]>;

    fn open(shape: Shape) -> Result<Self> {
        Ok(Self::new(shape))
    }

    fn sender(&self, lane: usize) -> Result<Self::Sender> {
        Ok(self.0[lane].0.clone())
    }

    fn receiver(&self, lane: usize) -> Result<Self::Receiver> {
        Ok(self.0[lane].1.clone())
    }
}

impl<const N: usize> Send<[u8]> for Sender<[u8; N]> {
    fn send(&mut self, message: &[u8]) -> Result<()> {
        Ok(Sender::send(self, message.try_into()?)?)
    }
}

impl<const N: usize> Receive<[u8]> for Receiver<[u8; N]> {
    fn receive<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Result<R> {
        Ok(look(&self.recv()?))
    }
}

impl Contender<[u8]> for Crossbeam<Vec<u8>> {
    type Sender = Sender<Vec<u8>>;
    type Receiver = Receiver<Vec<u8>>;

    fn open(shape: Shape) -> Result<Self> {
        Ok(Self::new(shape))
    }

    fn sender(&self, lane: usize) -> Result<Self::Sender> {
        Ok(self.0[lane].0.clone())
    }

    fn receiver(&self, lane: usize) -> Result<Self::Receiver> {
        Ok(self.0[lane].1.clone())
    }
}

impl Send<[u8]> for Sender<Vec<u8>> {
    fn send(&mut self, message: &[u8]) -> Result<()> {
        Ok(Sender::send(self, message.to_vec())?)
    }
}

impl Receive<[u8]> for Receiver<Vec<u8>> {
    fn receive<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Result<R> {
        Ok(look(&self.recv()?))
    }
}

impl Contender<Order> for Crossbeam<Order> {
    type Sender = Sender<Order>;
    type Receiver = Receiver<Order>;

    fn open(shape: Shape) -> Result<Self> {
        Ok(Self::new(shape))
    }

    fn sender(&self, lane: usize) -> Result<Self::Sender> {
        Ok(self.0[lane].0.clone())
    }

    fn receiver(&self, lane: usize) -> Result<Self::Receiver> {
        Ok(self.0[lane].1.clone())
    }
}

impl Send<Order> for Sender<Order> {
    fn send(&mut self, order: &Order) -> Result<()> {
        Ok(Sender::send(self, order.clone())?)
    }
}

impl Receive<Order> for Receiver<Order> {
    fn receive<R>(&mut self, look: impl FnOnce(&Order) -> R) -> Result<R> {
        Ok(look(&self.recv()?))
    }
}
