//! Running roles side by side, each in a process (or all in the threads of one), with a common start.

use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::thread::sleep;
use std::time::Duration;

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, wait, waitpid};
use rustix::time::{ClockId, clock_gettime};

use crate::contender::Result;

/// A role that takes longer is ended, and its trial has failed.
const WATCHDOG_SECONDS: u32 = 60;
/// The most roles of a trial.
pub const MOST_ROLES: usize = 128;

/// Where the roles of a trial run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    /// Each in a process of its own.
    Processes,
    /// All in one process, each in a thread of its own.
    Threads,
}

/// What one role does: sets itself up, [`Desk::ready`], works, [`Desk::finish`].
pub type Role<'a> = Box<dyn FnOnce(&Desk) -> Result<()> + Send + 'a>;

/// What each role reported, and the time from the common start until the last one to report was done.
pub struct Outcome {
    /// The values that the roles passed to [`Desk::finish`], in the order of the roles.
    pub values: Vec<u64>,
    /// From the start to the last finish, in seconds.
    pub seconds: f64,
}

/// Runs `roles` to their end.
pub fn run(home: Home, roles: Vec<Role<'_>>) -> Result<Outcome> {
    let control = Shared::<Control>::new()?;
    let count = roles.len();
    let mut children = Children::start(home, roles, &control)?;
    children.all_ready(&control, count)?;
    control.begin();
    children.all_ended()?;
    let slots = &control.slots[..count];
    let end = slots.iter().map(|slot| slot.end.load(Ordering::Acquire)).max().unwrap_or(0);
    let start = control.start.load(Ordering::Acquire);
    Ok(Outcome {
        values: slots.iter().map(|slot| slot.value.load(Ordering::Acquire)).collect(),
        seconds: end.saturating_sub(start) as f64 / 1e9,
    })
}

/// Starts `roles` that block for good, lets them settle, and returns the share of one core that all of them
/// together use during `watch`. Ends them.
pub fn idle_share(home: Home, roles: Vec<Role<'_>>, watch: Duration) -> Result<f64> {
    let control = Shared::<Control>::new()?;
    let count = roles.len();
    let mut children = Children::start(home, roles, &control)?;
    children.all_ready(&control, count)?;
    control.begin();
    sleep(Duration::from_millis(300));
    let cpu = || children.0.iter().map(|&pid| cpu_nanoseconds(pid)).sum::<Result<u64>>();
    let (cpu_before, before) = (cpu()?, now());
    sleep(watch);
    let (cpu_after, after) = (cpu()?, now());
    Ok((cpu_after - cpu_before) as f64 / (after - before) as f64)
}

/// Nanoseconds on the monotonic clock, the same in every process.
pub fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// The CPU time that a process and its threads have used.
fn cpu_nanoseconds(pid: Pid) -> Result<u64> {
    let (mut clock, mut time) = (0, libc::timespec { tv_sec: 0, tv_nsec: 0 });
    // SAFETY: both calls write only the variable that is passed to them.
    let failed = unsafe {
        libc::clock_getcpuclockid(pid.as_raw_pid(), &mut clock) != 0
            || libc::clock_gettime(clock, &mut time) != 0
    };
    if failed {
        return Err("no CPU clock for an idle process: it has ended".into());
    }
    Ok(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

/// What all processes of a trial see.
#[repr(C)]
struct Control {
    /// Roles that are set up.
    ready: AtomicU32,
    /// 1 once all may begin.
    go: AtomicU32,
    /// Roles that are done.
    finished: AtomicU32,
    /// How many roles there are.
    roles: AtomicU32,
    /// When `go` was set.
    start: AtomicU64,
    slots: [Slot; MOST_ROLES],
}

struct Slot {
    end: AtomicU64,
    value: AtomicU64,
}

impl Control {
    fn begin(&self) {
        self.start.store(now(), Ordering::Release);
        self.go.store(1, Ordering::Release);
    }
}

/// One role's view of the trial.
pub struct Desk<'a> {
    control: &'a Control,
    index: usize,
}

impl Desk<'_> {
    /// Waits until every role is set up.
    pub fn ready(&self) {
        self.control.ready.fetch_add(1, Ordering::AcqRel);
        while self.control.go.load(Ordering::Acquire) == 0 {
            sleep(Duration::from_micros(50));
        }
    }

    /// The role's work is done: the time is taken, and `value` reported. Waits for the other roles, so that
    /// no end is closed while somebody may need it.
    pub fn finish(&self, value: u64) {
        let slot = &self.control.slots[self.index];
        slot.value.store(value, Ordering::Release);
        slot.end.store(now(), Ordering::Release);
        self.control.finished.fetch_add(1, Ordering::AcqRel);
        while self.control.finished.load(Ordering::Acquire) < self.control.roles.load(Ordering::Acquire) {
            sleep(Duration::from_micros(200));
        }
    }
}

/// The processes of a trial; dropping kills and reaps what is left.
struct Children(Vec<Pid>);

