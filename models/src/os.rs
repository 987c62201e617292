//! What the code that [`crate::orders`] runs asks of the system, as loom can explore it.
//!
//! The kernel is one mutex: what a system call makes known to another process, a death among it, it makes known with all that
//! came before. Time does not pass but when somebody looks: every wait was long enough.

/// As `procession_sys::clock`.
pub(crate) mod clock {
    use std::cell::Cell;
    use std::time::Duration;

    /// An instant long ago.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct Instant;

    impl Instant {
        pub(crate) fn now() -> Self {
            Instant
        }

        pub(crate) fn elapsed(self) -> Duration {
            Duration::from_secs(3600)
        }
    }

    /// Until when; a time has always passed after the first sleep.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) enum Deadline {
        After(Duration),
        Never,
    }

    impl Deadline {
        #[allow(non_upper_case_globals, reason = "a variant of the real one")]
        pub(crate) const Now: Deadline = Deadline::After(Duration::ZERO);

        pub(crate) fn after(time: Duration) -> Self {
            Deadline::After(time)
        }

        pub(crate) fn slice(self, slice: Duration) -> Option<Duration> {
            match self {
                Deadline::After(Duration::ZERO) => None,
                Deadline::After(time) => Some(time.min(slice)),
                Deadline::Never => Some(slice),
            }
        }

        pub(crate) fn passed(self) -> bool {
            self != Deadline::Never
        }
    }

    thread_local! {
        pub(super) static NOW: Cell<u64> = const { Cell::new(0) };
    }

    /// A second later each time.
    pub(crate) fn now_ms() -> u64 {
        NOW.set(NOW.get() + 1000);
        NOW.get()
    }
}

/// As `procession_sys::cpu`.
pub(crate) mod cpu {
    /// One, so that nobody spins: whoever does takes the same steps again.
    pub(crate) fn count() -> usize {
        1
    }
}

/// As `procession_sys::futex`.
pub(crate) mod futex {
    use std::time::Duration;

    use super::kernel;
    use crate::sync::atomic::AtomicU32;

    /// With slices no sleep is ended by a wake: all end after theirs.
    pub(crate) fn wait(word: &AtomicU32, expected: u32, _timeout: Duration) -> bool {
        kernel(|kernel| {
            if kernel.slices {
                loom::thread::yield_now();
                return true;
            }
            let mut state = kernel.state.lock().expect("not poisoned");
            if word.peek() != expected {
                return false;
            }
            let sleeper = state.next;
            state.next += 1;
            let address = std::ptr::from_ref(word).addr();
            state.sleepers.push((address, sleeper));
            while state.sleepers.contains(&(address, sleeper)) {
                state = kernel.woken.wait(state).expect("not poisoned");
            }
            false
        })
    }

    pub(crate) fn wake(word: &AtomicU32, count: u32) -> usize {
        kernel(|kernel| {
            if kernel.slices {
                return 0;
            }
            let mut state = kernel.state.lock().expect("not poisoned");
            let address = std::ptr::from_ref(word).addr();
            let mut woken = 0;
            state.sleepers.retain(|(at, _)| {
                let chosen = *at == address && woken < count as usize;
                woken += usize::from(chosen);
                !chosen
            });
            kernel.woken.notify_all();
            woken
        })
    }
}

/// As `procession_sys::interrupt`.
pub(crate) mod interrupt {
    /// No host ends anything here.
    pub(crate) fn uninterruptible<R>(operation: impl FnOnce() -> R) -> R {
        operation()
    }

    pub(crate) fn is_interrupted() -> bool {
        false
    }

    pub(crate) fn take_deferred() -> bool {
        false
    }
}

/// As `procession_sys::identity`.
pub(crate) mod identity {
    use std::cell::Cell;

    use super::kernel;

    /// A process: one of loom's threads.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct Identity(u64);

    loom::thread_local! {
        static ME: Cell<u64> = Cell::new(1);
    }

    impl Identity {
        pub(crate) const BITS: u32 = 60;
        pub(crate) const NOBODY: Identity = Identity(15);

        pub(crate) fn current() -> Self {
            Identity(ME.with(Cell::get))
        }

        /// The calling thread is this process from now on, from 1.
        pub(crate) fn become_process(number: u64) {
            ME.with(|me| me.set(number));
        }

        pub(crate) fn from_bits(bits: u64) -> Option<Self> {
            (bits != 0).then_some(Identity(bits))
        }

        pub(crate) fn to_bits(self) -> u64 {
            self.0
        }

        pub(crate) fn is_alive(self) -> bool {
            kernel(|kernel| {
                if kernel.deaths_tell_nothing {
                    return kernel.dead.load(loom::sync::atomic::Ordering::Relaxed) & 1 << self.0 == 0;
                }
                !kernel.state.lock().expect("not poisoned").dead.contains(&self.0)
            })
        }

        /// None is.
        pub(crate) fn is_stopped(self) -> bool {
            false
        }

        /// The calling process is dead for the others from now on.
        pub(crate) fn die() {
            let me = Self::current().0;
            kernel(|kernel| {
                if kernel.deaths_tell_nothing {
                    kernel.dead.fetch_or(1 << me, loom::sync::atomic::Ordering::Relaxed);
                } else {
                    kernel.state.lock().expect("not poisoned").dead.push(me);
                }
            });
        }
    }
}

use std::cell::RefCell;
use std::sync::Arc;

use loom::sync::atomic::AtomicU64;
use loom::sync::{Condvar, Mutex};

struct Kernel {
    slices: bool,
    deaths_tell_nothing: bool,
    state: Mutex<State>,
    woken: Condvar,
    dead: AtomicU64,
}

#[derive(Default)]
struct State {
    /// The word's address and the sleep's number.
    sleepers: Vec<(usize, u64)>,
    next: u64,
    dead: Vec<u64>,
}

thread_local! {
    // All of loom's threads run on the thread that explores.
    static KERNEL: RefCell<Option<Arc<Kernel>>> = const { RefCell::new(None) };
}

fn kernel<R>(call: impl FnOnce(&Kernel) -> R) -> R {
    let kernel = KERNEL.with_borrow(|kernel| kernel.clone()).expect("within an exploration");
    call(&kernel)
}

/// A new system, for one run of what loom explores. With `slices` every sleep ends by itself. With `deaths_tell_nothing` who
/// sees a death sees nothing of what the dead did before: not so in any system, and done wrong on purpose.
pub(crate) fn boot(slices: bool, deaths_tell_nothing: bool) {
    clock::NOW.set(0);
    let kernel = Kernel {
        slices,
        deaths_tell_nothing,
        state: Mutex::new(State::default()),
        woken: Condvar::new(),
        dead: AtomicU64::new(0),
    };
    KERNEL.set(Some(Arc::new(kernel)));
}

/// The system is gone, before loom looks for what is left.
pub(crate) fn shut_down() {
    KERNEL.set(None);
}
