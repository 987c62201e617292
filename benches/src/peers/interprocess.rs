//! interprocess: its local sockets (Unix stream sockets here), with a length before each message.

use std::io::{BufReader, Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};

use interprocess::local_socket::{GenericNamespaced, ListenerOptions, Stream, prelude::*};

use crate::contender::{Contender, Lane, Receive, Result, Send, Shape, Taken};

/// A connected pair of streams a lane.
pub struct LocalSocket(Vec<Lane<Stream, Stream>>);

/// The writing side.
pub struct Sender(Stream, Vec<u8>);

/// The reading side.
pub struct Receiver(BufReader<Stream>, Vec<u8>);

impl Contender<[u8]> for LocalSocket {
    type Sender = Sender;
    type Receiver = Receiver;

    fn open(shape: Shape) -> Result<Self> {
        static TRIAL: AtomicU64 = AtomicU64::new(0);
        let trial = TRIAL.fetch_add(1, Ordering::Relaxed);
        let name =
            format!("procession-bench-{}-{trial}", std::process::id()).to_ns_name::<GenericNamespaced>()?;
        let listener = ListenerOptions::new().name(name.borrow()).create_sync()?;
        let lane = |_| -> Result<_> {
            let sender = Stream::connect(name.borrow())?;
            Ok((Taken::new(sender), Taken::new(listener.accept()?)))
        };
        Ok(LocalSocket((0..shape.lanes).map(lane).collect::<Result<_>>()?))
    }

    fn sender(&self, lane: usize) -> Result<Sender> {
        Ok(Sender(self.0[lane].0.take()?, Vec::new()))
    }

    fn receiver(&self, lane: usize) -> Result<Receiver> {
        Ok(Receiver(BufReader::with_capacity(1 << 16, self.0[lane].1.take()?), Vec::new()))
    }
}

impl Send<[u8]> for Sender {
    fn send(&mut self, message: &[u8]) -> Result<()> {
        self.1.clear();
        self.1.extend_from_slice(&u32::try_from(message.len())?.to_ne_bytes());
        self.1.extend_from_slice(message);
        Ok(self.0.write_all(&self.1)?)
    }
}

impl Receive<[u8]> for Receiver {
    fn receive<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Result<R> {
        let mut length = [0; 4];
        self.0.read_exact(&mut length)?;
        self.1.resize(u32::from_ne_bytes(length) as usize, 0);
        self.0.read_exact(&mut self.1)?;
        Ok(look(&self.1))
    }
}
