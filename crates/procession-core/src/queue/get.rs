//! Taking messages.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use procession_sys::clock::{self, Deadline};
use procession_sys::identity::Identity;
use procession_sys::interrupt;
use procession_sys::presence::Presence;
use procession_sys::process_owned::OwnedByProcess;

use super::{Damaged, Delivery, GetError, Message, Peeked, Queue, Shared, unless_busy, wait_until};
use crate::ring::{GetSession, ON_ITS_WAY, RingError, Side, Take, Taken};
use crate::shm::Header;
use crate::sync::{SLICE, atomic::Ordering};

/// Memory for later large messages is given back by whoever has waited a slice in vain, above so many bytes.
const KEPT_WHEN_IDLE: u64 = 2 << 20;

impl Queue {
    /// Takes the next message and appends it to `out`, waiting for one until `deadline`.
    ///
    /// A process killed in here has taken at most this one message. On a queue that counts tasks, the task is
    /// unfinished until [`Queue::task_done`].
    ///
    /// # Errors
    /// [`GetError`]; nothing is taken.
    #[inline]
    pub fn get(&self, out: &mut Vec<u8>, deadline: Deadline) -> Result<(), GetError> {
        match self.shared.get(Take::Plain, out, deadline)? {
            Taken::Copied => {}
            Taken::Block(block) | Taken::Left(block, _) => {
                out.extend_from_slice(&Message::in_block(Arc::clone(&self.shared), block)?)
            }
        }
        Ok(())
    }

    /// Takes the next message, left where it lies if it is large, waiting for one until `deadline`.
    ///
    /// # Errors
    /// As [`Queue::get`].
    pub fn get_message(&self, deadline: Deadline) -> Result<Message, GetError> {
        let mut bytes = Vec::new();
        match self.shared.get(Take::Plain, &mut bytes, deadline)? {
            Taken::Copied => Ok(Message::copied(bytes)),
            Taken::Block(block) | Taken::Left(block, _) => {
                Ok(Message::in_block(Arc::clone(&self.shared), block)?)
            }
        }
    }

    /// Takes the next message, waiting for one until `deadline`: appended to `out` and `None`, or left where it lies if it is
    /// large. For who takes many and keeps one buffer for the small ones.
    ///
    /// # Errors
    /// As [`Queue::get`].
    #[inline]
    pub fn get_into(&self, out: &mut Vec<u8>, deadline: Deadline) -> Result<Option<Message>, GetError> {
        match self.shared.get(Take::Plain, out, deadline)? {
            Taken::Copied => Ok(None),
            Taken::Block(block) | Taken::Left(block, _) => {
                Ok(Some(Message::in_block(Arc::clone(&self.shared), block)?))
            }
        }
    }

    /// Takes the next message as a delivery to be acknowledged, waiting for one until `deadline`. What an earlier
    /// consumer left comes first.
    ///
    /// # Errors
    /// As [`Queue::get`].
    ///
    /// # Panics
    /// On a queue that was not made joinable.
    pub fn get_delivery(&self, deadline: Deadline) -> Result<Delivery, GetError> {
        assert!(self.is_joinable(), "deliveries need a joinable queue");
        self.delivery(self.shared.get(Take::Delivery, &mut Vec::new(), deadline)?)
    }

    fn delivery(&self, taken: Taken) -> Result<Delivery, GetError> {
        let (block, left_by) = match taken {
            Taken::Block(block) => (block, None),
            Taken::Left(block, left_by) => (block, left_by),
            Taken::Copied => return Err(Damaged("a delivery outside a block").into()),
        };
        Ok(Delivery::in_block(Arc::clone(&self.shared), block, left_by)?)
    }

    /// Takes a delivery that an earlier consumer left by its death or a drop, and that is `wanted`;
    /// does not wait for one. `wanted` gets the message's first bytes, up to [`super::BEGINNING`],
    /// and how often it was left. It is called with a lock held, for which this function waits
    /// until `deadline`.
    ///
    /// # Errors
    /// As [`Queue::get`], but without such a delivery it returns `None`. [`GetError::Empty`] means
    /// that a stopped process kept this one from looking.
    ///
    /// # Panics
    /// On a queue that was not made joinable.
    pub fn get_left(
        &self,
        deadline: Deadline,
        mut wanted: impl FnMut(&[u8], u32) -> bool,
    ) -> Result<Option<Delivery>, GetError> {
        assert!(self.is_joinable(), "deliveries need a joinable queue");
        let ring = &self.shared.ring;
        if ring.somebody_died_with_a_lock() || ring.somebody_died_with_a_delivery()? {
            ring.sweep(deadline)?;
        }
        // A child forked by `wanted` would continue with its parent's locks.
        let _here = OwnedByProcess::new();
        let mut session = ring.get_session(deadline)?;
        let Some(taken) = session.next_left(&mut wanted)? else { return Ok(None) };
        session.publish();
        drop(session);
        self.delivery(taken).map(Some)
    }

