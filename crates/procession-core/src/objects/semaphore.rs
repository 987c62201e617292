//! Permits, counted or each with its holder.

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::sync::Arc;

use procession_sys::clock::Deadline;
use procession_sys::identity::Identity;

use super::{Handle, Object, wait_for};
use crate::describe::{Description, Holder};
use crate::shm::arena::{SlotHead, SlotKind, Words};
use crate::shm::{CreateError, OpenError};
use crate::sync::WaitQueue;
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// The words of a semaphore. A robust one has `permits` words behind them, see [`Semaphore::holders`].
#[repr(C)]
#[derive(Debug)]
struct SemaphoreWords {
    head: SlotHead,
    /// How many permits are free; unused by a robust semaphore. Changed by one exchange each time.
    value: AtomicU32,
    /// `value` never goes above this. Written by the creator, constant since.
    max: AtomicU32,
    /// 0, or for a robust semaphore how many permits there are. Written by the creator, constant since.
    permits: AtomicU32,
    waiters: WaitQueue,
}

// SAFETY: repr(C), begins with the head, and all else is atomic.
unsafe impl Words for SemaphoreWords {
    const KIND: SlotKind = SlotKind::Semaphore;
}

/// A number of permits, as Python's `multiprocessing.Semaphore` and `BoundedSemaphore`.
///
/// A plain semaphore only counts: what a dead process had taken stays taken. A robust one knows who holds each permit, and
/// waiters give back those of the dead.
#[derive(Clone, Debug)]
pub struct Semaphore(Arc<Object<SemaphoreWords>>);

/// A release that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReleaseError {
    /// The semaphore would have more permits than it may.
    #[error("the semaphore was released more often than acquired: it already has all of its {max} permits")]
    TooMany {
        /// The most it may have.
        max: u32,
    },
    /// This process holds none of a robust semaphore's permits.
    #[error("this process holds no permit of the semaphore, so it cannot give one back")]
    NotHeld,
}

impl Semaphore {
    /// The highest value of a semaphore.
    pub const MAX: u32 = i32::MAX as u32;
    /// The most permits of a robust semaphore.
    pub const MAX_ROBUST: u32 = 65_536;

    /// A semaphore of `value` permits that can grow to `max` of them.
    ///
    /// # Errors
    /// `max` above [`Semaphore::MAX`] or below `value`; out of memory, of descriptors or of mappings.
    pub fn counting(value: u32, max: u32) -> Result<Self, CreateError> {
        if max > Self::MAX || value > max {
            return Err(invalid(format!("a value of {value} is above its bound of {}", max.min(Self::MAX))));
        }
        let object = Object::create(0, |words: &SemaphoreWords, _| {
            words.value.store(value, Ordering::Relaxed);
            words.max.store(max, Ordering::Relaxed);
            Ok(())
        })?;
        Ok(Semaphore(Arc::new(object)))
    }

    /// A semaphore of `permits` permits, no more and no less, of which those of dead processes come back.
    ///
    /// # Errors
    /// 0 or more than [`Semaphore::MAX_ROBUST`] permits; out of memory, of descriptors or of mappings.
    pub fn robust(permits: u32) -> Result<Self, CreateError> {
        if permits == 0 || permits > Self::MAX_ROBUST {
            let most = Self::MAX_ROBUST;
            return Err(invalid(format!("a robust semaphore has 1 to {most} permits, not {permits}")));
        }
        let object = Object::create(permits as usize * 8, |words: &SemaphoreWords, _| {
            words.max.store(permits, Ordering::Relaxed);
            words.permits.store(permits, Ordering::Relaxed);
            Ok(())
        })?;
        Ok(Semaphore(Arc::new(object)))
    }

