//! iceoryx2: publish and subscribe in shared memory, one publisher and one subscriber, nothing dropped.
//!
//! Its subscriber has no blocking receive: it polls, or waits for an event that is sent beside the message.

use std::sync::atomic::{AtomicU64, Ordering};

use iceoryx2::node::Node;
use iceoryx2::port::listener::Listener;
use iceoryx2::port::notifier::Notifier;
use iceoryx2::port::publisher::Publisher;
use iceoryx2::port::subscriber::Subscriber;
use iceoryx2::prelude::*;

use crate::contender::{Contender, Receive, Result, Send, Shape};

/// A consumer uses messages where they lie.
pub const IN_PLACE: u8 = 0;
/// A consumer copies messages into memory of its own.
pub const COPY_OUT: u8 = 1;
/// In place, and asleep on an event while there is nothing to receive.
pub const EVENT: u8 = 2;

/// A service a lane; `MODE` is one of the above.
pub struct Iceoryx2<const MODE: u8> {
    shape: Shape,
    name: String,
}

/// The publisher's side.
pub struct Sender<const MODE: u8> {
    publisher: Publisher<ipc::Service, [u8], ()>,
    notifier: Option<Notifier<ipc::Service>>,
    poll: Poll,
    _node: Node<ipc::Service>,
}

/// The subscriber's side.
pub struct Receiver<const MODE: u8> {
    subscriber: Subscriber<ipc::Service, [u8], ()>,
    listener: Option<Listener<ipc::Service>>,
    copy: Vec<u8>,
    poll: Poll,
    _node: Node<ipc::Service>,
}

/// How a polling side passes the time: it spins, and after about a millisecond lets others have the core too, without
/// which it would keep its own counterpart from running on a busy machine.
struct Poll(u32);

impl Poll {
    fn pause(&mut self) {
        self.0 = self.0.saturating_add(1);
        if self.0 < 20_000 { std::hint::spin_loop() } else { std::thread::yield_now() }
    }

    fn reset(&mut self) {
        self.0 = 0;
    }
}

type Messages = iceoryx2::service::port_factory::publish_subscribe::PortFactory<ipc::Service, [u8], ()>;
type Events = iceoryx2::service::port_factory::event::PortFactory<ipc::Service>;

impl<const MODE: u8> Iceoryx2<MODE> {
    fn join(&self, lane: usize) -> Result<(Node<ipc::Service>, Messages, Option<Events>)> {
        set_log_level(LogLevel::Error);
        let node = NodeBuilder::new().create::<ipc::Service>()?;
        let name = format!("{}-{lane}", self.name);
        let messages = node
            .service_builder(&name.as_str().try_into()?)
            .publish_subscribe::<[u8]>()
            .enable_safe_overflow(false)
            .subscriber_max_buffer_size(self.shape.capacity)
            .history_size(0)
            .max_publishers(1)
            .max_subscribers(1)
            .open_or_create()?;
        let events = match MODE {
            EVENT => Some(node.service_builder(&name.as_str().try_into()?).event().open_or_create()?),
            _ => None,
        };
        Ok((node, messages, events))
    }
}

impl<const MODE: u8> Contender<[u8]> for Iceoryx2<MODE> {
    type Sender = Sender<MODE>;
    type Receiver = Receiver<MODE>;

    fn open(shape: Shape) -> Result<Self> {
        static TRIAL: AtomicU64 = AtomicU64::new(0);
        let trial = TRIAL.fetch_add(1, Ordering::Relaxed);
        Ok(Iceoryx2 { shape, name: format!("bench-{}-{trial}", std::process::id()) })
    }

    fn sender(&self, lane: usize) -> Result<Self::Sender> {
        let (node, messages, events) = self.join(lane)?;
        let publisher = messages
            .publisher_builder()
            .initial_max_slice_len(self.shape.largest)
            .backpressure_strategy(BackpressureStrategy::DiscardData)
            .create()?;
        let notifier = events.map(|events| events.notifier_builder().create()).transpose()?;
        Ok(Sender { publisher, notifier, poll: Poll(0), _node: node })
    }

    fn receiver(&self, lane: usize) -> Result<Self::Receiver> {
        let (node, messages, events) = self.join(lane)?;
        let subscriber = messages.subscriber_builder().create()?;
        let listener = events.map(|events| events.listener_builder().create()).transpose()?;
        Ok(Receiver { subscriber, listener, copy: Vec::new(), poll: Poll(0), _node: node })
    }
}

impl<const MODE: u8> Send<[u8]> for Sender<MODE> {
    fn send(&mut self, message: &[u8]) -> Result<()> {
        // Delivered to nobody while the subscriber's buffer is full. Its own blocking strategy sleeps in between,
        // which costs it most of its speed, and gives up when the subscriber has not called receive yet.
        while self.publisher.loan_slice_uninit(message.len())?.write_from_slice(message).send()? == 0 {
            self.poll.pause();
        }
        self.poll.reset();
        if let Some(notifier) = &self.notifier {
            notifier.notify()?;
        }
        Ok(())
    }
}

impl<const MODE: u8> Receive<[u8]> for Receiver<MODE> {
    fn receive<R>(&mut self, look: impl FnOnce(&[u8]) -> R) -> Result<R> {
        loop {
            match self.subscriber.receive()? {
                Some(sample) if MODE == COPY_OUT => {
                    self.copy.clear();
                    self.copy.extend_from_slice(&sample);
                    self.poll.reset();
                    return Ok(look(&self.copy));
                }
                Some(sample) => {
                    self.poll.reset();
                    return Ok(look(&sample));
                }
                None => match &self.listener {
                    Some(listener) => drop(listener.blocking_wait(|_| ())?),
                    None => self.poll.pause(),
                },
            }
        }
    }
}