impl Children {
    fn start(home: Home, roles: Vec<Role<'_>>, control: &Control) -> Result<Self> {
        assert!(roles.len() <= MOST_ROLES, "the control page has room for {MOST_ROLES} roles");
        control.roles.store(roles.len() as u32, Ordering::Release);
        let mut children = Children(Vec::new());
        let seat = |(index, role): (usize, Role<'_>)| role(&Desk { control, index });
        match home {
            Home::Processes => {
                for role in roles.into_iter().enumerate() {
                    children.0.push(fork(|| seat(role))?);
                }
            }
            Home::Threads => children.0.push(fork(|| {
                std::thread::scope(|scope| {
                    let threads: Vec<_> = roles
                        .into_iter()
                        .enumerate()
                        .map(|role| scope.spawn(move || seat(role).map_err(|error| error.to_string())))
                        .collect();
                    for thread in threads {
                        thread.join().map_err(|_| "a role panicked")??;
                    }
                    Ok(())
                })
            })?),
        }
        Ok(children)
    }

    /// Waits until `count` roles are set up, or one of them has failed.
    fn all_ready(&mut self, control: &Control, count: usize) -> Result<()> {
        while (control.ready.load(Ordering::Acquire) as usize) < count {
            if let Some((pid, status)) = wait(WaitOptions::NOHANG)? {
                self.0.retain(|&child| child != pid);
                return Err(format!("during set-up: {}", describe(status)).into());
            }
            sleep(Duration::from_micros(100));
        }
        Ok(())
    }

    fn all_ended(mut self) -> Result<()> {
        while !self.0.is_empty() {
            let Some((pid, status)) = wait(WaitOptions::empty())? else { continue };
            self.0.retain(|&child| child != pid);
            if status.exit_status() != Some(0) {
                return Err(describe(status).into());
            }
        }
        Ok(())
    }
}

fn describe(status: WaitStatus) -> String {
    match status.terminating_signal() {
        Some(libc::SIGALRM) => format!("not done after {WATCHDOG_SECONDS} s"),
        Some(signal) => format!("a role was ended by signal {signal}"),
        None => "a role failed".into(),
    }
}

impl Drop for Children {
    fn drop(&mut self) {
        for &pid in &self.0 {
            // Cannot fail: a child in the list has not been waited for, so its pid is still its own.
            let _ = kill_process(pid, Signal::KILL);
            let _ = waitpid(Some(pid), WaitOptions::empty());
        }
    }
}

/// Runs `work` in a child process.
fn fork(work: impl FnOnce() -> Result<()>) -> Result<Pid> {
    // SAFETY: the parent has one thread, so the child may do everything the parent may.
    match unsafe { libc::fork() } {
        -1 => Err(std::io::Error::last_os_error().into()),
        0 => {
            // SAFETY: no handler is set; the signal ends this process.
            unsafe { libc::alarm(WATCHDOG_SECONDS) };
            let status = match catch_unwind(AssertUnwindSafe(work)) {
                Ok(Ok(())) => 0,
                Ok(Err(error)) => {
                    eprintln!("  {error}");
                    1
                }
                Err(_) => 1,
            };
            // SAFETY: ends this process without running the parent's exit handlers in it.
            unsafe { libc::_exit(status) }
        }
        pid => Ok(Pid::from_raw(pid).ok_or("fork returned no pid")?),
    }
}

/// A `T` in memory that forked processes share.
pub struct Shared<T> {
    at: NonNull<T>,
    length: usize,
}

/// Types whose all-zero bytes are a value, and which may be changed by several processes at once.
///
/// # Safety
/// The type consists of atomic integers only.
pub unsafe trait Atomic {}
// SAFETY: atomic integers only.
unsafe impl Atomic for Control {}
// SAFETY: an atomic integer.
unsafe impl Atomic for AtomicU64 {}
// SAFETY: an atomic integer.
unsafe impl Atomic for AtomicU32 {}
// SAFETY: an array of what is atomic.
unsafe impl<T: Atomic, const N: usize> Atomic for [T; N] {}

// SAFETY: it gives out shared references to atomics only.
unsafe impl<T: Atomic> Sync for Shared<T> {}
// SAFETY: the mapping belongs to no thread.
unsafe impl<T: Atomic> std::marker::Send for Shared<T> {}

impl<T: Atomic> Shared<T> {
    /// Maps a zeroed `T`.
    pub fn new() -> Result<Self> {
        let length = size_of::<T>();
        // SAFETY: a new mapping at an address of the kernel's choice; pages are aligned for every `T`.
        let at = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
            )?
        };
        Ok(Shared { at: NonNull::new(at.cast()).ok_or("mapped at address 0")?, length })
    }
}

impl<T: Atomic> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the mapping holds a `T` (all zero is one) and lives as long as `self`.
        unsafe { self.at.as_ref() }
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length; no reference outlives `self`.
        let unmapped = unsafe { munmap(self.at.as_ptr().cast(), self.length) };
        debug_assert!(unmapped.is_ok());
    }
}
