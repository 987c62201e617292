//! What the machine allows for a round trip: a bare futex, and a cache line that both sides watch.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::thread::futex::{Flags, wait, wake};

use crate::contender::Result;
use crate::stage::{Home, Shared};
use crate::workload::{Sample, round_trips};

/// Two words, far from each other.
type Words = [AtomicU32; 64];
const THERE: usize = 0;
const BACK: usize = 32;

/// Round trips through a futex, each side asleep until the other wakes it.
pub fn futex(pause: Duration, count: u64) -> Result<Sample> {
    exchange(
        pause,
        count,
        |word, value| {
            word.store(value, Ordering::SeqCst);
            wake(word, Flags::empty(), 1).map(|_| ())
        },
        |word, old| {
            // Woken, changed meanwhile or interrupted: the caller looks again.
            let _ = wait(word, Flags::empty(), old, None);
        },
    )
}

/// Round trips through a cache line, both sides spinning.
pub fn cache_line(count: u64) -> Result<Sample> {
    exchange(
        Duration::ZERO,
        count,
        |word, value| {
            word.store(value, Ordering::Release);
            Ok(())
        },
        |_, _| std::hint::spin_loop(),
    )
}

fn exchange(
    pause: Duration,
    count: u64,
    tell: impl Fn(&AtomicU32, u32) -> rustix::io::Result<()> + Sync,
    linger: impl Fn(&AtomicU32, u32) + Sync,
) -> Result<Sample> {
    let words = Shared::<Words>::new()?;
    let words: &Words = &words;
    let await_change = |word: &AtomicU32, old: u32| {
        loop {
            let value = word.load(Ordering::Acquire);
            if value != old {
                return value;
            }
            linger(word, old);
        }
    };
    round_trips(
        Home::Processes,
        pause,
        count,
        || Ok(()),
        |(), number| {
            let number = number as u32;
            tell(&words[THERE], number + 1)?;
            Ok(u64::from(await_change(&words[BACK], number) - 1))
        },
        || Ok(0_u32),
        |seen| {
            *seen = await_change(&words[THERE], *seen);
            Ok(tell(&words[BACK], *seen)?)
        },
    )
}
