//! Words of shared memory, and the steps between their changes.
//!
//! Whatever another process may see is changed through these types, or next to a call of [`crash_point()`]. In a build with the
//! feature `crash-points` each of these places can end the process: the state in which it leaves the shared memory is the one that a
//! death at any instruction between this place and the one before leaves. So the deaths at all steps of an operation
//! are all the deaths that there are for the others.

pub use std::sync::atomic::{Ordering, fence};

#[cfg(not(feature = "crash-points"))]
pub use std::sync::atomic::{AtomicU32, AtomicU64};

#[cfg(feature = "crash-points")]
pub use self::instrumented::{AtomicU32, AtomicU64, count, die_at, record_sites, site, stop_at};

/// A step that is no store to a word: part of a copy to shared memory, or a system call.
#[cfg(not(feature = "crash-points"))]
#[inline(always)]
pub fn crash_point() {}

#[cfg(feature = "crash-points")]
pub use self::instrumented::crash_point;

#[cfg(feature = "crash-points")]
mod instrumented {
    use std::panic::Location;
    use std::sync::atomic::{AtomicPtr, AtomicU64 as Plain, Ordering};

    use rustix::process::{Signal, getpid, kill_process};

    /// The step at which this process ends; 0 when steps are not counted, and the highest number when they only are.
    static LAST: Plain = Plain::new(0);
    static PASSED: Plain = Plain::new(0);
    /// Whether the process stops at that step instead.
    static STOPS: Plain = Plain::new(0);
    static SITES: AtomicPtr<Sites> = AtomicPtr::new(std::ptr::null_mut());

    /// A place for what is noted, in memory that outlives the process.
    type Noted = &'static AtomicPtr<Location<'static>>;

    struct Sites {
        all: Vec<Noted>,
        latest: Noted,
    }

    /// From now on this process counts its steps, and SIGKILLs itself before the change that is step `last`, from 1.
    pub fn die_at(last: u64) {
        PASSED.store(0, Ordering::Relaxed);
        LAST.store(last, Ordering::Relaxed);
    }

    /// As [`die_at`], but the process stops itself, and continues from there after a SIGCONT.
    pub fn stop_at(step: u64) {
        STOPS.store(1, Ordering::Relaxed);
        die_at(step);
    }

    /// How many steps there were since [`die_at`], which ends with this.
    pub fn count() -> u64 {
        LAST.store(0, Ordering::Relaxed);
        PASSED.load(Ordering::Relaxed)
    }

    /// Where to note the places in the source at which there was a step, each in one of `sites` (null at first), while steps
    /// are counted, and where the latest. Other processes may use the same places.
    pub fn record_sites(all: Vec<Noted>, latest: Noted) {
        SITES.store(Box::into_raw(Box::new(Sites { all, latest })), Ordering::Release);
    }

    /// What is noted in one of the `sites` of [`record_sites`].
    pub fn site(noted: Noted) -> Option<&'static Location<'static>> {
        // SAFETY: null, or the address of one of the compiler's constants in this program, or in the one it was forked from.
        unsafe { noted.load(Ordering::Acquire).as_ref() }
    }

    /// A step that is no store to a word: part of a copy to shared memory, or a system call.
    #[inline(never)]
    #[track_caller]
    pub fn crash_point() {
        let last = LAST.load(Ordering::Relaxed);
        if last == 0 {
            return;
        }
        note(Location::caller());
        if PASSED.fetch_add(1, Ordering::Relaxed) + 1 == last {
            if STOPS.swap(0, Ordering::Relaxed) != 0 {
                let _ = kill_process(getpid(), Signal::STOP);
                return;
            }
            let _ = kill_process(getpid(), Signal::KILL);
            unreachable!("SIGKILL ends a process");
        }
    }

    fn note(here: &'static Location<'static>) {
        // SAFETY: null, or leaked by `record_sites`.
        let Some(sites) = (unsafe { SITES.load(Ordering::Acquire).as_ref() }) else { return };
        let address = std::ptr::from_ref(here).cast_mut();
        sites.latest.store(address, Ordering::Release);
        let noted = sites.all.iter().any(|place| {
            let null = std::ptr::null_mut();
            place.load(Ordering::Relaxed) == address
                || match place.compare_exchange(null, address, Ordering::Release, Ordering::Relaxed) {
                    Ok(_) => true,
                    Err(other) => other == address,
                }
        });
        assert!(noted, "a place for each site");
    }

    macro_rules! word {
        ($name:ident, $integer:ty) => {
            /// The atomic type of that name, each change of which is a step.
            #[repr(transparent)]
            #[derive(Debug, Default)]
            pub struct $name(std::sync::atomic::$name);

            #[allow(missing_docs, reason = "as the methods of the atomic type")]
            impl $name {
                pub const fn new(value: $integer) -> Self {
                    Self(std::sync::atomic::$name::new(value))
                }

                pub fn load(&self, order: Ordering) -> $integer {
                    self.0.load(order)
                }

                #[track_caller]
                pub fn store(&self, value: $integer, order: Ordering) {
                    crash_point();
                    self.0.store(value, order);
                }

                #[track_caller]
                pub fn swap(&self, value: $integer, order: Ordering) -> $integer {
                    crash_point();
                    self.0.swap(value, order)
                }

                #[track_caller]
                pub fn compare_exchange(
                    &self,
                    current: $integer,
                    new: $integer,
                    success: Ordering,
                    failure: Ordering,
                ) -> Result<$integer, $integer> {
                    crash_point();
                    self.0.compare_exchange(current, new, success, failure)
                }

                #[track_caller]
                pub fn fetch_add(&self, value: $integer, order: Ordering) -> $integer {
                    crash_point();
                    self.0.fetch_add(value, order)
                }

                #[track_caller]
                pub fn fetch_and(&self, value: $integer, order: Ordering) -> $integer {
                    crash_point();
                    self.0.fetch_and(value, order)
                }

                #[track_caller]
                pub fn fetch_max(&self, value: $integer, order: Ordering) -> $integer {
                    crash_point();
                    self.0.fetch_max(value, order)
                }

                #[track_caller]
                pub fn fetch_update(
                    &self,
                    success: Ordering,
                    failure: Ordering,
                    change: impl FnMut($integer) -> Option<$integer>,
                ) -> Result<$integer, $integer> {
                    crash_point();
                    self.0.fetch_update(success, failure, change)
                }
            }
        };
    }

    word!(AtomicU32, u32);
    word!(AtomicU64, u64);

    impl AtomicU32 {
        /// The word as the system calls know it.
        pub(crate) fn plain(&self) -> &std::sync::atomic::AtomicU32 {
            &self.0
        }
    }
}
