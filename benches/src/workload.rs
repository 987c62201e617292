//! What is measured: the loops that producers and consumers run, the same for every contender.

use std::borrow::{Borrow, BorrowMut};
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::contender::{Contender, Receive, Result, Send, Shape};
use crate::payload::{Order, Payload};
use crate::stage::{self, Desk, Home, Role, Shared};

/// What one trial gave.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Messages a second, seconds, or a share of one core, as the workload says.
    pub value: f64,
    /// The 99th percentile, where the value is a median.
    pub tail: Option<f64>,
}

/// A stream of messages from producers to consumers.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    /// Roles that send.
    pub producers: usize,
    /// Roles that receive, all from one lane.
    pub consumers: usize,
    /// Bytes a message, where it can be chosen.
    pub size: usize,
}

/// Messages a second when `count` messages go from the producers to the consumers.
pub fn stream<M, C>(home: Home, stream: Stream, count: u64) -> Result<Sample>
where
    M: Payload + ?Sized,
    C: Contender<M>,
{
    let contender = C::open(Shape::new(1, stream.size))?;
    let contender = &contender;
    let mut roles: Vec<Role<'_>> = Vec::new();
    for range in shares(count, stream.producers) {
        roles.push(Box::new(move |desk: &Desk<'_>| {
            let mut sender = contender.sender(0)?;
            let mut message = M::blank(stream.size);
            desk.ready();
            for number in range {
                let message = message.borrow_mut();
                message.set_number(number);
                sender.send(message)?;
            }
            desk.finish(0);
            Ok(())
        }));
    }
    for range in shares(count, stream.consumers) {
        roles.push(Box::new(move |desk: &Desk<'_>| {
            let mut receiver = contender.receiver(0)?;
            desk.ready();
            let mut sum = 0_u64;
            for _ in range {
                sum = sum.wrapping_add(receiver.receive(|message| message.number())?);
            }
            desk.finish(sum);
            Ok(())
        }));
    }
    let outcome = stage::run(home, roles)?;
    let sum = outcome.values.iter().fold(0_u64, |sum, value| sum.wrapping_add(*value));
    let expected = (0..count).fold(0_u64, u64::wrapping_add);
    if sum != expected {
        return Err(format!("the numbers received add up to {sum}, not {expected}").into());
    }
    Ok(Sample { value: count as f64 / outcome.seconds, tail: None })
}

/// `0..count` in `parts` ranges.
fn shares(count: u64, parts: usize) -> Vec<std::ops::Range<u64>> {
    let parts = parts as u64;
    (0..parts).map(|part| count * part / parts..count * (part + 1) / parts).collect()
}

/// Encodings and decodings of the typed message a second, with no channel between them.
pub fn postcard_alone(count: u64) -> Result<Sample> {
    let mut order = Order::blank(0);
    let mut buffer = [0_u8; 256];
    let start = Instant::now();
    for number in 0..count {
        order.set_number(number);
        let bytes = postcard::to_slice(black_box(&order), &mut buffer)?;
        black_box(postcard::from_bytes::<Order>(black_box(bytes))?);
    }
    Ok(Sample { value: count as f64 / start.elapsed().as_secs_f64(), tail: None })
}

/// The most round trips of a trial.
pub const MOST_ROUND_TRIPS: usize = 1 << 18;

/// The median and 99th percentile of `count` round trips of 8 bytes, each after a pause of `pause`.
pub fn ping_pong<C: Contender<[u8]>>(home: Home, pause: Duration, count: u64) -> Result<Sample> {
    let contender = C::open(Shape::new(2, 8))?;
    let contender = &contender;
    let client = move || -> Result<_> { Ok((contender.sender(0)?, contender.receiver(1)?)) };
    let server = move || -> Result<_> { Ok((contender.sender(1)?, contender.receiver(0)?)) };
    round_trips(
        home,
        pause,
        count,
        client,
        |(sender, receiver), number| {
            sender.send(&number.to_ne_bytes())?;
            receiver.receive(|message| message.number())
        },
        server,
        |(sender, receiver)| {
            let number = receiver.receive(|message| message.number())?;
            sender.send(&number.to_ne_bytes())
        },
    )
}

