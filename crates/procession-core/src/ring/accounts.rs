//! Unfinished tasks: what was put and not declared done, and who owes it.

use std::collections::HashSet;

use procession_sys::clock::Deadline;
use procession_sys::identity::Identity;
use procession_sys::process_owned::OwnedByProcess;

use super::layout::{Account, BlockState};
use super::watch::Side;
use super::{Damaged, Ring, RingError};
use crate::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use crate::sync::atomic::fence;

/// A delivery that was looked at without a lock.
#[derive(Clone, Copy, Debug)]
pub struct Peeked<'a> {
    /// The process, dead or alive, that has it or that left it.
    pub holder: Option<Identity>,
    /// It was left, and not taken again.
    pub is_left: bool,
    /// How often it was left.
    pub attempts: u32,
    /// The message's first bytes, up to [`BEGINNING`](crate::ring::BEGINNING).
    pub beginning: &'a [u8],
}

impl Ring {
    /// Puts that are not declared done: what waits, what is held, and what was taken for good and is owed.
    pub(crate) fn unfinished(&self) -> i64 {
        /// How often it looks again while messages are put. Who never stops moving the tail does not put messages.
        const TRIES: u32 = 1000;
        for _ in 0..TRIES {
            // In this order: a message moves from the first sum to one of the others and is counted there before
            // it leaves, so that none is missed on the way.
            let (head, tail) = (self.head(), self.tail());
            let queued = i64::from(tail.messages_since(head));
            let held = self.control().memory.held.load(Acquire) as i64;
            let sum = queued.saturating_add(held).saturating_add(self.balance_sum());
            // But what was put since the look at the tail is not in it, and may be why something else was done.
            if sum > 0 || self.tail() == tail {
                return sum;
            }
        }
        // Something was put since the last look.
        1
    }

    /// Taken for good less declared done, over all processes.
    fn balance_sum(&self) -> i64 {
        self.accounts().iter().map(balance).sum()
    }

    /// This process's account. Under the get lock.
    #[inline]
    pub(super) fn my_account(&self) -> Result<&Account, RingError> {
        let me = Identity::current().to_bits();
        let accounts = self.accounts();
        let hint = self.account.load(Relaxed) as usize;
        let index = match accounts.get(hint) {
            Some(account) if account.owner.load(Relaxed) == me => hint,
            _ => self.open_account(me)?,
        };
        Ok(&accounts[index])
    }

    /// Charges an account with the message whose taking moves the head's count to `count`. Under the get lock.
    #[inline]
    pub(super) fn charge(account: &Account, count: u32) {
        let taken = (account.taken.load(Relaxed) >> 32).wrapping_add(1);
        account.taken.store(taken << 32 | u64::from(count), Release);
    }

    /// Finds or takes over an account for this process. Under the get lock.
    #[cold]
    fn open_account(&self, me: u64) -> Result<usize, RingError> {
        let accounts = self.accounts();
        let found = |wanted: u64| accounts.iter().position(|account| account.owner.load(Relaxed) == wanted);
        let index = match found(me).or_else(|| found(0)) {
            Some(index) => index,
            None => accounts
                .iter()
                .position(|account| {
                    Identity::from_bits(account.owner.load(Relaxed)).is_none_or(|owner| !owner.is_alive())
                })
                .ok_or(RingError::TooManyConsumers)?,
        };
        let account = &accounts[index];
        if account.owner.load(Relaxed) != me {
            account.lost.store(balance(account) as u64, Relaxed);
            account.owner.store(me, Release);
        }
        self.account.store(index as u32, Relaxed);
        Ok(index)
    }

    /// Takes back the charge for a message whose taker died before it moved the head. Under the get lock.
    pub(super) fn undo_charges(&self) {
        let next = self.head().count.wrapping_add(1);
        for account in self.accounts() {
            let bits = account.taken.load(Relaxed);
            if bits != 0 && bits as u32 == next {
                account.taken.store((bits >> 32).wrapping_sub(1) << 32, Release);
            }
        }
    }

