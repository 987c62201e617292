//! Taking a lock whose holder died, and finding what nobody has any more.

use std::collections::{HashMap, HashSet};

use super::layout::{BlockState, Segment};
use super::put::PutSession;
use super::{Damaged, Ring, RingError};
use crate::os::identity::Identity;
use crate::sync::RobustGuard;
use crate::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};

impl Ring {
    #[inline(always)]
    pub(crate) fn lock_put(&self) -> Result<RobustGuard<'_>, Damaged> {
        let guard = self.control().put.lock.lock(|holder| self.may_hold(holder));
        if guard.recovered() {
            self.recover_put()?;
        }
        Ok(guard)
    }

    #[inline(always)]
    pub(super) fn lock_get(&self) -> Result<RobustGuard<'_>, Damaged> {
        let guard = self.control().get.lock.lock(|holder| self.may_hold(holder));
        if guard.recovered() {
            self.recover_get(&guard)?;
        }
        Ok(guard)
    }

    #[inline]
    pub(super) fn lock_memory(&self) -> Result<RobustGuard<'_>, Damaged> {
        let guard = self.control().memory.lock.lock(|holder| self.may_hold(holder));
        if guard.recovered() {
            self.control().settings.sweep_wanted.store(1, SeqCst);
            self.rebuild(&guard)?;
        }
        Ok(guard)
    }

    /// Whether somebody died with one of the locks, so that a sweep mends what it was changing.
    pub(crate) fn somebody_died_with_a_lock(&self) -> bool {
        let control = self.control();
        [&control.get.lock, &control.put.lock, &control.memory.lock]
            .into_iter()
            .any(|lock| lock.is_abandoned(|holder| self.may_hold(holder)))
    }

    /// The put lock if no producer has it.
    pub(super) fn try_put_session(&self) -> Result<Option<PutSession<'_>>, RingError> {
        match self.control().put.lock.try_lock() {
            None => Ok(None),
            Some(guard) => Ok(Some(self.put_session_under(guard)?)),
        }
    }

    /// Whether a process may be inside a critical section: it lives, and it has not become another program.
    #[cold]
    fn may_hold(&self, holder: Identity) -> bool {
        holder.is_alive() && holder.maps(self.fd())
    }

    /// A producer died. What it wrote after the tail is not there; its caches are derived again.
    #[cold]
    fn recover_put(&self) -> Result<(), Damaged> {
        let control = self.control();
        control.settings.sweep_wanted.store(1, SeqCst);
        let segment = Segment::from_bits(control.put.segment.load(Relaxed));
        let entered = control.get.segment.load(Acquire) == segment.to_bits();
        let head = self.head();
        control.put.in_use_from.store(if entered { head.position } else { segment.base }, Relaxed);
        control.put.known_gets.store(head.count, Relaxed);
        // The next to put looks it up.
        control.put.reserved.store(0, Relaxed);
        self.free_unpublished()
    }

    /// Frees the blocks of messages that a dead producer was about to publish. Under the put lock, and before the next message
    /// is put: that will have such a block's number.
    fn free_unpublished(&self) -> Result<(), Damaged> {
        let tail = self.tail();
        for block in 0..self.descriptor_count() {
            let descriptor = self.descriptor(block)?;
            let is_ahead = descriptor.seq.load(Relaxed).wrapping_sub(tail.count) < 1 << 31;
            if is_ahead && matches!(descriptor.state(), Some((BlockState::Queued, _))) {
                self.free(block)?;
            }
        }
        Ok(())
    }

    /// A consumer died. What it did not publish is still in the queue.
    #[cold]
    fn recover_get(&self, get: &RobustGuard<'_>) -> Result<(), Damaged> {
        let control = self.control();
        control.settings.sweep_wanted.store(1, SeqCst);
        control.get.known_tail.store(self.head().to_bits(), Relaxed);
        self.undo_charges();
        // Before anything is taken: what the dead had of a message that is still queued must not count once that is taken by
        // another, and what it had taken comes first.
        self.sweep_under(get)
    }

    /// Frees blocks that only dead processes have, and hands out their deliveries again.
    ///
    /// Takes all three locks, so that no living process is half-way in anything that it looks at.
    #[cold]
    pub(crate) fn sweep(&self) -> Result<(), Damaged> {
        let get = self.lock_get()?;
        self.sweep_under(&get)
    }

    /// [`Ring::sweep`] with the get lock held already.
    fn sweep_under(&self, _get: &RobustGuard<'_>) -> Result<(), Damaged> {
        let put = self.lock_put()?;
        let memory_guard = self.lock_memory()?;
        let memory = &self.control().memory;
        let (head, tail) = (self.head(), self.tail());
        let queued = |seq: u32| seq.wrapping_sub(head.count) < tail.messages_since(head);
        let mut alive: HashMap<Identity, bool> = HashMap::new();
        let mut is_dead = |owner: Option<Identity>| {
            owner.is_some_and(|id| !*alive.entry(id).or_insert_with(|| id.is_alive()))
        };
        // Also one that has become another program amid a get.
        let has_left = |owner: Option<Identity>| owner.is_some_and(|id| !self.may_hold(id));
        let blocks = self.blocks()?;
        let chain = self.segments_in_use()?;
        for block in blocks {
            let descriptor = self.descriptor(block)?;
            let (state, owner) = descriptor.state().ok_or(Damaged("a block's state"))?;
            let seq = descriptor.seq.load(Relaxed);
            let unused = match state {
                BlockState::Free | BlockState::Returned | BlockState::Owed => false,
                BlockState::Writing => is_dead(owner),
                BlockState::Queued => !queued(seq),
                BlockState::Segment => !chain.contains(&block),
                // What the living have is theirs, also when so many messages have passed that its number comes again.
                BlockState::HeldCopy if queued(seq) && has_left(owner) => true,
                BlockState::Taken | BlockState::Held if queued(seq) && has_left(owner) => {
                    descriptor.set_state(BlockState::Queued, None);
                    false
                }
                BlockState::Taken => is_dead(owner),
                BlockState::Held | BlockState::HeldCopy => {
                    if is_dead(owner) {
                        descriptor
                            .attempts
                            .store(descriptor.attempts.load(Relaxed).saturating_add(1), Relaxed);
                        descriptor.set_state(BlockState::Returned, None);
                    }
                    false
                }
            };
            if unused {
                self.release_block(descriptor)?;
                descriptor.charged.store(descriptor.reserved.load(Relaxed), Relaxed);
                descriptor.set_state(BlockState::Free, None);
            }
        }
        self.rebuild(&memory_guard)?;
        self.control().settings.sweep_wanted.store(0, SeqCst);
        let returned = memory.returned.load(Relaxed);
        drop((memory_guard, put));
        if returned != 0 {
            self.control().waiting.not_empty.wake(u32::MAX);
        }
        Ok(())
    }

    /// The blocks from the consumers' segment to the producers'.
    fn segments_in_use(&self) -> Result<HashSet<u32>, Damaged> {
        let control = self.control();
        let last = Segment::from_bits(control.put.segment.load(Relaxed)).block;
        let mut block = Segment::from_bits(control.get.segment.load(Relaxed)).block;
        let mut chain = HashSet::from([block]);
        while block != last {
            let successor = self.descriptor(block)?.successor.load(Relaxed);
            block = successor.checked_sub(1).ok_or(Damaged("the chain of segments"))?;
            if !chain.insert(block) {
                return Err(Damaged("the chain of segments"));
            }
        }
        Ok(chain)
    }
}
