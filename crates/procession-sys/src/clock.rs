//! Deadlines on the monotonic clock.

use std::time::Duration;

pub use std::time::Instant;

use super::interrupt;

/// Until when an operation may block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deadline {
    /// Do not block at all.
    Now,
    /// Block until this instant at the latest.
    At(Instant),
    /// Block for as long as it takes.
    Never,
}

impl Deadline {
    /// The deadline `timeout` from now. One too far away for the clock to express is [`Deadline::Never`],
    /// a zero one [`Deadline::Now`].
    pub fn after(timeout: Duration) -> Self {
        if timeout.is_zero() {
            return Deadline::Now;
        }
        Instant::now().checked_add(timeout).map_or(Deadline::Never, Deadline::At)
    }

    /// The time left, at most `slice`; `None` when the deadline has passed, or the [runtime](interrupt::Runtime) ends the operation.
    pub fn slice(self, slice: Duration) -> Option<Duration> {
        if interrupt::is_interrupted() {
            return None;
        }
        match self {
            Deadline::Now => None,
            Deadline::Never => Some(slice),
            Deadline::At(at) => {
                let left = at.saturating_duration_since(Instant::now());
                (!left.is_zero()).then(|| left.min(slice))
            }
        }
    }

    /// Whether the deadline has passed, or the [runtime](interrupt::Runtime) ends the operation.
    pub fn passed(self) -> bool {
        match self {
            _ if interrupt::is_interrupted() => true,
            Deadline::Now => true,
            Deadline::Never => false,
            Deadline::At(at) => Instant::now() >= at,
        }
    }
}

/// Milliseconds of the monotonic clock, the same in all processes.
pub fn now_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}

impl From<Option<Duration>> for Deadline {
    /// `None` is [`Deadline::Never`], as in Python's `timeout=None`.
    fn from(timeout: Option<Duration>) -> Self {
        timeout.map_or(Deadline::Never, Deadline::after)
    }
}
