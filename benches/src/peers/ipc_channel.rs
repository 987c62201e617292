//! ipc-channel: a Unix socket for each channel, one consumer.

use ipc_channel::ipc::{IpcBytesReceiver, IpcBytesSender, IpcReceiver, IpcSender, bytes_channel, channel};

use crate::contender::{Contender, Lane, Receive, Result, Send, Shape, Taken};
use crate::payload::Order;

/// Its channels of raw bytes.
pub struct IpcBytes(Vec<Lane<IpcBytesSender, IpcBytesReceiver>>);

impl Contender<[u8]> for IpcBytes {
    type Sender = IpcBytesSender;
    type Receiver = IpcBytesReceiver;

    fn open(shape: Shape) -> Result<Self> {
        let lane = |_| bytes_channel().map(|(sender, receiver)| (Taken::new(sender), Taken::new(receiver)));
        Ok(IpcBytes((0..shape.lanes).map(lane).collect::<std::io::Result<_>>()?))
    }

    fn sender(&self, lane: usize) -> Result<Self::Sender> {
        self.0[lane].0.take()
    }

    fn receiver(&self, lane: usize) -> Result<Self::Receiver> {
        self.0[lane].1.take()
    }
}

impl Send<[u8]> for IpcBytesSender {
    fn send(&mut self, message: &[u8]) -> Result<()> {
        Ok(IpcBytesSender::send(self, message)?)
    }
}

impl Receive<[u8]> for IpcBytesReceiver {
    fn receive<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Result<R> {
        Ok(look(&self.recv()?))
    }
}

/// Its typed channels.
pub struct IpcTyped(Vec<Lane<IpcSender<Order>, IpcReceiver<Order>>>);

impl Contender<Order> for IpcTyped {
    type Sender = IpcSender<Order>;
    type Receiver = IpcReceiver<Order>;

    fn open(shape: Shape) -> Result<Self> {
        let lane = |_| channel().map(|(sender, receiver)| (Taken::new(sender), Taken::new(receiver)));
        Ok(IpcTyped((0..shape.lanes).map(lane).collect::<std::io::Result<_>>()?))
    }

    fn sender(&self, lane: usize) -> Result<Self::Sender> {
        self.0[lane].0.take()
    }

    fn receiver(&self, lane: usize) -> Result<Self::Receiver> {
        self.0[lane].1.take()
    }
}

impl Send<Order> for IpcSender<Order> {
    fn send(&mut self, order: &Order) -> Result<()> {
        Ok(IpcSender::send(self, order.clone())?)
    }
}

impl Receive<Order> for IpcReceiver<Order> {
    fn receive<R>(&mut self, look: impl FnOnce(&Order) -> R) -> Result<R> {
        Ok(look(&self.recv()?))
    }
}