    /// Calls `read` for every delivery that was taken and is not acknowledged, then `then` with the
    /// results. `read` gets the holder, dead or alive, and the message's first bytes, up to
    /// [`super::BEGINNING`]. Both are called with a lock held, for which this function waits until
    /// `deadline`. Until `then` returns no process takes or acknowledges a delivery, unless this
    /// one is stopped.
    ///
    /// # Errors
    /// [`RingError`]: out of mappings, damaged, or the lock was not acquired until the deadline.
    pub fn with_deliveries<T, R>(
        &self,
        deadline: Deadline,
        read: impl FnMut(Identity, &[u8]) -> Option<T>,
        then: impl FnOnce(Vec<T>) -> R,
    ) -> Result<R, RingError> {
        self.shared.ring.with_deliveries(deadline, read, then)
    }

    /// Calls `read` for every delivery that is out, or was left and not taken again. It uses no lock: a process that is stopped
    /// with one does not keep this one from looking. Each delivery was so at an instant of the call.
    ///
    /// # Errors
    /// [`RingError`]: out of mappings, or damaged.
    pub fn peek_deliveries<T>(&self, read: impl FnMut(Peeked<'_>) -> Option<T>) -> Result<Vec<T>, RingError> {
        self.shared.ring.peek_deliveries(read)
    }

    /// Takes up to `max` messages that are there, waiting for the first until `deadline`; takes the lock and
    /// wakes the other side once.
    ///
    /// # Errors
    /// As [`Queue::get`].
    pub fn get_many(&self, max: usize, deadline: Deadline) -> Result<Vec<Message>, GetError> {
        let mut batch = Separate::default();
        self.get_batch(max, &mut batch, deadline)?;
        Ok(batch.messages)
    }

    /// Takes up to `max` messages that are there, as [`Queue::get_many`], and adds them to `batch`: small ones lie one after
    /// another, large ones where they are. For who takes many and keeps one batch.
    ///
    /// # Errors
    /// As [`Queue::get`].
    pub fn get_many_into(&self, max: usize, batch: &mut Batch, deadline: Deadline) -> Result<(), GetError> {
        self.get_batch(max, batch, deadline)
    }

    fn get_batch(&self, max: usize, batch: &mut impl Collect, deadline: Deadline) -> Result<(), GetError> {
        let mut last = false;
        while max != 0 && self.try_get_batch(max, batch, deadline)? == 0 {
            last = self.shared.wait_once_more(deadline, last)?;
        }
        Ok(())
    }

    /// How many there were.
    fn try_get_batch(
        &self,
        max: usize,
        batch: &mut impl Collect,
        deadline: Deadline,
    ) -> Result<usize, GetError> {
        self.shared.attend();
        self.shared.mend()?;
        let ring = &self.shared.ring;
        if ring.shutdown_state() == 2 {
            return Err(GetError::ShutDown);
        }
        let mut session = ring.get_session(deadline)?;
        // What is there now; a peer that goes on adding to it shall not keep this process here for ever.
        let there = (session.backlog()? as usize).saturating_add(ring.returned() as usize);
        let mut count = 0;
        while count < max.min(there) {
            match session.next(Take::Plain, batch.room()) {
                Ok(None) => break,
                Ok(Some(Taken::Copied)) => batch.copied(),
                Ok(Some(Taken::Block(block) | Taken::Left(block, _))) => {
                    batch.in_place(Message::in_block(Arc::clone(&self.shared), block)?);
                }
                // What is taken is not lost for it; the next get meets it again.
                Err(_) if count != 0 => break,
                Err(error) => return Err(error.into()),
            }
            count += 1;
            if ring.settings().joinable {
                // One message at a time, so that a death can be told from a taken task.
                session.publish();
            }
        }
        if count == 0 {
            return Ok(0);
        }
        session.publish();
        if session.may_shrink() {
            give_memory_back(session);
        } else {
            drop(session);
        }
        self.shared.wake_producers(u32::try_from(count).unwrap_or(u32::MAX));
        Ok(count)
    }
}

/// Where a batch of messages goes.
trait Collect {
    /// What the next small message is appended to.
    fn room(&mut self) -> &mut Vec<u8>;
    /// A message was appended.
    fn copied(&mut self);
    /// A message was taken that lies elsewhere.
    fn in_place(&mut self, message: Message);
}

/// Each message by itself.
#[derive(Default)]
struct Separate {
    next: Vec<u8>,
    messages: Vec<Message>,
}

impl Collect for Separate {
    fn room(&mut self) -> &mut Vec<u8> {
        &mut self.next
    }

