//! A page of this process alone: the kernel empties it in a forked child, however the fork came about.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

use rustix::mm::{self, Advice, MapFlags, ProtFlags};

/// What a process finds out once, or counts for itself. Every word is 0 before, and in a new child.
pub(super) struct ForkPage {
    /// The bits of its own [`Identity`](super::identity::Identity).
    pub(super) me: AtomicU64,
    /// The number of its pid namespace.
    pub(super) pid_namespace: AtomicU64,
    /// The counters of guards over shared memory: see [`super::process_owned`].
    pub(super) stripes: [Stripe; STRIPES],
}

/// Counters of guards. A thread keeps to one, so that threads do not contend for a cache line.
pub(super) const STRIPES: usize = 16;

/// A counter, on a cache line of its own. A sum over all stripes is the number of guards: a guard
/// that another thread drops is subtracted where it was added.
#[repr(align(64))]
pub(super) struct Stripe(pub(super) AtomicU32);

/// The page, once there is one; null before. It is never unmapped.
static PAGE: AtomicPtr<ForkPage> = AtomicPtr::new(std::ptr::null_mut());

impl ForkPage {
    /// The page, if there is one already.
    #[inline]
    pub(super) fn known() -> Option<&'static Self> {
        // SAFETY: null, or the page, which is never unmapped.
        unsafe { PAGE.load(Ordering::Acquire).as_ref() }
    }

    /// The page, which the first call makes.
    #[inline]
    pub(super) fn get() -> &'static Self {
        Self::known().unwrap_or_else(Self::make)
    }

    #[cold]
    fn make() -> &'static Self {
        static MADE: OnceLock<&'static ForkPage> = OnceLock::new();
        let made = MADE.get_or_init(|| {
            const { assert!(size_of::<ForkPage>() <= 4096) };
            let len = rustix::param::page_size();
            // SAFETY: a fresh private mapping that nothing else refers to and that is never unmapped; it is
            // zeroed, page-aligned and large enough for the words.
            unsafe {
                let page = mm::mmap_anonymous(
                    std::ptr::null_mut(),
                    len,
                    ProtFlags::READ | ProtFlags::WRITE,
                    MapFlags::PRIVATE,
                )
                .expect("one page of memory");
                mm::madvise(page, len, Advice::LinuxWipeOnFork)
                    .expect("MADV_WIPEONFORK, Linux 4.14 or newer");
                &*page.cast::<ForkPage>()
            }
        });
        PAGE.store(std::ptr::from_ref(*made).cast_mut(), Ordering::Release);
        made
    }
}
