//! Sleeping on a word of shared memory.
//!
//! Always the shared form: the PRIVATE flag would make two processes miss each other.

use std::sync::atomic::{AtomicU32, AtomicU64};
use std::time::Duration;

use rustix::io::Errno;
use rustix::thread::futex::{self, Flags, Timespec};

/// Sleeps while `word` holds `expected`, at most for `timeout`. Returns on a wake, a changed word, the
/// timeout or a signal; the caller looks at its condition again in each case.
pub fn wait(word: &AtomicU32, expected: u32, timeout: Duration) {
    let timeout = Timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    };
    match futex::wait(word, Flags::empty(), expected, Some(&timeout)) {
        Ok(()) | Err(Errno::AGAIN | Errno::INTR | Errno::TIMEDOUT) => {}
        Err(error) => unreachable!("futex wait on a mapped, aligned word: {error}"),
    }
}

/// [`wait`] on the high half of a word of 64 bits.
pub fn wait_high(word: &AtomicU64, expected: u64, timeout: Duration) {
    wait(high_half(word), (expected >> 32) as u32, timeout);
}

/// [`wake`] of sleepers in [`wait_high`].
pub fn wake_high(word: &AtomicU64, count: u32) -> usize {
    wake(high_half(word), count)
}

fn high_half(word: &AtomicU64) -> &AtomicU32 {
    let index = if cfg!(target_endian = "little") { 1 } else { 0 };
    // SAFETY: the half lies within the word, lives as long, and is aligned to 4. Only the system looks at it
    // through this reference.
    unsafe { &*word.as_ptr().cast::<AtomicU32>().add(index) }
}

/// Wakes up to `count` sleepers on `word`; returns how many were woken.
pub fn wake(word: &AtomicU32, count: u32) -> usize {
    // The kernel reads the count as a signed number.
    let count = count.min(i32::MAX as u32);
    futex::wake(word, Flags::empty(), count).unwrap_or(0)
}
