//! Ours: the core's queue of byte messages, and the library's typed one.

use procession_sys::clock::Deadline;
use procession_core::queue::{Queue, QueueOptions};

use crate::contender::{Contender, Receive, Result, Send, Shape};
use crate::payload::Order;

/// Copied in and copied out, with a bound on the messages that may wait, as the peers have.
pub const BOUNDED: u8 = 0;
/// Copied in and copied out, without a bound on the messages.
pub const UNBOUNDED: u8 = 1;
/// Bounded; a message is written where it will lie, and used where it lies.
pub const IN_PLACE: u8 = 2;

/// A queue a lane; `MODE` is one of the above.
pub struct Procession<const MODE: u8>(Vec<Queue>);

/// The sending end.
pub struct Sender<const MODE: u8>(Queue);

/// The receiving end.
pub struct Receiver<const MODE: u8>(Queue, Vec<u8>);

impl<const MODE: u8> Contender<[u8]> for Procession<MODE> {
    type Sender = Sender<MODE>;
    type Receiver = Receiver<MODE>;

    fn open(shape: Shape) -> Result<Self> {
        let options = match MODE {
            UNBOUNDED => QueueOptions::new(),
            _ => QueueOptions::new().max_messages(u32::try_from(shape.capacity)?),
        };
        Ok(Procession(
            (0..shape.lanes).map(|_| Queue::create(&options)).collect::<std::result::Result<_, _>>()?,
        ))
    }

    fn sender(&self, lane: usize) -> Result<Sender<MODE>> {
        Ok(Sender(self.0[lane].clone()))
    }

    fn receiver(&self, lane: usize) -> Result<Receiver<MODE>> {
        Ok(Receiver(self.0[lane].clone(), Vec::new()))
    }
}

impl<const MODE: u8> Send<[u8]> for Sender<MODE> {
    fn send(&mut self, message: &[u8]) -> Result<()> {
        if MODE == IN_PLACE {
            let mut reservation = self.0.reserve(message.len())?;
            reservation.copy_from_slice(message);
            return Ok(reservation.commit(Deadline::Never)?);
        }
        Ok(self.0.put(message, Deadline::Never)?)
    }
}

impl<const MODE: u8> Receive<[u8]> for Receiver<MODE> {
    fn receive<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Result<R> {
        if MODE == IN_PLACE {
            return Ok(look(&self.0.get_message(Deadline::Never)?));
        }
        self.1.clear();
        self.0.get(&mut self.1, Deadline::Never)?;
        Ok(look(&self.1))
    }
}

/// The library's typed queue, with a bound on the messages that may wait.
pub struct Typed(Vec<procession::Queue<Order>>);

impl Contender<Order> for Typed {
    type Sender = procession::Queue<Order>;
    type Receiver = procession::Queue<Order>;

    fn open(shape: Shape) -> Result<Self> {
        let lane = |_| procession::Queue::bounded(shape.capacity);
        Ok(Typed((0..shape.lanes).map(lane).collect::<std::result::Result<_, _>>()?))
    }

    fn sender(&self, lane: usize) -> Result<Self::Sender> {
        Ok(self.0[lane].clone())
    }

    fn receiver(&self, lane: usize) -> Result<Self::Receiver> {
        Ok(self.0[lane].clone())
    }
}

impl Send<Order> for procession::Queue<Order> {
    fn send(&mut self, order: &Order) -> Result<()> {
        Ok(self.put(order)?)
    }
}

impl Receive<Order> for procession::Queue<Order> {
    fn receive<R>(&mut self, look: impl FnOnce(&Order) -> R) -> Result<R> {
        Ok(look(&self.get()?))
    }
}
