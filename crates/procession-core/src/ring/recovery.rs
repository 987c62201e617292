//! Repairing what a process left that died with a lock, and finding what no process has any more.

use std::collections::{HashMap, HashSet};

use procession_sys::clock::Deadline;
use procession_sys::identity::Identity;

use super::layout::{BlockState, Segment};
use super::watch::Side;
use super::{Damaged, Ring, RingError};
use crate::sync::RobustGuard;
use crate::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};

impl Ring {
    /// Asks the next process that uses the queue for a sweep.
    pub(crate) fn want_sweep(&self) {
        self.control().settings.sweep_wanted.fetch_add(1, SeqCst);
    }

    /// A producer died. What it wrote after the tail is not there; its caches are derived again.
    #[cold]
    pub(super) fn recover_put(&self) -> Result<(), Damaged> {
        let control = self.control();
        self.want_sweep();
        // It may have told some whose bits are still set: they would take themselves for armed, and poll in vain.
        self.signal(Side::Messages);
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
        for block in self.blocks()? {
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
    pub(super) fn recover_get<'a>(
        &self,
        guard: RobustGuard<'a>,
        deadline: Deadline,
    ) -> Result<RobustGuard<'a>, RingError> {
        let control = self.control();
        self.want_sweep();
        // As for the put lock.
        self.signal(Side::Room);
        control.get.known_tail.store(self.head().to_bits(), Relaxed);
        self.undo_charges();
        match self.undo_takes(deadline) {
            Ok(()) => Ok(guard),
            Err(error) => {
                // No process may move the head before the takes are undone.
                guard.leave_to_recover();
                Err(error)
            }
        }
    }

    /// Takes blocks back that the dead had marked as theirs before they moved the head. Under the get lock, and before
    /// anybody else moves the head: later nothing would tell them from what was taken.
    fn undo_takes(&self, deadline: Deadline) -> Result<(), RingError> {
        let guard = self.lock_memory(deadline)?;
        let (head, tail) = (self.head(), self.tail());
        for block in self.blocks()? {
            let descriptor = self.descriptor(block)?;
            let queued = descriptor.seq.load(Relaxed).wrapping_sub(head.count) < tail.messages_since(head);
            let Some((state @ (BlockState::Taken | BlockState::Held | BlockState::HeldCopy), Some(owner))) =
                descriptor.state()
            else {
                continue;
            };
            // What the living have is theirs, also when so many messages have passed that its number comes again.
            if queued && !self.may_hold(owner) {
                let back = if state == BlockState::HeldCopy { BlockState::Free } else { BlockState::Queued };
                descriptor.set_state(back, None);
            }
        }
        Ok(self.rebuild(&guard)?)
    }

    /// Frees blocks that only dead processes have, and hands out their deliveries again.
    ///
    /// Takes all three locks, so that no living process is half-way in anything that it looks at.
    ///
    /// # Errors
    /// [`RingError::Busy`], by `deadline`: then it is done by the next process that can.
    #[cold]
    pub(crate) fn sweep(&self, deadline: Deadline) -> Result<(), RingError> {
        let get = self.lock_get(deadline)?;
        self.sweep_under(get, deadline)
    }

    /// [`Ring::sweep`], unless somebody else has done it by the time this process has the lock: many may find at once that one
    /// is wanted.
    ///
    /// # Errors
    /// As [`Ring::sweep`].
    #[cold]
    pub(crate) fn sweep_if_wanted(&self, deadline: Deadline) -> Result<(), RingError> {
        let get = self.lock_get(deadline)?;
        match self.control().settings.sweep_wanted.load(SeqCst) {
            0 => Ok(()),
            _ => self.sweep_under(get, deadline),
        }
    }