/// Times `call` in one role against `answer` in another; the first tenth is not counted.
pub fn round_trips<A, B>(
    home: Home,
    pause: Duration,
    count: u64,
    client: impl FnOnce() -> Result<A> + std::marker::Send,
    mut call: impl FnMut(&mut A, u64) -> Result<u64> + std::marker::Send,
    server: impl FnOnce() -> Result<B> + std::marker::Send,
    mut answer: impl FnMut(&mut B) -> Result<()> + std::marker::Send,
) -> Result<Sample> {
    let count = count.min(MOST_ROUND_TRIPS as u64);
    let warm_up = count / 10;
    let times = Shared::<[AtomicU64; MOST_ROUND_TRIPS]>::new()?;
    let caller = |desk: &Desk<'_>| {
        let mut ends = client()?;
        desk.ready();
        for number in 0..warm_up + count {
            if !pause.is_zero() {
                sleep(pause);
            }
            let start = Instant::now();
            let answered = call(&mut ends, number)?;
            let time = start.elapsed();
            if answered != number {
                return Err(format!("the answer to {number} was {answered}").into());
            }
            if let Some(index) = number.checked_sub(warm_up) {
                times[index as usize].store(time.as_nanos() as u64, Ordering::Relaxed);
            }
        }
        desk.finish(0);
        Ok(())
    };
    let answerer = |desk: &Desk<'_>| {
        let mut ends = server()?;
        desk.ready();
        for _ in 0..warm_up + count {
            answer(&mut ends)?;
        }
        desk.finish(0);
        Ok(())
    };
    stage::run(home, vec![Box::new(caller), Box::new(answerer)])?;
    let mut times: Vec<u64> =
        times[..count as usize].iter().map(|time| time.load(Ordering::Relaxed)).collect();
    times.sort_unstable();
    let seconds = |rank: usize| times[rank.min(times.len() - 1)] as f64 / 1e9;
    Ok(Sample { value: seconds(times.len() / 2), tail: Some(seconds(times.len() * 99 / 100)) })
}

/// The share of one core that `waiters` roles use together while each waits for a message: from one lane that
/// they share, or each from its own.
pub fn idle<C: Contender<[u8]>>(home: Home, lanes: Lanes, waiters: usize, watch: Duration) -> Result<Sample> {
    let count = match lanes {
        Lanes::Shared => 1,
        Lanes::Own => waiters,
    };
    let contender = C::open(Shape { lanes: count, largest: 8, capacity: 8 })?;
    let contender = &contender;
    let roles = (0..waiters)
        .map(|index| -> Role<'_> {
            Box::new(move |desk: &Desk<'_>| {
                let mut receiver = contender.receiver(index % count)?;
                desk.ready();
                receiver.receive(|_| ())?;
                Err("a message came that nobody sent".into())
            })
        })
        .collect();
    Ok(Sample { value: stage::idle_share(home, roles, watch)?, tail: None })
}

/// Whether waiters can share a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lanes {
    /// All receive from one.
    Shared,
    /// Each has its own: the contender allows one receiver.
    Own,
}

/// Sends typed messages over a contender for bytes, with postcard.
pub struct Encoded<C>(C);

/// The sending end of [`Encoded`].
pub struct Encoder<S>(S, [u8; 256]);

/// The receiving end of [`Encoded`].
pub struct Decoder<R>(R);

impl<C: Contender<[u8]>> Contender<Order> for Encoded<C> {
    type Sender = Encoder<C::Sender>;
    type Receiver = Decoder<C::Receiver>;

    fn open(shape: Shape) -> Result<Self> {
        Ok(Encoded(C::open(shape)?))
    }

    fn sender(&self, lane: usize) -> Result<Self::Sender> {
        Ok(Encoder(self.0.sender(lane)?, [0; 256]))
    }

    fn receiver(&self, lane: usize) -> Result<Self::Receiver> {
        Ok(Decoder(self.0.receiver(lane)?))
    }
}

impl<S: Send<[u8]>> Send<Order> for Encoder<S> {
    fn send(&mut self, order: &Order) -> Result<()> {
        let bytes = postcard::to_slice(order, &mut self.1)?;
        self.0.send(bytes)
    }
}

impl<R: Receive<[u8]>> Receive<Order> for Decoder<R> {
    fn receive<T>(&mut self, look: impl FnOnce(&Order) -> T) -> Result<T> {
        let order: Order = self.0.receive(|bytes| postcard::from_bytes(bytes))??;
        Ok(look(order.borrow()))
    }
}