    /// Opens the semaphore that a handle refers to.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(handle: Handle) -> Result<Self, OpenError> {
        let object = Object::<SemaphoreWords>::open(handle)?;
        let permits = object.permits.load(Ordering::Relaxed) as usize;
        if permits > Self::MAX_ROBUST as usize || permits > object.slot.tail_words::<SemaphoreWords>().len() {
            return Err(OpenError::Damaged("a semaphore with more permits than memory for them"));
        }
        Ok(Semaphore(Arc::new(object)))
    }

    /// A handle for another process.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn send(&self) -> io::Result<Handle> {
        self.0.slot.send()
    }

    /// Takes a permit, waiting until `deadline`; false when it passed first.
    #[inline]
    pub fn acquire(&self, deadline: Deadline) -> bool {
        if self.acquire_free() {
            return true;
        }
        let attempt = || self.acquire_free().then_some(());
        let recover = || if self.is_robust() && self.free_dead() > 0 { self.take_word() } else { None };
        wait_for(&self.0.waiters, &self.0.spinner, deadline, attempt, recover).is_some()
    }

    /// Takes a permit if there is one without a look at who holds the others; whether there was. The quick beginning of a
    /// [`Semaphore::acquire`].
    #[inline]
    pub fn acquire_free(&self) -> bool {
        if self.is_robust() { self.take_word().is_some() } else { self.take_count().is_some() }
    }

    /// Gives a permit back. Of a plain semaphore anybody may.
    ///
    /// # Errors
    /// See [`ReleaseError`]; nothing has changed then.
    #[inline]
    pub fn release(&self) -> Result<(), ReleaseError> {
        if self.is_robust() {
            self.release_word()?;
        } else {
            let max = self.bound();
            let more = |value: u32| (value < max).then(|| value + 1);
            let added = self.0.value.fetch_update(Ordering::SeqCst, Ordering::Relaxed, more);
            added.map_err(|_| ReleaseError::TooMany { max })?;
        }
        self.0.waiters.wake_after_seqcst(1);
        Ok(())
    }

    /// How many permits are free. Of a robust semaphore, those not known to belong to a dead process count as
    /// taken; and they are counted one by one, while others may take and release.
    pub fn value(&self) -> u32 {
        if self.is_robust() {
            self.holders().iter().filter(|holder| holder.load(Ordering::Relaxed) == 0).count() as u32
        } else {
            self.0.value.load(Ordering::Relaxed)
        }
    }

    /// The most permits that can be free at once.
    pub fn bound(&self) -> u32 {
        self.0.max.load(Ordering::Relaxed)
    }

    /// Whether permits of dead processes come back.
    pub fn is_robust(&self) -> bool {
        self.0.permits.load(Ordering::Relaxed) != 0
    }

    /// How many permits are free, who holds the others if that is known, and how many wait, in plain words: for who
    /// has to find out why a program does not go on. Takes no lock, and works whatever state the object is in.
    pub fn describe(&self) -> impl fmt::Display + '_ {
        Description(|f: &mut fmt::Formatter<'_>| {
            let arrived = self.0.waiters.arrivals();
            if !self.is_robust() {
                let value = self.0.value.load(Ordering::Relaxed);
                return writeln!(
                    f,
                    "semaphore: {value} of at most {} free; up to {arrived} wait",
                    self.bound()
                );
            }
            let (free, all) = (self.value(), self.holders().len());
            writeln!(f, "robust semaphore: {free} of {all} free; up to {arrived} wait")?;
            for (number, holder) in self.holders().iter().enumerate() {
                match holder.load(Ordering::Relaxed) {
                    0 => {}
                    word => writeln!(f, "  permit {number}: {}", Holder(word))?,
                }
            }
            Ok(())
        })
    }

    fn take_count(&self) -> Option<()> {
        let less = |value: u32| value.checked_sub(1);
        self.0.value.fetch_update(Ordering::Acquire, Ordering::Relaxed, less).ok().map(drop)
    }

    /// The permits of a robust semaphore: each is 0 when free, else the identity of its holder. Taken by an
    /// exchange from 0; given back by its holder, or by anybody once that is dead, with an exchange to 0.
    fn holders(&self) -> &[AtomicU64] {
        let words = self.0.slot.tail_words::<SemaphoreWords>();
        // Checked when opened; another process may have changed the number since.
        let permits = self.0.permits.load(Ordering::Relaxed).min(Self::MAX_ROBUST) as usize;
        &words[..words.len().min(permits)]
    }

    fn take_word(&self) -> Option<()> {
        let me = Identity::current().to_bits();
        self.holders().iter().find_map(|holder| {
            let free = holder.load(Ordering::Relaxed) == 0
                && holder.compare_exchange(0, me, Ordering::Acquire, Ordering::Relaxed).is_ok();
            free.then_some(())
        })
    }

    fn release_word(&self) -> Result<(), ReleaseError> {
        let me = Identity::current().to_bits();
        let given = self.holders().iter().any(|holder| {
            holder.load(Ordering::Relaxed) == me
                && holder.compare_exchange(me, 0, Ordering::SeqCst, Ordering::Relaxed).is_ok()
        });
        if given { Ok(()) } else { Err(ReleaseError::NotHeld) }
    }

    /// Frees the permits of dead processes; how many there were.
    fn free_dead(&self) -> u32 {
        let mut freed = 0;
        let mut living: HashSet<u64> = HashSet::new();
        for holder in self.holders() {
            let bits = holder.load(Ordering::Relaxed);
            if bits == 0 || living.contains(&bits) {
                continue;
            }
            // What is no process at all will give nothing back either.
            if Identity::from_bits(bits).is_some_and(Identity::is_alive) {
                living.insert(bits);
            } else if holder.compare_exchange(bits, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                freed += 1;
            }
        }
        if freed > 1 {
            // One is for the caller, the others for those who sleep.
            self.0.waiters.wake(freed - 1);
        }
        freed
    }
}

fn invalid(problem: String) -> CreateError {
    CreateError::Invalid { object: "a semaphore", problem }
}
