//! What a pool tells its workers outside of tasks: words that they look at before each one.

use std::io;

use procession_sys::identity::Identity;

use crate::objects::{Block, Handle};
use crate::shm::{CreateError, OpenError};
use crate::sync::atomic::Ordering::{Relaxed, SeqCst};
use crate::sync::atomic::{AtomicU64, store_load_barrier};

/// How many jobs can be cancelled whose tasks have not all come back.
const CANCELLED: usize = 1 << 16;
/// How many words a job's may be one of: a cache line. Jobs with successive numbers share a line.
const LINE: usize = 8;
/// Where the lines begin.
const CANCELLED_AT: usize = LINE;
/// How many workers can be about to be killed: more than a pool in Rust has.
const FENCED: usize = 512;
/// Where their words begin.
const FENCED_AT: usize = CANCELLED_AT + CANCELLED;
/// How many words there are.
const WORDS: usize = FENCED_AT + 1 + FENCED;

/// The words, in a block of shared memory:
///
/// - 0: how many workers are to leave. The pool adds, and a worker that leaves takes 1 away: one that dies in between has
///   left too.
/// - 1: how many jobs are cancelled.
/// - from [`CANCELLED_AT`] on: cancelled jobs, each in its line, or 0.
/// - then: how many of the last words are in use; and those: workers that are to take no task any more, or 0.
///
/// All but the first the pool alone stores: a mark first and its number behind it, which publishes it, both under the lock under which
/// tasks are taken and acknowledged (a fence also without, where a stopped process has that lock); taken back, the mark goes first. A worker looks after it has had that lock, and changes
/// none of them. If the pool dies in between, the workers end with it; if a worker dies, the pool takes back what
/// named it when it has noticed.
#[derive(Clone, Debug)]
pub(super) struct Board(Block);

impl Board {
    pub(super) fn new() -> Result<Self, CreateError> {
        Ok(Board(Block::new(size_of::<AtomicU64>(), WORDS)?))
    }

    pub(super) fn send(&self) -> io::Result<Handle> {
        self.0.send()
    }

    pub(super) fn open(handle: Handle) -> Result<Self, OpenError> {
        let block = Block::open(handle)?;
        if block.element() != size_of::<AtomicU64>() || block.len() != WORDS {
            return Err(OpenError::Damaged("a block of another size"));
        }
        Ok(Board(block))
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: the block has `WORDS` elements of eight bytes, aligned to more than that, and this handle keeps
        // them mapped. All processes use them as atomics.
        unsafe { std::slice::from_raw_parts(self.0.data().cast::<AtomicU64>().as_ptr(), WORDS) }
    }

    /// Lets so many workers leave.
    pub(super) fn release(&self, workers: u64) {
        self.words()[0].fetch_add(workers, SeqCst);
    }

    /// Lets nobody else leave; how many had yet to.
    pub(super) fn recall(&self) -> u64 {
        self.words()[0].swap(0, SeqCst)
    }

    /// Whether the caller is one that is to leave.
    #[inline]
    pub(super) fn may_leave(&self) -> bool {
        let word = &self.words()[0];
        let mut left = word.load(Relaxed);
        while left != 0 {
            match word.compare_exchange(left, left - 1, SeqCst, Relaxed) {
                Ok(_) => return true,
                Err(now) => left = now,
            }
        }
        false
    }

    /// Marks a job as cancelled. False when there is no room. By the pool's process only, one thread at a time.
    pub(super) fn cancel(&self, job: u64) -> bool {
        let Some(word) = self.line(job).iter().find(|word| word.load(Relaxed) == 0) else { return false };
        word.store(job, SeqCst);
        let cancelled = &self.words()[1];
        cancelled.store(cancelled.load(Relaxed) + 1, SeqCst);
        true
    }

    /// Takes the mark back, if there is one. As [`Board::cancel`].
    pub(super) fn forget(&self, job: u64) {
        if let Some(word) = self.line(job).iter().find(|word| word.load(Relaxed) == job) {
            word.store(0, SeqCst);
            let cancelled = &self.words()[1];
            cancelled.store(cancelled.load(Relaxed).saturating_sub(1), SeqCst);
        }
    }

    /// The words of which one is this job's if it is cancelled.
    fn line(&self, job: u64) -> &[AtomicU64] {
        let start = CANCELLED_AT + (job as usize % CANCELLED) / LINE * LINE;
        &self.words()[start..start + LINE]
    }

    /// Whether a task of this job, which the caller has taken, is to be passed over.
    #[inline]
    pub(super) fn is_cancelled(&self, job: u64) -> bool {
        self.words()[1].load(SeqCst) != 0 && self.line(job).iter().any(|word| word.load(SeqCst) == job)
    }

    /// Has a worker take no task any more. False when there is no room. As [`Board::cancel`].
    pub(super) fn fence(&self, worker: Identity) -> bool {
        let words = &self.words()[FENCED_AT..];
        let Some(word) = words[1..].iter().find(|word| word.load(Relaxed) == 0) else { return false };
        word.store(worker.to_bits(), SeqCst);
        words[0].fetch_add(1, SeqCst);
        // What the caller looks at next, it sees as it is after that: see `Board::is_fenced`.
        store_load_barrier();
        true
    }

    /// Undoes one [`Board::fence`] of a worker of this pid, if there was one. As [`Board::cancel`].
    pub(super) fn unfence(&self, pid: u32) {
        let words = &self.words()[FENCED_AT..];
        let is_its = |word: &&AtomicU64| {
            Identity::from_bits(word.load(Relaxed)).is_some_and(|worker| worker.pid_number() == pid)
        };
        if let Some(word) = words[1..].iter().find(is_its) {
            word.store(0, SeqCst);
            words[0].store(words[0].load(Relaxed).saturating_sub(1), SeqCst);
        }
    }

    /// Whether the caller is to take no task any more.
    ///
    /// It has acknowledged its last task. So a pool that finds the task still in its hands, after it has fenced the worker, knows
    /// that the worker will find the fence, also where a lock orders neither.
    #[inline]
    pub(super) fn is_fenced(&self) -> bool {
        store_load_barrier();
        let words = &self.words()[FENCED_AT..];
        words[0].load(SeqCst) != 0 && {
            let me = Identity::current().to_bits();
            words[1..].iter().any(|word| word.load(SeqCst) == me)
        }
    }
}
