//! Putting messages.

use std::sync::Arc;

use super::{Damaged, PutError, Queue, Reservation, Shared, wait_until};
use crate::os::clock::Deadline;
use crate::os::cpu;
use crate::ring::{Content, INLINE_MAX, Pushed, RingError, Side};

/// Messages that [`Queue::put_many`] takes from its iterator at a time.
const GROUP: usize = 64;

impl Queue {
    /// Puts a message, waiting for room until `deadline`. Only a queue with a bound on its messages ever waits;
    /// without one a put fails at `max_bytes`.
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
            let mut reservation = self.reserve(message.len())?;
            reservation.copy_from_slice(message);
            return reservation.commit(deadline);
        }
        self.shared.put(Content::Inline(message), deadline)
    }

    /// Space for a message of `len` bytes, to be written where it will lie and then put by
    /// [`Reservation::commit`]. Dropped or lost with its process, it was never there.
    ///
    /// A message of up to [`INLINE_MAX`] bytes is written to memory of this process first, and copied on commit.
    ///
    /// # Errors
    /// [`PutError::Memory`].
    pub fn reserve(&self, len: usize) -> Result<Reservation, PutError> {
        self.shared.mend()?;
        match Reservation::new(Arc::clone(&self.shared), len) {
            Err(RingError::Limit { .. }) => {
                self.shared.ring.sweep()?;
                Ok(Reservation::new(Arc::clone(&self.shared), len)?)
            }
            other => Ok(other?),
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
                let count = self.shared.put_batch(rest).map_err(|(n, error)| (put + n, error))?;
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
        match self.try_put(content, true) {
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
                    self.ring.sweep()?;
                }
                Err(error) => return Err(error),
            }
            attempt = self.try_put(content, patience != 0);
        }
    }

    #[inline(always)]
    fn try_put(&self, content: Content<'_>, patient: bool) -> Result<Pushed, PutError> {
        let mut session = self.ring.put_session()?;
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
    fn put_batch(&self, messages: &[&[u8]]) -> Result<usize, (usize, PutError)> {
        let mut put = 0;
        let mut session = self.ring.put_session().map_err(|error| (0, error.into()))?;
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
