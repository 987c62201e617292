//! Messages that are acknowledged.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use procession_sys::identity::Identity;
use procession_sys::process_owned::OwnedByProcess;

use super::owned_block::{Lent, OwnedBlock, report};
use super::{Damaged, Message, Shared};
use crate::ring::RingError;
use crate::sync::atomic::Ordering;

/// A message that is this process's to work on and to acknowledge. Dereferences to its bytes.
///
/// When the process dies before [`Delivery::done`], or drops the delivery, the message is handed
/// out again, before those that wait in the queue. The delivery stays with the process that took
/// it: a forked child's copy panics when it is dereferenced, and its drop does nothing.
#[must_use = "a delivery that is dropped is handed out again"]
pub struct Delivery {
    block: OwnedBlock,
    left_by: Option<Identity>,
    settled: bool,
}

impl Delivery {
    pub(super) fn in_block(
        shared: Arc<Shared>,
        number: u32,
        left_by: Option<Identity>,
    ) -> Result<Self, Damaged> {
        Ok(Delivery { block: OwnedBlock::taken(shared, number)?, left_by, settled: false })
    }

    /// The process that had it last, if that died with it.
    pub fn left_by(&self) -> Option<Identity> {
        self.left_by
    }

    /// How often the message was handed out before, to consumers that died or dropped the delivery.
    pub fn earlier_attempts(&self) -> u32 {
        let ring = &self.block.shared.ring;
        ring.descriptor(self.block.number).map_or(0, |descriptor| descriptor.attempts.load(Ordering::Relaxed))
    }

    /// Gives up access to the bytes, which are empty from now on. The delivery is acknowledged or
    /// handed out again as before, and a fork meanwhile is not refused for its sake.
    pub fn release_bytes(&mut self) {
        self.block.len = 0;
        self.block.owner.uncount();
    }

    /// Acknowledges: the task is done.
    ///
    /// # Errors
    /// [`RingError::Inherited`] in a forked child; [`RingError::Damaged`].
    pub fn done(mut self) -> Result<(), RingError> {
        self.block.check_owner()?;
        self.settled = true;
        let shared = &self.block.shared;
        shared.ring.acknowledge(self.block.number)?;
        shared.ring.control().waiting.all_done.wake(u32::MAX);
        shared.ring.bytes_were_freed()?;
        Ok(shared.tell_of_the_end()?)
    }

    /// Lends the message out, to be used as one that was taken: read, mapped to be written to, or
    /// kept. The task stays to be acknowledged; where it is begun again meanwhile, it is with what
    /// was written. Until it is mapped ([`Message::into_mapping`]) the message is read only:
    /// [`super::Queue::with_deliveries`] reads it too.
    ///
    /// # Errors
    /// [`RingError::Inherited`] in a forked child.
    pub fn lend(mut self) -> Result<(LentDelivery, Message), RingError> {
        self.block.check_owner()?;
        self.settled = true;
        let lent = Arc::new(Lent::default());
        let block = &self.block;
        let lend = |lent| OwnedBlock {
            shared: Arc::clone(&block.shared),
            number: block.number,
            owner: OwnedByProcess::new(),
            start: block.start,
            len: block.len,
            lent: Some(lent),
        };
        let mut delivery = LentDelivery { block: lend(Arc::clone(&lent)) };
        // It gives out no reference.
        delivery.block.owner.uncount();
        Ok((delivery, Message::over(lend(lent))))
    }

    /// Takes the message for good. The task is unfinished until somebody calls [`super::Queue::task_done`]; when this
    /// process dies before, it is lost.
    ///
    /// # Errors
    /// As [`Delivery::done`].
    pub fn into_vec(mut self) -> Result<Vec<u8>, RingError> {
        self.block.check_owner()?;
        let bytes = self.block.bytes().to_vec();
        self.block.shared.ring.owe(self.block.number)?;
        self.settled = true;
        self.block.shared.tell_of_the_end()?;
        Ok(bytes)
    }
}

impl Deref for Delivery {
    type Target = [u8];

    #[inline]
    #[track_caller]
    fn deref(&self) -> &[u8] {
        self.block.bytes()
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if !self.settled && self.block.is_mine() {
            let shared = &self.block.shared;
            report(shared.ring.give_back(self.block.number));
            shared.ring.control().waiting.not_empty.wake(1);
        }
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery").field("len", &self.len()).finish()
    }
}

/// A delivery whose message is lent out, by [`Delivery::lend`]. Dropped, it stays this process's, and is handed out again when that
/// dies.
#[must_use = "the task is unfinished until it is acknowledged"]
pub struct LentDelivery {
    block: OwnedBlock,
}

impl LentDelivery {
    /// Acknowledges: the task is done. The message may be used on.
    ///
    /// # Errors
    /// As [`Delivery::done`].
    pub fn done(self) -> Result<(), RingError> {
        self.block.check_owner()?;
        let shared = &self.block.shared;
        if let Some(lent) = &self.block.lent {
            lent.settle(|is_back| match is_back {
                true => shared.ring.acknowledge(self.block.number),
                false => shared.ring.keep(self.block.number),
            })?;
        }
        shared.ring.control().waiting.all_done.wake(u32::MAX);
        shared.ring.bytes_were_freed()?;
        Ok(shared.tell_of_the_end()?)
    }
}

impl fmt::Debug for LentDelivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LentDelivery").field("len", &self.block.len).finish()
    }
}
