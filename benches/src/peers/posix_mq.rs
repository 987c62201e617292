//! POSIX message queues: many producers, many consumers, within the system's default limits.

use std::sync::atomic::{AtomicU64, Ordering};

use posixmq::{OpenOptions, PosixMq, remove_queue};

use crate::contender::{Contender, Receive, Result, Send, Shape};

/// The system's default `msg_max`, the most messages of a queue that an ordinary user makes.
const MOST_MESSAGES: usize = 10;
/// The system's default `msgsize_max`.
pub const MOST_BYTES: usize = 8192;

/// A queue a lane.
pub struct PosixQueue {
    lanes: Vec<PosixMq>,
    largest: usize,
}

/// The receiving side.
pub struct Receiver(PosixMq, Vec<u8>);

impl Contender<[u8]> for PosixQueue {
    type Sender = PosixMq;
    type Receiver = Receiver;

    fn open(shape: Shape) -> Result<Self> {
        static QUEUE: AtomicU64 = AtomicU64::new(0);
        let lane = |_| -> Result<_> {
            let number = QUEUE.fetch_add(1, Ordering::Relaxed);
            let name = format!("/procession-bench-{}-{number}", std::process::id());
            let queue = OpenOptions::readwrite()
                .capacity(shape.capacity.min(MOST_MESSAGES))
                .max_msg_len(shape.largest)
                .create_new()
                .open(&name)?;
            remove_queue(&name)?;
            Ok(queue)
        };
        Ok(PosixQueue { lanes: (0..shape.lanes).map(lane).collect::<Result<_>>()?, largest: shape.largest })
    }

    fn sender(&self, lane: usize) -> Result<PosixMq> {
        Ok(self.lanes[lane].try_clone()?)
    }

    fn receiver(&self, lane: usize) -> Result<Receiver> {
        Ok(Receiver(self.lanes[lane].try_clone()?, vec![0; self.largest]))
    }
}

impl Send<[u8]> for PosixMq {
    fn send(&mut self, message: &[u8]) -> Result<()> {
        Ok(PosixMq::send(self, 0, message)?)
    }
}

impl Receive<[u8]> for Receiver {
    fn receive<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Result<R> {
        let (_, length) = self.0.recv(&mut self.1)?;
        Ok(look(&self.1[..length]))
    }
}