    /// Declares one task done that was taken for good. False when no task is unfinished.
    pub(crate) fn task_done(&self) -> Result<bool, Damaged> {
        let me = Identity::current();
        let guard = match self.lock_memory_briefly()? {
            Some(guard) => guard,
            // The lock's holder makes no progress. This process's own debt needs no lock.
            None if self.declare_own_done(me) => return Ok(true),
            None => self.lock_memory_at_last()?,
        };
        if self.unfinished() <= 0 {
            return Ok(false);
        }
        let memory = &self.control().memory;
        if memory.owed.load(Relaxed) != 0
            && let Some(block) = self.find_owed(|owner| owner == Some(me))?
        {
            self.settle(&guard, block)?;
            return Ok(true);
        }
        // The debt of whoever calls comes first, then another's: any process may declare any task done.
        let accounts = self.accounts();
        let mine = accounts.iter().position(|account| account.owner.load(Relaxed) == me.to_bits());
        let owing = |index: &usize| balance(&accounts[*index]) > 0;
        let index = mine.filter(owing).or_else(|| (0..accounts.len()).find(owing));
        if index.is_none()
            && memory.owed.load(Relaxed) != 0
            && let Some(block) = self.find_owed(|_| true)?
        {
            self.settle(&guard, block)?;
            return Ok(true);
        }
        // Or a task that nobody has taken yet.
        let account = accounts.get(index.or(mine).unwrap_or(0)).ok_or(Damaged("not a queue of tasks"))?;
        account.done.fetch_add(1, Release);
        Ok(true)
    }

    /// Declares a task done that this process took for good, if its account says that it owes one.
    #[cold]
    fn declare_own_done(&self, me: Identity) -> bool {
        let is_mine = |account: &&Account| account.owner.load(Relaxed) == me.to_bits();
        let Some(account) = self.accounts().iter().find(is_mine) else { return false };
        let owing = |done: u64| {
            let taken = (account.taken.load(Acquire) >> 32) as u32;
            (taken.wrapping_sub(done as u32) as i32 > 0).then(|| done.wrapping_add(1))
        };
        account.done.fetch_update(Release, Relaxed, owing).is_ok()
    }

    /// Acknowledges a delivery that this process holds.
    pub(crate) fn acknowledge(&self, block: u32) -> Result<(), Damaged> {
        let descriptor = self.descriptor(block)?;
        let class = descriptor.class.load(Relaxed);
        let Some(guard) = self.lock_memory_briefly()? else {
            self.leave_to_sweep(descriptor, BlockState::Unused);
            return Ok(());
        };
        self.settle(&guard, block)?;
        if !self.keeps_too_much() {
            return Ok(());
        }
        // Its memory goes back only now: a death before it is settled hands it out again, and then its bytes must be there.
        let spare = self.pop_free(&guard, class)?;
        drop(guard);
        spare.map_or(Ok(()), |block| self.free(block))
    }

    /// Acknowledges a delivery that this process holds, and leaves it the block.
    pub(crate) fn keep(&self, block: u32) -> Result<(), Damaged> {
        let memory = &self.control().memory;
        let descriptor = self.descriptor(block)?;
        let Some(_guard) = self.lock_memory_briefly()? else {
            self.leave_to_sweep(descriptor, BlockState::Taken);
            return Ok(());
        };
        // A death before the next store leaves a sum of one too many, and this lock, whose next holder counts again.
        descriptor.set_state(BlockState::Taken, Some(Identity::current()));
        memory.held.store(memory.held.load(Relaxed).saturating_sub(1), Release);
        Ok(())
    }

    /// Makes a delivery that this process holds one that was taken for good, to be declared done by [`Ring::task_done`].
    pub(crate) fn owe(&self, block: u32) -> Result<(), Damaged> {
        let memory = &self.control().memory;
        let descriptor = self.descriptor(block)?;
        let Some(_guard) = self.lock_memory_briefly()? else {
            self.leave_to_sweep(descriptor, BlockState::Owed);
            return Ok(());
        };
        descriptor.set_state(BlockState::Owed, Some(Identity::current()));
        memory.owed.store(memory.owed.load(Relaxed).wrapping_add(1), Relaxed);
        Ok(())
    }

