//! Putting messages.

use std::sync::Arc;

use procession_sys::clock::{self, Deadline};
use procession_sys::cpu;

use super::{Damaged, PutError, Queue, Reservation, Shared, wait_until};
use crate::ring::{Content, INLINE_MAX, Pushed, RingError, Side, Usage};
use crate::sync::SLICE;

/// Messages that [`Queue::put_many`] takes from its iterator at a time.
const GROUP: usize = 64;

/// Why a wait for bytes ends early.
enum Hopeless {
    /// Nothing is in use any more that could be given back.
    Limit,
    Damaged(Damaged),
}

impl From<Damaged> for Hopeless {
    fn from(damaged: Damaged) -> Self {
        Hopeless::Damaged(damaged)
    }
}

impl Queue {
    /// Puts a message, waiting for room until `deadline`. Only a queue that was made with a bound
    /// on its messages or bytes ever waits. Without one a put fails when messages take as much
    /// memory as they may. A message that has no room in an empty queue fails at once, with any
    /// bound.
    ///
    /// When this returns `Ok`, exactly one get will have the message, whatever becomes of this process. A process
    /// killed before has either put it or not, never a part.
    ///
    /// # Errors
    /// [`PutError`]; the queue is as before.
    #[inline]
    pub fn put(&self, message: &[u8], deadline: Deadline) -> Result<(), PutError> {
        self.shared.mend()?;
        if message.len() > INLINE_MAX {
            let mut reservation = self.reserve_until(message.len(), deadline)?;
            reservation.copy_from_slice(message);
            return reservation.commit(deadline);
        }
        self.shared.put(Content::Inline(message), deadline)
    }

    /// Space for a message of `len` bytes, to be written where it will lie and then put by
    /// [`Reservation::commit`]. Dropped or lost with its process, it was never there.
    ///
    /// A message of up to [`INLINE_MAX`] bytes is written to memory of this process first, and
    /// copied on commit. For a larger one this waits for room in bytes, if the queue was made with
    /// a bound on them.
    ///
    /// # Errors
    /// As [`Queue::put`].
    pub fn reserve(&self, len: usize) -> Result<Reservation, PutError> {
        self.reserve_until(len, Deadline::Never)
    }

    /// [`Queue::reserve`] that waits until `deadline`.
    ///
    /// # Errors
    /// As [`Queue::put`].
    pub fn reserve_until(&self, len: usize, deadline: Deadline) -> Result<Reservation, PutError> {
        let shared = &self.shared;
        shared.mend()?;
        let (mut swept, mut last) = (false, false);
        loop {
            let before = shared.ring.usage();
            match Reservation::new(Arc::clone(shared), len, deadline) {
                // Perhaps dead processes have the memory.
                Err(RingError::Limit { .. }) if !swept => {
                    swept = true;
                    shared.sweep_briefly()?;
                }
                Err(limit @ RingError::Limit { .. }) => {
                    last = shared.wait_for_bytes(before, limit, false, deadline, last)?;
                }
                other => return Ok(other?),
            }
        }
    }

    /// Puts messages one after another, taking the lock and waking the other side once for up to 64 as far as there is
    /// room. Waits for room until `deadline`. Other producers' messages may come in between where it waits.
    ///
    /// # Errors
    /// How many were put, and why not the next one. Those before it are in the queue.
    pub fn put_many<'a>(
        &self,
        messages: impl IntoIterator<Item = &'a [u8]>,
        deadline: Deadline,
    ) -> Result<usize, (usize, PutError)> {
        self.shared.mend().map_err(|error| (0, error.into()))?;
        let mut messages = messages.into_iter();
        let mut put = 0;
        // The caller's iterator runs outside the lock: it may take its time, panic, or use the queue.
        let mut group: [&[u8]; GROUP] = [&[]; GROUP];
        loop {
            let mut filled = 0;
            while filled < GROUP
                && let Some(message) = messages.next()
            {
                group[filled] = message;
                filled += 1;
            }
            let mut rest = &group[..filled];
            while !rest.is_empty() {
                let count = self.shared.put_batch(rest, deadline).map_err(|(n, error)| (put + n, error))?;
                put += count;
                rest = &rest[count..];
                // The next one is large, or there is no room.
                if let Some((message, after)) = rest.split_first() {
                    self.put(message, deadline).map_err(|error| (put, error))?;
                    put += 1;
                    rest = after;
                }
            }
            if filled < GROUP {
                return Ok(put);
            }
        }
    }
}