    fn copied(&mut self) {
        self.messages.push(Message::copied(std::mem::take(&mut self.next)));
    }

    fn in_place(&mut self, message: Message) {
        self.messages.push(message);
    }
}

/// Messages that [`Queue::get_many_into`] has taken.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    /// Where the last small message ends in them.
    end: usize,
    entries: RefCell<VecDeque<Entry>>,
}

#[derive(Debug)]
enum Entry {
    /// There the message lies in `bytes`.
    Copied(Range<usize>),
    InPlace(Message),
}

/// A message of a [`Batch`].
#[derive(Debug)]
pub enum Part<'a> {
    /// A small one.
    Copied(&'a [u8]),
    /// A large one, in the queue's memory.
    InPlace(Message),
}

impl Batch {
    /// No messages.
    pub const fn new() -> Self {
        Batch { bytes: Vec::new(), end: 0, entries: RefCell::new(VecDeque::new()) }
    }

    /// How many messages there are.
    pub fn len(&self) -> usize {
        self.entries.borrow().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.borrow().is_empty()
    }

    /// Takes the first message out that is left.
    pub fn take(&self) -> Option<Part<'_>> {
        Some(match self.entries.borrow_mut().pop_front()? {
            Entry::Copied(place) => Part::Copied(&self.bytes[place]),
            Entry::InPlace(message) => Part::InPlace(message),
        })
    }

    /// Takes the messages out, first to last. Memory is kept for the next ones.
    pub fn drain(&mut self) -> impl Iterator<Item = Part<'_>> {
        let bytes = &self.bytes;
        self.entries.get_mut().drain(..).map(move |entry| match entry {
            Entry::Copied(place) => Part::Copied(&bytes[place]),
            Entry::InPlace(message) => Part::InPlace(message),
        })
    }

    /// Drops what is left, and the bytes of what was taken out.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.end = 0;
        self.entries.get_mut().clear();
    }
}

impl Collect for Batch {
    fn room(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    fn copied(&mut self) {
        let start = std::mem::replace(&mut self.end, self.bytes.len());
        self.entries.get_mut().push_back(Entry::Copied(start..self.end));
    }

    fn in_place(&mut self, message: Message) {
        self.entries.get_mut().push_back(Entry::InPlace(message));
    }
}

impl Shared {
    #[inline]
    fn get(&self, take: Take, out: &mut Vec<u8>, deadline: Deadline) -> Result<Taken, GetError> {
        self.attend();
        self.mend()?;
        match self.try_get(take, out, deadline)? {
            Some(taken) => Ok(taken),
            None => self.wait_and_get(take, out, deadline),
        }
    }

    /// [`Shared::get`] after the first attempt, which found nothing.
    #[cold]
    fn wait_and_get(&self, take: Take, out: &mut Vec<u8>, deadline: Deadline) -> Result<Taken, GetError> {
        let mut last = false;
        loop {
            last = self.wait_once_more(deadline, last)?;
            self.mend()?;
            if let Some(taken) = self.try_get(take, out, deadline)? {
                return Ok(taken);
            }
        }
    }

    /// [`Shared::wait_for_message`], unless the attempt after it was the `last`; whether the next is, as the deadline has
    /// passed. Others may take each message that this process sees, or words that contradict each other show one where
    /// there is none.
    fn wait_once_more(&self, deadline: Deadline, last: bool) -> Result<bool, GetError> {
        if last {
            return Err(GetError::Empty);
        }
        self.ring.refresh_if_dull(Side::Messages)?;
        self.wait_for_message(deadline)?;
        Ok(deadline.passed())
    }

    #[inline(always)]
    fn try_get(&self, take: Take, out: &mut Vec<u8>, deadline: Deadline) -> Result<Option<Taken>, GetError> {
        let ring = &self.ring;
        if ring.shutdown_state() == 2 {
            return Err(GetError::ShutDown);
        }
        let mut session = ring.get_session(deadline)?;
        let Some(taken) = session.next(take, out)? else { return Ok(None) };
        session.publish();
        if session.may_shrink() {
            give_memory_back(session);
        } else {
            drop(session);
        }
        self.wake_producers(1);
        Ok(Some(taken))
    }