    fn sweep_under(&self, get: RobustGuard<'_>, deadline: Deadline) -> Result<(), RingError> {
        // Should this process die over it, the next one is to begin again.
        self.want_sweep();
        let put = self.lock_put(deadline)?;
        let memory_guard = self.lock_memory(deadline)?;
        let sweep_wanted = &self.control().settings.sweep_wanted;
        let wanted = sweep_wanted.load(SeqCst);
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
        // A request that is not this sweep's own may come from a recovery that has freed some.
        let (mut done_late, mut freed) = (false, wanted != 1);
        for block in blocks {
            let descriptor = self.descriptor(block)?;
            let (state, owner) = descriptor.state().ok_or(Damaged("a block's state"))?;
            let seq = descriptor.seq.load(Relaxed);
            let unused = match state {
                BlockState::Free | BlockState::Returned | BlockState::Owed => false,
                BlockState::Writing => is_dead(owner),
                BlockState::Unused => {
                    done_late |= self.settings.joinable;
                    true
                }
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
                        self.signal(Side::Messages);
                        descriptor
                            .attempts
                            .store(descriptor.attempts.load(Relaxed).saturating_add(1), Relaxed);
                        descriptor.set_state(BlockState::Returned, owner);
                    }
                    false
                }
            };
            if unused {
                freed = true;
                self.release_block(descriptor)?;
                descriptor.charged.store(descriptor.reserved.load(Relaxed), Relaxed);
                descriptor.set_state(BlockState::Free, None);
            }
        }
        self.rebuild(&memory_guard)?;
        if self.has_message() || done_late && self.is_over() {
            self.signal(Side::Messages);
        }
        if !self.is_full() {
            self.signal(Side::Room);
        }
        // Unless a block that this sweep has passed was left to one since.
        let _ = sweep_wanted.compare_exchange(wanted, 0, SeqCst, Relaxed);
        let returned = memory.returned.load(Relaxed);
        drop((memory_guard, put, get));
        let waiting = &self.control().waiting;
        if returned != 0 || done_late {
            waiting.not_empty.wake(u32::MAX);
        }
        if done_late {
            waiting.all_done.wake(u32::MAX);
        }
        if freed {
            self.bytes_were_freed()?;
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::{Relaxed, Release};
    use std::time::Duration;

    use crate::hostile::dead;
    use crate::ring::layout::{BlockState, Segment};
    use crate::ring::{Content, Ring, Settings, Take, Taken};
    use crate::shm::windows;
    use procession_sys::clock::Deadline;
    use procession_sys::identity::Identity;
    use procession_sys::memory;

    fn ring_of_tasks() -> Ring {
        let fd = memory::create(c"test", windows::FIRST).unwrap();
        Ring::create(
            fd,
            Settings { max_messages: 0, max_bytes: 1 << 30, joinable: true, ..Settings::default() },
        )
        .unwrap()
    }

    /// Lets a forked child do something, and die before it has cleaned up.
    fn in_a_child_that_dies<R>(work: impl FnOnce() -> R) {
        // SAFETY: the child calls nothing that a lock of another thread could block, and ends by `_exit`.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0);
        if pid == 0 {
            std::mem::forget(work());
            // SAFETY: ends the process.
            unsafe { libc::_exit(0) };
        }
        let mut status = 0;
        // SAFETY: waits for the child; `status` is a word to write to.
        assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
        assert_eq!(status, 0);
    }

    fn put(ring: &Ring, message: &[u8]) {
        let mut session = ring.put_session(Deadline::Never).unwrap();
        session.push(Content::Inline(message), false).unwrap();
        session.publish();
    }

    fn take(ring: &Ring) -> Option<u32> {
        let mut session = ring.get_session(Deadline::Never).unwrap();
        let taken = session.next(Take::Delivery, &mut Vec::new()).unwrap()?;
        session.publish();
        let (Taken::Block(block) | Taken::Left(block, _)) = taken else { panic!("not in a block") };
        Some(block)
    }

    fn take_for_good(ring: &Ring) {
        let mut session = ring.get_session(Deadline::Never).unwrap();
        assert_eq!(session.next(Take::Plain, &mut Vec::new()).unwrap(), Some(Taken::Copied));
        session.publish();
    }

    #[test]
    fn a_copy_of_a_task_that_was_not_taken_is_not_handed_out() {
        let ring = ring_of_tasks();
        put(&ring, b"task");
        in_a_child_that_dies(|| {
            let mut session = ring.get_session(Deadline::Never).unwrap();
            (session.next(Take::Delivery, &mut Vec::new()).unwrap(), session)
        });
        let block = take(&ring).expect("the task");
        assert_eq!(ring.descriptor(block).unwrap().attempts.load(Relaxed), 0);
        ring.acknowledge(block).unwrap();
        ring.sweep(Deadline::Never).unwrap();
        assert_eq!((ring.unfinished(), ring.len(), take(&ring)), (0, 0, None));
    }

    #[test]
    fn a_lock_whose_holder_runs_another_program_is_free() {
        let ring = ring_of_tasks();
        // SAFETY: the child calls nothing that a lock of another thread could block, and runs another program.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0);
        if pid == 0 {
            std::mem::forget(ring.put_session(Deadline::Never));
            // SAFETY: C strings, and a null after the last argument; ends the process should it fail.
            unsafe {
                libc::execlp(
                    c"sleep".as_ptr(),
                    c"sleep".as_ptr(),
                    c"60".as_ptr(),
                    std::ptr::null::<libc::c_char>(),
                );
                libc::_exit(1)
            }
        }
        while ring.control().put.lock.state().0 == 0 {
            std::thread::yield_now();
        }
        put(&ring, b"task");
        let mut status = 0;
        // SAFETY: looks whether the child has ended, then ends it; it is not waited for yet, so that the pid is its own.
        unsafe {
            assert_eq!(libc::waitpid(pid, &mut status, libc::WNOHANG), 0, "its holder lives");
            libc::kill(pid, libc::SIGKILL);
            assert_eq!(libc::waitpid(pid, &mut status, 0), pid);
        }
        assert!(take(&ring).is_some());
    }

    #[test]
    fn who_died_before_it_took_a_task_does_not_owe_it() {
        let ring = ring_of_tasks();
        put(&ring, b"task");
        in_a_child_that_dies(|| {
            let mut session = ring.get_session(Deadline::Never).unwrap();
            (session.next(Take::Plain, &mut Vec::new()).unwrap(), session)
        });
        take_for_good(&ring);
        assert!(ring.task_done().unwrap());
        assert_eq!((ring.unfinished(), ring.collect_losses(Deadline::Never).unwrap()), (0, None));
    }

    #[test]
    fn a_block_that_was_not_published_is_free_before_another_message_has_its_number() {
        let fd = memory::create(c"test", windows::FIRST).unwrap();
        let ring = Ring::create(
            fd,
            Settings { max_messages: 0, max_bytes: 1 << 30, joinable: false, ..Settings::default() },
        )
        .unwrap();
        in_a_child_that_dies(|| {
            let block = ring.allocate(1 << 20, Deadline::Never).unwrap();
            let mut session = ring.put_session(Deadline::Never).unwrap();
            session.push(Content::Block(block), false).unwrap();
            session
        });
        put(&ring, b"another");
        let of_the_dead = ring.blocks().unwrap().filter(|block| {
            matches!(ring.descriptor(*block).unwrap().state(), Some((BlockState::Queued, _)))
        });
        assert_eq!(of_the_dead.count(), 0);
    }

    /// What a dead producer says of the memory of its segment may be another segment's.
    #[test]
    fn how_much_memory_a_segment_has_is_looked_up_after_a_death() {
        let ring = ring_of_tasks();
        in_a_child_that_dies(|| {
            let session = ring.put_session(Deadline::Never).unwrap();
            ring.control().put.reserved.store(1 << 30, Relaxed);
            ring.control().put.in_use_from.store(u32::MAX, Relaxed);
            session
        });
        put(&ring, b"task");
        let put = &ring.control().put;
        let segment = Segment::from_bits(put.segment.load(Relaxed));
        let reserved = ring.descriptor(segment.block).unwrap().reserved.load(Relaxed);
        assert_eq!((put.reserved.load(Relaxed), put.in_use_from.load(Relaxed)), (reserved, segment.base));
    }

    #[test]
    fn a_task_is_found_whose_consumer_died_as_it_gave_it_back() {
        let ring = ring_of_tasks();
        put(&ring, b"task");
        in_a_child_that_dies(|| {
            take(&ring).unwrap();
            let guard = ring.lock_memory(Deadline::Never).unwrap();
            ring.control().memory.returned.store(1, Release);
            guard
        });
        assert!(ring.has_message());
        assert_eq!(take(&ring), None);
        assert_ne!(ring.control().settings.sweep_wanted.load(Relaxed), 0);
        ring.sweep(Deadline::Never).unwrap();
        assert!(take(&ring).is_some());
    }

    #[test]
    fn a_sweep_that_died_is_begun_again() {
        let ring = ring_of_tasks();
        put(&ring, b"task");
        in_a_child_that_dies(|| take(&ring).unwrap());
        in_a_child_that_dies(|| {
            ring.want_sweep();
            let guards = (
                ring.lock_get(Deadline::Never),
                ring.lock_put(Deadline::Never),
                ring.lock_memory(Deadline::Never),
            );
            ring.descriptor(1).unwrap().set_state(BlockState::Returned, None);
            guards
        });
        ring.sweep(Deadline::Never).unwrap();
        assert_eq!(ring.control().settings.sweep_wanted.load(Relaxed), 0);
        assert!(take(&ring).is_some());
    }

    #[test]
    fn a_sweep_that_somebody_else_has_done_is_not_done_again() {
        let ring = ring_of_tasks();
        let block = ring.allocate(100, Deadline::Never).unwrap();
        let descriptor = ring.descriptor(block).unwrap();
        descriptor.set_state(BlockState::Writing, Some(dead()));
        ring.sweep_if_wanted(Deadline::Never).unwrap();
        assert_eq!(descriptor.state(), Some((BlockState::Writing, Some(dead()))));
        ring.control().settings.sweep_wanted.store(1, Relaxed);
        ring.sweep_if_wanted(Deadline::Never).unwrap();
        assert_eq!(descriptor.state(), Some((BlockState::Free, None)));
    }

    #[test]
    fn tasks_are_unfinished_while_the_next_is_put_before_one_is_done() {
        let ring = ring_of_tasks();
        // All accounts but the last are somebody's who lives, so that it takes time to look through them.
        let init = Identity::of_pid(rustix::process::Pid::INIT).expect("the first process");
        for account in ring.accounts().split_last().unwrap().1 {
            account.owner.store(init.to_bits(), Relaxed);
        }
        put(&ring, b"first");
        take_for_good(&ring);
        let deadline = Deadline::after(Duration::from_secs(1));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !deadline.passed() {
                    put(&ring, b"second");
                    let second = take(&ring).expect("the second");
                    assert!(ring.task_done().unwrap());
                    put(&ring, b"first");
                    take_for_good(&ring);
                    ring.acknowledge(second).unwrap();
                }
            });
            for _ in 0..3 {
                scope.spawn(|| {
                    while !deadline.passed() {
                        assert!(ring.unfinished() > 0);
                    }
                });
            }
        });
    }
}
