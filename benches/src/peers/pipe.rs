//! A pipe with postcard: one write for each message, buffered reads, one producer and one consumer.

use std::fs::File;
use std::io::{BufReader, Write};
use std::os::fd::OwnedFd;

use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use serde::{Serialize, Serializer};

use crate::contender::{Contender, Receive, Result, Send, Shape};
use crate::payload::Order;

/// Room in a pipe: what a user without privileges may ask for.
const PIPE_BYTES: usize = 1 << 20;

/// A pipe a lane.
pub struct Pipe {
    lanes: Vec<(OwnedFd, OwnedFd)>,
    largest: usize,
}

/// The writing side.
pub struct Sender(File, Vec<u8>);

/// The reading side.
pub struct Receiver(BufReader<File>, Vec<u8>);

/// Bytes for serde as bytes, not as a sequence of numbers.
struct Bytes<'a>(&'a [u8]);

impl Serialize for Bytes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

impl Pipe {
    fn new(shape: Shape) -> Result<Self> {
        let lane = |_| -> Result<_> {
            let (receiver, sender) = pipe_with(PipeFlags::CLOEXEC)?;
            fcntl_setpipe_size(&sender, PIPE_BYTES)?;
            Ok((sender, receiver))
        };
        Ok(Pipe { lanes: (0..shape.lanes).map(lane).collect::<Result<_>>()?, largest: shape.largest })
    }

    fn sending(&self, lane: usize) -> Result<Sender> {
        Ok(Sender(self.lanes[lane].0.try_clone()?.into(), Vec::new()))
    }

    fn receiving(&self, lane: usize) -> Result<Receiver> {
        let file = self.lanes[lane].1.try_clone()?.into();
        Ok(Receiver(BufReader::with_capacity(1 << 16, file), vec![0; self.largest.max(256)]))
    }
}

impl Sender {
    fn write(&mut self, value: &impl Serialize) -> Result<()> {
        let mut buffer = std::mem::take(&mut self.1);
        buffer.clear();
        self.1 = postcard::to_extend(value, buffer)?;
        Ok(self.0.write_all(&self.1)?)
    }
}

impl Contender<[u8]> for Pipe {
    type Sender = Sender;
    type Receiver = Receiver;

    fn open(shape: Shape) -> Result<Self> {
        Pipe::new(shape)
    }

    fn sender(&self, lane: usize) -> Result<Sender> {
        self.sending(lane)
    }

    fn receiver(&self, lane: usize) -> Result<Receiver> {
        self.receiving(lane)
    }
}

impl Send<[u8]> for Sender {
    fn send(&mut self, message: &[u8]) -> Result<()> {
        self.write(&Bytes(message))
    }
}

impl Receive<[u8]> for Receiver {
    fn receive<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Result<R> {
        let (message, _) = postcard::from_io::<&[u8], _>((&mut self.0, &mut self.1))?;
        Ok(look(message))
    }
}

impl Contender<Order> for Pipe {
    type Sender = Sender;
    type Receiver = Receiver;

    fn open(shape: Shape) -> Result<Self> {
        Pipe::new(shape)
    }

    fn sender(&self, lane: usize) -> Result<Sender> {
        self.sending(lane)
    }

    fn receiver(&self, lane: usize) -> Result<Receiver> {
        self.receiving(lane)
    }
}

impl Send<Order> for Sender {
    fn send(&mut self, order: &Order) -> Result<()> {
        self.write(order)
    }
}

impl Receive<Order> for Receiver {
    fn receive<R>(&mut self, look: impl FnOnce(&Order) -> R) -> Result<R> {
        let (order, _) = postcard::from_io::<Order, _>((&mut self.0, &mut self.1))?;
        Ok(look(&order))
    }
}
