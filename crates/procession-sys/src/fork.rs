//! Keeping this process's own tables whole across a fork, and knowing that one happened.

use std::cell::{Cell, UnsafeCell};
use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use super::{cpu, identity::Identity, memory};

static GATE: Mutex<()> = Mutex::new(());
static FORKS: AtomicU64 = AtomicU64::new(0);
static DURING_FORK: DuringFork = DuringFork(UnsafeCell::new(None));

/// [`UNWATCHED`], [`WATCHED`], or the pid of the process one of whose threads is registering the handlers. Not a
/// `OnceLock`: a child that is forked meanwhile would wait for a thread that it does not have.
static STATE: AtomicU32 = AtomicU32::new(UNWATCHED);
const UNWATCHED: u32 = 0;
const WATCHED: u32 = u32::MAX;

thread_local! {
    /// How many of `before` this thread has run without their `after`: more than one when a child was forked between
    /// registering and saying so, and registered the handlers again.
    static NESTED: Cell<u32> = const { Cell::new(0) };
}

/// What a table of the process does around each fork.
///
/// It is called before the fork, with the [`gate`] held. What it returns is called afterwards, in the
/// parent with false and in the child with true; the child has no other thread.
pub struct Hook(pub fn() -> Box<dyn FnOnce(bool)>);

/// A fork holds them, after the [`gate`].
static HOOKS: Mutex<Vec<&'static Hook>> = Mutex::new(Vec::new());

/// Calls the hook around every fork from now on. Does nothing for one that was registered before.
///
/// # Errors
/// As [`watch`].
pub fn register_hook(hook: &'static Hook) -> io::Result<()> {
    watch()?;
    let mut hooks = HOOKS.lock().unwrap_or_else(PoisonError::into_inner);
    if !hooks.iter().any(|known| std::ptr::eq(*known, hook)) {
        hooks.push(hook);
    }
    Ok(())
}

/// What is held while a fork is under way.
struct Held {
    after: Vec<Box<dyn FnOnce(bool)>>,
    _hooks: MutexGuard<'static, Vec<&'static Hook>>,
    /// Dropped last.
    _gate: MutexGuard<'static, ()>,
}

struct DuringFork(UnsafeCell<Option<Held>>);

// SAFETY: only the thread that holds GATE, and forks with it, touches the cell; see `before` and `after`.
unsafe impl Sync for DuringFork {}

/// Makes forks wait at the [`gate`] from now on. Costs nothing after the first call.
///
/// # Errors
/// Out of memory.
#[inline]
pub fn watch() -> io::Result<()> {
    if STATE.load(Ordering::Acquire) == WATCHED { Ok(()) } else { register() }
}

#[cold]
fn register() -> io::Result<()> {
    let me = rustix::process::getpid().as_raw_nonzero().get() as u32;
    loop {
        let state = STATE.load(Ordering::Acquire);
        if state == WATCHED {
            return Ok(());
        }
        if state == me {
            std::thread::yield_now();
            continue;
        }
        // Nobody, or a thread of a forefather, which will not go on here.
        if STATE.compare_exchange(state, me, Ordering::Acquire, Ordering::Relaxed).is_err() {
            continue;
        }
        // SAFETY: the functions may run at any time on a forking thread; they panic at nothing.
        let code = unsafe { libc::pthread_atfork(Some(before), Some(in_parent), Some(in_child)) };
        STATE.store(if code == 0 { WATCHED } else { UNWATCHED }, Ordering::Release);
        return if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code)) };
    }
}

/// Holds off forks while this process's tables change, so that a forked child finds them whole and unlocked.
/// Not reentrant: whoever holds it takes it no second time and does not fork.
pub fn gate() -> MutexGuard<'static, ()> {
    GATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The [`gate`] if nobody holds it now.
pub fn try_gate() -> Option<MutexGuard<'static, ()>> {
    match GATE.try_lock() {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(guard)) => Some(guard.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

/// How often this process, and before it its forefathers, forked since [`watch`]. Changes only while nobody holds
/// the [`gate`]; a child starts with a higher number than its parent had when it began to fork.
pub fn count() -> u64 {
    FORKS.load(Ordering::Relaxed)
}

/// Runs `fork`, which forks without the C library's knowledge, between the handlers that this
/// library has for that.
///
/// # Errors
/// Out of memory.
pub(super) fn around<R>(fork: impl FnOnce() -> R) -> io::Result<R> {
    watch()?;
    let parent = rustix::process::getpid();
    before();
    let result = fork();
    after(rustix::process::getpid() != parent);
    Ok(result)
}

extern "C" fn before() {
    if NESTED.replace(NESTED.get() + 1) > 0 {
        return;
    }
    // What is asked once a process: the child must not find another thread in the middle of asking.
    Identity::current();
    cpu::count();
    memory::limit();
    let gate = gate();
    FORKS.fetch_add(1, Ordering::Relaxed);
    let hooks = HOOKS.lock().unwrap_or_else(PoisonError::into_inner);
    let held = Held { after: hooks.iter().map(|hook| hook.0()).collect(), _hooks: hooks, _gate: gate };
    // SAFETY: this thread holds the gate, so no other is between `before` and `after`.
    unsafe { *DURING_FORK.0.get() = Some(held) };
}

extern "C" fn in_parent() {
    after(false);
}

/// The forking thread is the only one there is.
extern "C" fn in_child() {
    after(true);
}

fn after(in_child: bool) {
    // 0: the handlers were registered after this fork had begun.
    let Some(nested) = NESTED.get().checked_sub(1) else { return };
    NESTED.set(nested);
    if nested == 0 {
        // SAFETY: this thread took the gate in the first `before` and still holds it.
        let held = unsafe { (*DURING_FORK.0.get()).take() };
        if let Some(mut held) = held {
            held.after.drain(..).for_each(|after| after(in_child));
        }
    }
}