impl Shared {
    #[inline]
    pub(super) fn put(&self, content: Content<'_>, deadline: Deadline) -> Result<(), PutError> {
        self.attend();
        match self.try_put(content, true, deadline) {
            Ok(Pushed::Yes) => Ok(()),
            otherwise => self.put_after(otherwise, content, deadline),
        }
    }

    /// [`Shared::put`] after the first attempt, of which this came.
    #[cold]
    fn put_after(
        &self,
        mut attempt: Result<Pushed, PutError>,
        content: Content<'_>,
        deadline: Deadline,
    ) -> Result<(), PutError> {
        /// How often consumers may have made room that is gone by the time the lock is taken.
        const PATIENCE: u32 = 64;
        let mut patience = PATIENCE;
        let mut swept = false;
        let mut last = false;
        let mut before = self.ring.usage();
        loop {
            match attempt {
                Ok(Pushed::Yes) => return Ok(()),
                Ok(Pushed::Crowded) if self.consumers_make_room() => patience -= 1,
                Ok(Pushed::Crowded) => patience = 0,
                // Others had the room that this process saw.
                Ok(Pushed::Full) if last => return Err(PutError::Full),
                Ok(Pushed::Full) => {
                    self.wait_for_room(deadline)?;
                    last = deadline.passed();
                }
                // Perhaps dead processes have the memory.
                Err(PutError::Memory(RingError::Limit { .. })) if !swept => {
                    swept = true;
                    self.sweep_briefly()?;
                }
                Err(PutError::Memory(limit @ RingError::Limit { .. })) => {
                    last = self.wait_for_bytes(before, limit, true, deadline, last)?;
                }
                Err(error) => return Err(error),
            }
            before = self.ring.usage();
            attempt = self.try_put(content, patience != 0, deadline);
        }
    }

    #[inline(always)]
    fn try_put(&self, content: Content<'_>, patient: bool, deadline: Deadline) -> Result<Pushed, PutError> {
        let mut session = self.ring.put_session(deadline)?;
        if self.ring.shutdown_state() != 0 {
            return Err(PutError::ShutDown);
        }
        let pushed = session.push(content, patient)?;
        if pushed == Pushed::Yes {
            session.publish();
        }
        drop(session);
        if pushed == Pushed::Yes {
            self.ring.control().waiting.not_empty.wake_settled(1);
        }
        Ok(pushed)
    }

