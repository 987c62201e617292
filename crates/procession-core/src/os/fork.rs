//! Keeping this process's own tables whole across a fork, and knowing that one happened.

use std::cell::UnsafeCell;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

static GATE: Mutex<()> = Mutex::new(());
static FORKS: AtomicU64 = AtomicU64::new(0);
static DURING_FORK: DuringFork = DuringFork(UnsafeCell::new(None));

/// The gate's guard while a fork is under way.
struct DuringFork(UnsafeCell<Option<MutexGuard<'static, ()>>>);

// SAFETY: only the thread that holds GATE, and forks with it, touches the cell; see `before` and `after`.
unsafe impl Sync for DuringFork {}

/// Makes forks wait at the [`gate`] from now on. Costs nothing after the first call.
///
/// # Errors
/// Out of memory.
pub fn watch() -> io::Result<()> {
    static REGISTERED: OnceLock<i32> = OnceLock::new();
    // SAFETY: the three functions are safe to call at any time on the forking thread; they allocate nothing.
    match *REGISTERED.get_or_init(|| unsafe { libc::pthread_atfork(Some(before), Some(after), Some(after)) })
    {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code)),
    }
}

/// Holds off forks while this process's tables change, so that a forked child finds them whole and unlocked.
/// Not reentrant: whoever holds it takes it no second time and does not fork.
pub fn gate() -> MutexGuard<'static, ()> {
    GATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How often this process, and before it its forefathers, forked since [`watch`]. Changes only while nobody holds
/// the [`gate`]; a child starts with a higher number than its parent had when it began to fork.
pub fn count() -> u64 {
    FORKS.load(Ordering::Relaxed)
}

extern "C" fn before() {
    let guard = gate();
    FORKS.fetch_add(1, Ordering::Relaxed);
    // SAFETY: this thread holds the gate, so no other is between `before` and `after`.
    unsafe { *DURING_FORK.0.get() = Some(guard) };
}

/// In the parent and in the child, where the forking thread is the only one there is.
extern "C" fn after() {
    // SAFETY: this thread took the gate in `before` and still holds it.
    drop(unsafe { (*DURING_FORK.0.get()).take() });
}