    /// Wakes producers that wait for room, for the given number of messages.
    #[inline(always)]
    fn wake_producers(&self, count: u32) {
        let settings = self.ring.settings();
        if settings.max_messages != 0 || settings.waits_for_bytes {
            // Where they wait for bytes, each may need another amount.
            let count = if settings.waits_for_bytes { u32::MAX } else { count };
            self.ring.control().waiting.not_full.wake_settled(count);
        }
    }

    /// Waits until a get may succeed. [`GetError::Empty`] after the deadline, [`GetError::ShutDown`] when nothing
    /// more will come.
    #[cold]
    fn wait_for_message(&self, deadline: Deadline) -> Result<(), GetError> {
        let ring = &self.ring;
        let ready = || ring.look_for_message().max(ring.is_over().into());
        let queue = &ring.control().waiting.not_empty;
        if deadline == Deadline::Now && ring.deliveries_are_held() {
            // Whoever only asks and never sleeps finds the dead here.
            self.look_around(true)?;
        }
        let waited = wait_until(queue, &self.get_spinner, deadline, ready, |idle| {
            self.look_around(idle)?;
            if idle && self.waits_in_vain(deadline)? { Err(GetError::Abandoned) } else { Ok(()) }
        });
        if matches!(waited, Err(GetError::Abandoned)) {
            return Err(GetError::Abandoned);
        }
        // Before a message is taken, or the caller does something else.
        self.attend();
        let found = waited?;
        if ring.has_message() {
            Ok(())
        } else if ring.is_over() {
            Err(GetError::ShutDown)
        } else if found {
            // Another consumer was faster.
            if deadline.passed() { Err(GetError::Empty) } else { Ok(()) }
        } else if deadline != Deadline::Now && deadline.passed() && self.learn_of_the_end()? {
            Err(GetError::Abandoned)
        } else {
            Err(GetError::Empty)
        }
    }

    /// Whether no process is left to put what this thread waits for. Called after it has waited a
    /// slice.
    fn waits_in_vain(&self, deadline: Deadline) -> Result<bool, Damaged> {
        let Some(presence) = &self.presence else { return Ok(false) };
        // With a deadline it may put after it, and another thread may put at any time.
        if deadline == Deadline::Never && !presence.is_away() && interrupt::is_only_thread() {
            presence.leave();
        }
        self.learn_of_the_end()
    }

    /// Whether the queue is empty and no process is left to put. If so, this process no longer
    /// counts as a producer until it puts or gets.
    pub(super) fn learn_of_the_end(&self) -> Result<bool, Damaged> {
        let Some(presence) = &self.presence else { return Ok(false) };
        let is_abandoned = self.is_abandoned(presence)?;
        if is_abandoned && !presence.is_away() {
            presence.leave();
        }
        Ok(is_abandoned)
    }

    fn is_abandoned(&self, presence: &Presence) -> Result<bool, Damaged> {
        let ring = &self.ring;
        let tail = ring.tail();
        let is_on_its_way = || presence.is_locked(ON_ITS_WAY) && !Header::all_opened(ring.fd());
        // A process takes its lock before it takes a message or opens a handle. If the second look
        // finds no other process, and no message was put since before the first look, no process
        // was there in between.
        let is_alone = !presence.has_company()
            && !ring.has_message()
            && !is_on_its_way()
            && !presence.has_company()
            && ring.tail() == tail
            && !ring.has_message();
        // What another process has taken may come back when it dies.
        Ok(is_alone && !ring.may_inherit_a_delivery()?)
    }

    /// Discards all that is queued, after an immediate shutdown.
    pub(super) fn discard_all(&self) -> Result<(), Damaged> {
        let ring = &self.ring;
        let left_to_others = |error: &RingError| {
            // Whoever waits in `join` goes on; nobody gets what is left.
            tracing::debug!(%error, "messages of a queue that is shut down could not be discarded yet");
            Ok(())
        };
        let mut scratch = Vec::new();
        let there = u64::from(ring.plausible_backlog(ring.head())?.0) + u64::from(ring.returned());
        for _ in 0..there {
            scratch.clear();
            let mut session = match ring.get_session(Deadline::Now) {
                Ok(session) => session,
                Err(RingError::Damaged(damaged)) => return Err(damaged),
                Err(error) => return left_to_others(&error),
            };
            let taken = match session.next(Take::Plain, &mut scratch) {
                Ok(Some(taken)) => taken,
                Ok(None) => return Ok(()),
                Err(RingError::Damaged(damaged)) => return Err(damaged),
                Err(error) => return left_to_others(&error),
            };
            session.publish();
            drop(session);
            if let Taken::Block(block) | Taken::Left(block, _) = taken {
                ring.free(block)?;
            }
            if ring.settings().joinable {
                ring.task_done()?;
            }
        }
        Ok(())
    }