    /// Puts what there is room for at once, up to the first large message; how many.
    fn put_batch(&self, messages: &[&[u8]], deadline: Deadline) -> Result<usize, (usize, PutError)> {
        self.attend();
        let mut put = 0;
        let mut session = self.ring.put_session(deadline).map_err(|error| (0, error.into()))?;
        if self.ring.shutdown_state() != 0 {
            return Err((0, PutError::ShutDown));
        }
        let mut failed = None;
        for message in messages.iter().take_while(|message| message.len() <= INLINE_MAX) {
            match session.push(Content::Inline(message), false) {
                Ok(Pushed::Yes) => put += 1,
                // Without memory too, a put of its own knows what to do.
                Ok(Pushed::Full | Pushed::Crowded) | Err(RingError::Limit { .. }) => break,
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        session.publish();
        drop(session);
        if put > 0 {
            self.ring.control().waiting.not_empty.wake_settled(u32::try_from(put).unwrap_or(u32::MAX));
        }
        match failed {
            None => Ok(put),
            Some(error) => Err((put, error.into())),
        }
    }

    #[cold]
    fn wait_for_room(&self, deadline: Deadline) -> Result<(), PutError> {
        if self.ring.settings().max_messages == 0 {
            // The ring's bytes end long before the messages that a queue without a bound can count.
            return Err(Damaged("the count of messages").into());
        }
        self.ring.refresh_if_dull(Side::Room)?;
        let ready = || self.ring.room().max(self.ring.shutdown_state());
        let queue = &self.ring.control().waiting.not_full;
        if wait_until(queue, &self.put_spinner, deadline, ready, |_| self.mend())? {
            Ok(())
        } else {
            Err(PutError::Full)
        }
    }

    /// Waits until bytes may have been given back, for a message that did not fit into what was in
    /// use `before`; `in_ring`, if it is to lie in the ring, where each message that is taken
    /// leaves room. Whether the next attempt is the last, as the deadline has passed.
    ///
    /// # Errors
    /// `limit` where puts do not wait for bytes, or none will be given back that help;
    /// [`PutError::Full`] when this attempt was the `last`.
    #[cold]
    fn wait_for_bytes(
        &self,
        before: Usage,
        limit: RingError,
        in_ring: bool,
        deadline: Deadline,
        last: bool,
    ) -> Result<bool, PutError> {
        let ring = &self.ring;
        let RingError::Limit { used, needed, max_bytes } = limit else { return Err(limit.into()) };
        // What the attempt itself found in use, which may have been more.
        let before = before.with_bytes(used);
        if !ring.settings().waits_for_bytes || !ring.fits_alone(needed, max_bytes) {
            return Err(limit.into());
        }
        if !ring.may_fit(needed, max_bytes)? {
            return match ring.has_more_room(before, in_ring) {
                // Other processes had the room at the attempt, and have given it back since.
                true if last => Err(PutError::Full),
                true => Ok(deadline.passed()),
                false => Err(limit.into()),
            };
        }
        ring.note_shortage(before);
        ring.refresh_if_dull(Side::Room)?;
        if last {
            return Err(PutError::Full);
        }
        let ready = || u32::from(ring.has_more_room(before, in_ring)) | ring.shutdown_state();
        let waiting = &ring.control().waiting;
        let queue = if in_ring { &waiting.not_full } else { &waiting.bytes_free };
        let look = |idle: bool| {
            self.mend()?;
            // One at a time looks whether dead processes have some, or died when nothing was left
            // to wait for.
            if idle && ring.is_time_to_look(clock::now_ms(), SLICE.as_millis() as u64) {
                self.sweep_briefly()?;
            }
            if ring.may_fit(needed, max_bytes)? { Ok(()) } else { Err(Hopeless::Limit) }
        };
        match wait_until(queue, &self.put_spinner, deadline, ready, look) {
            Ok(true) if ring.shutdown_state() != 0 => Err(PutError::ShutDown),
            Ok(true) => Ok(deadline.passed()),
            Ok(false) => Err(PutError::Full),
            // Once more, for it may have come with what was hopeless.
            Err(Hopeless::Limit) => Ok(false),
            Err(Hopeless::Damaged(damaged)) => Err(damaged.into()),
        }
    }

    /// Waits for consumers to make room in a ring of a good size, for as long as they take several messages in each
    /// short look. False when it is better to make a larger one.
    #[cold]
    fn consumers_make_room(&self) -> bool {
        /// A pause takes 4 to 50 ns, so these take 0.3 to 3 µs.
        const PAUSES: u32 = 64;
        const ENOUGH: u32 = 4;
        /// Room for so many messages is worth taking the lock again.
        const BATCH: u32 = 512;
        if cpu::count() == 1 {
            return false;
        }
        let start = self.ring.head().count;
        let mut last = start;
        loop {
            for _ in 0..PAUSES {
                std::hint::spin_loop();
            }
            let now = self.ring.head().count;
            if now.wrapping_sub(start) >= BATCH {
                return true;
            }
            if now.wrapping_sub(last) < ENOUGH {
                return false;
            }
            last = now;
        }
    }
}
