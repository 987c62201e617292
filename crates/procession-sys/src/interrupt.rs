//! What a host language wants done around a thread's sleeps: to release its lock meanwhile, and to end a wait for a signal.

use std::cell::Cell;

use super::process_owned::OwnedByProcess;
use super::thread;

/// The runtime of a host language, as the core needs to know it.
pub trait Runtime: Sync {
    /// Calls `sleep`, which blocks the thread for a quarter of a second at most and tells whether a signal ended it, with
    /// the host's own lock released. Whether the operation is to end now, as if its deadline had passed.
    fn around(&self, sleep: &mut (dyn FnMut() -> bool + Send)) -> bool;

    /// Whether no other thread runs code of the host language. Called between sleeps, with the
    /// host's own lock held. False where that cannot be known.
    fn is_only_thread(&self) -> bool {
        thread::is_only_one()
    }
}

#[derive(Clone, Copy)]
struct Hosted {
    host: Option<&'static dyn Runtime>,
    /// Whether the host's word ends the operation; else it is kept in `called`.
    ends: bool,
    /// Whether deadlines count as passed.
    interrupted: bool,
    /// Whether the operation is to ask its caller soon whether to go on.
    called: bool,
}

const ALONE: Hosted = Hosted { host: None, ends: true, interrupted: false, called: false };

thread_local! {
    static HOSTED: Cell<Hosted> = const { Cell::new(ALONE) };
}

/// Restores what was before, also when what runs in between panics.
struct Restore(Hosted);

impl Drop for Restore {
    fn drop(&mut self) {
        HOSTED.set(self.0);
    }
}

/// Runs an operation whose sleeps the host surrounds. Also whether the host ended it. If the operation then says that its
/// deadline has passed, it has done nothing and may be called again with the same one; it may also have come to its end
/// with the last look, so that its result counts first.
pub fn with_runtime<R>(host: &'static dyn Runtime, operation: impl FnOnce() -> R) -> (R, bool) {
    let _restore = Restore(HOSTED.replace(Hosted { host: Some(host), ..ALONE }));
    let result = operation();
    (result, HOSTED.get().interrupted)
}

/// As [`with_runtime`] for an operation that must not end early, because it could lose something by that: where the host would
/// end it, it asks its `interrupted` closure at once.
pub fn with_runtime_deferring<R>(host: &'static dyn Runtime, operation: impl FnOnce() -> R) -> R {
    let _restore = Restore(HOSTED.replace(Hosted { host: Some(host), ends: false, ..ALONE }));
    operation()
}

/// Whether the host would have ended the operation since this was asked last. Always false outside of [`with_runtime_deferring`].
pub fn take_deferred() -> bool {
    let hosted = HOSTED.get();
    if hosted.called {
        HOSTED.set(Hosted { called: false, ..hosted });
    }
    hosted.called
}

/// Runs a part of an operation that the host may end, within one that it may not.
pub fn interruptible<R>(part: impl FnOnce() -> R) -> R {
    let before = HOSTED.get();
    let _restore = Restore(before);
    HOSTED.set(Hosted { ends: true, interrupted: false, ..before });
    part()
}

/// Runs what has to come to its end whatever the host says: taking an internal lock, whose holder does not keep it for long. It goes
/// on sleeping, for a holder that needs the host's own lock to go on.
pub fn uninterruptible<R>(operation: impl FnOnce() -> R) -> R {
    let before = HOSTED.get();
    let restore = Restore(before);
    HOSTED.set(Hosted { ends: false, interrupted: false, called: false, ..before });
    let result = operation();
    let called = HOSTED.get().called;
    drop(restore);
    // What the host said meanwhile holds for the rest of the operation.
    HOSTED.set(Hosted {
        interrupted: before.interrupted || called && before.ends,
        called: before.called || called && !before.ends,
        ..before
    });
    result
}

/// Whether no other thread of this process uses objects of this library: as far as the host of this
/// thread's operation knows, or [`thread::is_only_one`].
pub fn is_only_thread() -> bool {
    HOSTED.get().host.map_or_else(thread::is_only_one, Runtime::is_only_thread)
}

/// Whether the host ends the operation that this thread is in.
pub fn is_interrupted() -> bool {
    HOSTED.get().interrupted
}

/// Every sleep goes through here. `sleep` returns whether a signal ended it.
pub(super) fn around(mut sleep: impl FnMut() -> bool + Send) {
    let hosted = HOSTED.get();
    match hosted.host {
        None => {
            sleep();
        }
        Some(host) => {
            // While the host runs other code in this thread, that code's operations are not this one's.
            HOSTED.set(ALONE);
            let restore = Restore(hosted);
            // A child forked by that code would continue in the middle of the operation.
            let here = OwnedByProcess::new();
            let ended = host.around(&mut sleep);
            drop((restore, here));
            HOSTED.set(Hosted {
                interrupted: hosted.interrupted || ended && hosted.ends,
                called: hosted.called || ended && !hosted.ends,
                ..hosted
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use super::*;
    use crate::clock::Deadline;
    use crate::{crash_point, futex};

    struct Third(AtomicU32);

    impl Runtime for Third {
        fn around(&self, sleep: &mut (dyn FnMut() -> bool + Send)) -> bool {
            sleep();
            self.0.fetch_add(1, Ordering::Relaxed) == 2
        }
    }

    #[test]
    fn a_host_ends_a_wait() {
        static HOST: Third = Third(AtomicU32::new(0));
        let word = crash_point::AtomicU32::new(0);
        let ((), interrupted) = with_runtime(&HOST, || {
            while let Some(time) = Deadline::Never.slice(Duration::from_millis(1)) {
                futex::wait(&word, 0, time);
            }
            uninterruptible(|| assert!(!Deadline::Never.passed()));
            assert!(Deadline::Never.passed());
        });
        assert!(interrupted);
        assert_eq!(HOST.0.load(Ordering::Relaxed), 3);
        assert!(!Deadline::Never.passed());
    }

    struct Always;

    impl Runtime for Always {
        fn around(&self, sleep: &mut (dyn FnMut() -> bool + Send)) -> bool {
            sleep();
            true
        }
    }

    #[test]
    fn an_operation_that_must_not_end_early_is_called() {
        let word = crash_point::AtomicU32::new(0);
        let sleep = || futex::wait(&word, 0, Duration::from_millis(1));
        with_runtime_deferring(&Always, || {
            assert!(!take_deferred());
            sleep();
            assert!(!Deadline::Never.passed());
            assert!(take_deferred());
            assert!(!take_deferred());
            uninterruptible(sleep);
            assert!(take_deferred());
            interruptible(|| {
                sleep();
                assert!(Deadline::Never.passed());
            });
            assert!(!Deadline::Never.passed());
        });
        let ((), interrupted) = with_runtime(&Always, || {
            uninterruptible(|| {
                sleep();
                assert!(!Deadline::Never.passed());
            });
            assert!(Deadline::Never.passed());
            assert!(!take_deferred());
        });
        assert!(interrupted);
    }
}