    /// Hands a delivery that this process holds back, for another consumer.
    pub(crate) fn give_back(&self, block: u32) -> Result<(), Damaged> {
        let memory = &self.control().memory;
        let descriptor = self.descriptor(block)?;
        // Those who wait for it by a descriptor do not look again by themselves, so they are told before it is there.
        let put = self.lock_put_briefly()?;
        if put.is_some() {
            self.signal(Side::Messages);
        }
        let guard = if put.is_some() { self.lock_memory_briefly()? } else { None };
        if self.shutdown_state() == 2 {
            // Nobody would get it.
            return match guard {
                Some(guard) => self.settle(&guard, block),
                None => {
                    self.leave_to_sweep(descriptor, BlockState::Unused);
                    Ok(())
                }
            };
        }
        descriptor.attempts.store(descriptor.attempts.load(Relaxed).saturating_add(1), Relaxed);
        let Some(guard) = guard else {
            self.leave_to_sweep(descriptor, BlockState::Returned);
            return Ok(());
        };
        // The sum first: it brings consumers here, who find this lock's holder dead if it dies before the next store. A
        // returned delivery that is not counted, nobody would look for.
        memory.returned.store(memory.returned.load(Relaxed).wrapping_add(1), Release);
        descriptor.set_state(BlockState::Returned, None);
        drop(guard);
        Ok(())
    }

    fn settle(&self, guard: &crate::sync::RobustGuard<'_>, block: u32) -> Result<(), Damaged> {
        let memory = &self.control().memory;
        let descriptor = self.descriptor(block)?;
        if matches!(descriptor.state(), Some((BlockState::Owed, _))) {
            memory.owed.store(memory.owed.load(Relaxed).saturating_sub(1), Relaxed);
        }
        self.free_locked(guard, block, descriptor);
        memory.held.store(memory.held.load(Relaxed).saturating_sub(1), Release);
        Ok(())
    }

    fn find_owed(&self, wanted: impl Fn(Option<Identity>) -> bool) -> Result<Option<u32>, Damaged> {
        for block in self.blocks()? {
            if let Some((BlockState::Owed, owner)) = self.descriptor(block)?.state()
                && wanted(owner)
            {
                return Ok(Some(block));
            }
        }
        Ok(None)
    }

    /// Whether it is this process's turn to look for what the dead have, which it then is to do.
    pub(crate) fn is_time_to_look(&self, now_ms: u64, interval_ms: u64) -> bool {
        let last_look = &self.control().memory.last_look;
        let last = last_look.load(Relaxed);
        now_ms.wrapping_sub(last) >= interval_ms
            && last_look.compare_exchange(last, now_ms, Relaxed, Relaxed).is_ok()
    }

    /// Whether deliveries are out that are not acknowledged.
    pub(crate) fn deliveries_are_held(&self) -> bool {
        let memory = &self.control().memory;
        memory.held.load(Relaxed) != memory.returned.load(Relaxed)
    }

    /// Calls `read` with the holder, dead or alive, and the first bytes of every delivery that is out, and `then` with what
    /// it has made of them, before another is taken or acknowledged.
    pub(crate) fn with_deliveries<T, R>(
        &self,
        deadline: Deadline,
        mut read: impl FnMut(Identity, &[u8]) -> Option<T>,
        then: impl FnOnce(Vec<T>) -> R,
    ) -> Result<R, RingError> {
        // A child forked by the caller's closures would continue with its parent's lock.
        let _here = OwnedByProcess::new();
        // While this lock is held no delivery is taken, and no delivery's bytes are reused. If this
        // process is stopped, others acknowledge without the lock, and only a sweep frees those
        // blocks.
        let _guard = self.lock_memory(deadline)?;
        let mut deliveries = Vec::new();
        for block in self.blocks()? {
            let descriptor = self.descriptor(block)?;
            if let Some((BlockState::Held | BlockState::HeldCopy, Some(owner))) = descriptor.state() {
                deliveries.extend(read(owner, &self.beginning(descriptor)?));
            }
        }
        Ok(then(deliveries))
    }

