//! How a lock and its like are waited for.

use procession_sys::clock::{Deadline, Instant};
use procession_sys::interrupt;

use crate::sync::wait::Slept;
use crate::sync::{SLICE, Slices, Spinner, WaitQueue};

/// Waits until `attempt` succeeds, looking for what the dead left behind with `recover` after each full slice
/// and before giving up (so also when the deadline is [`Deadline::Now`]), and not more often, but for a host's call: it asks
/// the system. `None` when the deadline has passed.
pub(super) fn wait_for<R>(
    waiters: &WaitQueue,
    spinner: &Spinner,
    deadline: Deadline,
    mut attempt: impl FnMut() -> Option<R>,
    mut recover: impl FnMut() -> Option<R>,
) -> Option<R> {
    if deadline == Deadline::Now {
        return attempt().or_else(recover);
    }
    let mut found = None;
    let looking = || {
        found = attempt();
        found.is_some()
    };
    if spinner.spin(looking) {
        return found;
    }
    let mut slices = Slices::default();
    let mut recovered = Instant::now();
    loop {
        let ticket = waiters.prepare();
        if let Some(result) = attempt() {
            return Some(result);
        }
        let slept = waiters.sleep_for(slices.next(), ticket, deadline);
        if slept == Slept::Undisturbed {
            slices.undisturbed();
        }
        let in_time = slept != Slept::PastDeadline;
        if let Some(result) = attempt() {
            return Some(result);
        }
        if !in_time || interrupt::take_deferred() || recovered.elapsed() >= SLICE {
            if let Some(result) = recover() {
                return Some(result);
            }
            if !in_time {
                return None;
            }
            recovered = Instant::now();
        }
    }
}
