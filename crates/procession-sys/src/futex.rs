//! Sleeping on a word of shared memory.
//!
//! Always the shared form: the PRIVATE flag would make two processes miss each other.

#[cfg(feature = "crash-points")]
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::io::Errno;
use rustix::thread::futex::{self, Flags, Timespec};

use super::crash_point::{AtomicU32, crash_point};
use super::interrupt;

/// Sleeps while `word` holds `expected`, at most for `timeout`. Returns on a wake, a changed word, the
/// timeout or a signal; the caller looks at its condition again in each case. True after the timeout.
pub fn wait(word: &AtomicU32, expected: u32, timeout: Duration) -> bool {
    #[cfg(feature = "crash-points")]
    let timeout = if RELIES_ON_WAKES.load(Ordering::Relaxed) { Duration::from_secs(3600) } else { timeout };
    let timeout = Timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    };
    crash_point();
    let mut waited = Ok(());
    interrupt::around(|| {
        waited = futex::wait(plain(word), Flags::empty(), expected, Some(&timeout));
        waited == Err(Errno::INTR)
    });
    crash_point();
    match waited {
        Ok(()) | Err(Errno::AGAIN | Errno::INTR) => false,
        Err(Errno::TIMEDOUT) => true,
        Err(error) => unreachable!("futex wait on a mapped, aligned word: {error}"),
    }
}

#[cfg(feature = "crash-points")]
static RELIES_ON_WAKES: AtomicBool = AtomicBool::new(false);

/// For tests: from now on nobody in this process looks again while it sleeps, so that only a wake ends a sleep.
#[cfg(feature = "crash-points")]
pub fn rely_on_wakes() {
    RELIES_ON_WAKES.store(true, Ordering::Relaxed);
}

/// Wakes up to `count` sleepers on `word`; returns how many were woken.
pub fn wake(word: &AtomicU32, count: u32) -> usize {
    // The kernel reads the count as a signed number.
    let count = count.min(i32::MAX as u32);
    crash_point();
    futex::wake(plain(word), Flags::empty(), count).unwrap_or(0)
}

#[cfg(not(feature = "crash-points"))]
fn plain(word: &AtomicU32) -> &AtomicU32 {
    word
}

#[cfg(feature = "crash-points")]
fn plain(word: &AtomicU32) -> &std::sync::atomic::AtomicU32 {
    word.plain()
}