    /// Calls `read` for every delivery that is out, or was left and not taken again, without a lock: for when the holder of the
    /// memory lock makes no progress. Each was so at an instant of the call. What changes meanwhile may be left out.
    pub(crate) fn peek_deliveries<T>(
        &self,
        mut read: impl FnMut(Peeked<'_>) -> Option<T>,
    ) -> Result<Vec<T>, RingError> {
        let mut deliveries = Vec::new();
        for block in self.blocks()? {
            let descriptor = self.descriptor(block)?;
            // The place in the stream tells two messages apart that one process had in one block.
            let look = || (descriptor.state(), descriptor.seq.load(Relaxed));
            let before = look();
            let (Some((state, holder)), _) = before else { continue };
            let is_left = match state {
                BlockState::Held | BlockState::HeldCopy => false,
                BlockState::Returned => true,
                _ => continue,
            };
            let attempts = descriptor.attempts.load(Relaxed);
            let beginning = self.beginning(descriptor)?;
            // The bytes were read before the block is looked at again.
            fence(Acquire);
            if look() == before {
                deliveries.extend(read(Peeked { holder, is_left, attempts, beginning: &beginning }));
            }
        }
        Ok(deliveries)
    }

    /// The processes, dead or alive, that hold deliveries.
    fn holders(&self) -> Result<HashSet<Identity>, Damaged> {
        let mut holders = HashSet::new();
        if self.deliveries_are_held() {
            for block in self.blocks()? {
                if let Some((BlockState::Held | BlockState::HeldCopy, Some(owner))) =
                    self.descriptor(block)?.state()
                {
                    holders.insert(owner);
                }
            }
        }
        Ok(holders)
    }

    /// Whether a process that holds a delivery has died, so that a sweep will hand it out again.
    pub(crate) fn somebody_died_with_a_delivery(&self) -> Result<bool, Damaged> {
        Ok(!self.holders()?.into_iter().all(Identity::is_alive))
    }

    /// Whether other processes hold deliveries, which are to be handed out again should they die, and this one holds none. Who
    /// holds one does not wait for others, which may wait for it.
    pub(crate) fn may_inherit_a_delivery(&self) -> Result<bool, Damaged> {
        let holders = self.holders()?;
        Ok(!holders.is_empty() && !holders.contains(&Identity::current()))
    }

    /// If all unfinished tasks were taken for good by processes that died: how many, and the pids. Forgets them, so
    /// that the queue goes on.
    ///
    /// # Errors
    /// [`RingError::Busy`], by `deadline`.
    pub(crate) fn collect_losses(&self, deadline: Deadline) -> Result<Option<(u64, Vec<i32>)>, RingError> {
        let get = self.lock_get(deadline)?;
        let guard = self.lock_memory(deadline)?;
        let memory = &self.control().memory;
        let unfinished = self.unfinished();
        let mut lost = 0;
        let mut pids = Vec::new();
        let mut blocks = Vec::new();
        for block in self.blocks()? {
            if let Some((BlockState::Owed, Some(owner))) = self.descriptor(block)?.state()
                && !owner.is_alive()
            {
                lost += 1;
                pids.push(owner.pid().as_raw_nonzero().get());
                blocks.push(block);
            }
        }
        let mut debts = Vec::new();
        let mut owed_by_the_living = memory.held.load(Relaxed) != blocks.len() as u64;
        for account in self.accounts() {
            let Some(owner) = Identity::from_bits(account.owner.load(Relaxed)) else { continue };
            let all = balance(account).max(0);
            // What was declared done since was the living owner's.
            let debt = if owner.is_alive() { all.min(account.lost.load(Relaxed) as i64) } else { all };
            owed_by_the_living |= debt.max(0) < all;
            if debt > 0 {
                lost += debt;
                debts.push((account, debt));
                if !owner.is_alive() {
                    pids.push(owner.pid().as_raw_nonzero().get());
                }
            }
        }
        if lost == 0 || unfinished <= 0 || owed_by_the_living || self.head().count != self.tail().count {
            return Ok(None);
        }
        // Less than all of it when tasks were declared done before they were taken.
        let mut left = unfinished;
        for block in blocks {
            self.settle(&guard, block)?;
            left -= 1;
        }
        for (account, debt) in debts {
            let forgotten = debt.min(left.max(0));
            left -= forgotten;
            account.done.fetch_add(forgotten as u64, Release);
            account.lost.store(0, Relaxed);
        }
        drop((guard, get));
        pids.sort_unstable();
        pids.dedup();
        Ok(Some((unfinished as u64, pids)))
    }
}

/// Taken less done: what this account owes, negative when it declared others' tasks done.
fn balance(account: &Account) -> i64 {
    let taken = (account.taken.load(Acquire) >> 32) as u32;
    let done = account.done.load(Acquire) as u32;
    // Both wrap at 2^32; their difference is far below.
    i64::from(taken.wrapping_sub(done) as i32)
}