    /// What a process does between sleeps; if it is `idle`, for it has slept a whole slice, it also gives memory back. False when
    /// another looked a moment ago.
    pub(super) fn look_around(&self, idle: bool) -> Result<bool, Damaged> {
        self.mend()?;
        // One process at a time looks, however many wait.
        if !self.ring.is_time_to_look(clock::now_ms(), SLICE.as_millis() as u64) {
            return Ok(false);
        }
        if self.ring.shutdown_state() == 2 && self.ring.has_message() {
            // Who was to discard it died, or a delivery came back since. Its tasks count as done.
            self.discard_all()?;
        }
        let memory = &self.ring.control().memory;
        // A wake that found nothing is no idleness: what is given back then would be asked for again at once.
        let much = idle && memory.used.load(Ordering::Relaxed) > KEPT_WHEN_IDLE;
        if self.ring.somebody_died_with_a_lock() || self.ring.somebody_died_with_a_delivery()? || much {
            self.sweep_briefly()?;
        }
        if much {
            self.shrink()?;
        }
        if idle && memory.cached.load(Ordering::Relaxed) > KEPT_WHEN_IDLE {
            unless_busy(self.ring.trim(Deadline::Now))?;
        }
        Ok(true)
    }

    /// Gives a large ring back that was drained by a process which died, or was not alone, just then.
    pub(super) fn shrink(&self) -> Result<(), Damaged> {
        match self.ring.get_session(Deadline::Now) {
            Ok(session) => give_memory_back(session),
            Err(RingError::Damaged(damaged)) => return Err(damaged),
            Err(error) => keeps_its_memory(&error),
        }
        self.ring.bytes_were_freed()
    }
}

/// After the last message was taken, which no error may take from the caller.
#[cold]
fn give_memory_back(session: GetSession<'_>) {
    // Without memory for a smaller segment, or room to map it, the large one stays.
    if let Err(error) = session.shrink() {
        keeps_its_memory(&error);
    }
}

fn keeps_its_memory(error: &RingError) {
    tracing::debug!(%error, "a drained queue keeps its memory");
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::hostile::dead;
    use crate::queue::QueueOptions;
    use crate::ring::layout::BlockState;

    /// A queue whose last message was taken by a process that was killed right after.
    fn drained() -> Queue {
        let queue = Queue::create(&QueueOptions::new()).unwrap();
        for _ in 0..100_000 {
            queue.put(&[1; 100], Deadline::Now).unwrap();
        }
        let mut session = queue.shared.ring.get_session(Deadline::Never).unwrap();
        while session.next(Take::Plain, &mut Vec::new()).unwrap().is_some() {}
        session.publish();
        drop(session);
        assert!(queue.is_empty() && queue.memory_used() > 8 << 20);
        queue
    }

    #[test]
    fn a_ring_that_was_drained_by_the_dead_is_given_back() {
        let trimmed = drained();
        trimmed.trim().unwrap();
        assert!(trimmed.memory_used() < 1 << 20);
        trimmed.put(b"on", Deadline::Now).unwrap();
        assert_eq!(*trimmed.get_message(Deadline::Now).unwrap(), *b"on");

        let idle = drained();
        let waited = idle.get_message(Deadline::after(Duration::from_millis(300)));
        assert!(matches!(waited, Err(GetError::Empty)));
        assert!(idle.memory_used() < 1 << 20);
    }

    /// A consumer died between the two words that say that its task is done. Nobody gets, puts or takes a lock after that.
    #[test]
    fn a_join_finds_that_the_dead_had_done_the_last_task() {
        let queue = Queue::create(&QueueOptions::new().joinable(true)).unwrap();
        queue.put(b"one", Deadline::Now).unwrap();
        let ring = &queue.shared.ring;
        let Taken::Block(block) = queue.shared.get(Take::Delivery, &mut Vec::new(), Deadline::Now).unwrap()
        else {
            panic!("a delivery lies in a block");
        };
        ring.descriptor(block).unwrap().set_state(BlockState::Free, None);
        ring.control().memory.lock.abandon(dead());
        assert_eq!(queue.unfinished(), 1);
        queue.join(Deadline::after(Duration::from_secs(60))).unwrap();
    }
}
