//! Who a process is: its pid together with its start time, so that a reused pid is another process.

use std::ffi::CString;
use std::fmt;
use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use super::apart;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::mm::{self, Advice, MapFlags, ProtFlags};
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, pidfd_open, test_kill_process, waitid};

/// Bits of a pid: the kernel's `PID_MAX_LIMIT` is 2^22.
const PID_BITS: u32 = 22;
/// Bits kept of the start time in clock ticks of 10 ms: 87 years before they repeat.
const START_BITS: u32 = 38;

/// A process, told apart from every other that ever has the same pid. Fits in 60 bits, so that a control
/// word can hold it together with up to four bits of state and change both in one store.
///
/// Valid within one pid namespace; [`crate::shm::Header`] refuses objects of another one.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity(u64);

impl Identity {
    /// A process that there never was: it has the highest pid, but started with the machine.
    pub const NOBODY: Identity = Identity((1 << PID_BITS) - 1);

    /// The number of low bits that an identity occupies in a word.
    pub const BITS: u32 = PID_BITS + START_BITS;

    /// The calling process.
    ///
    /// Costs one load: the answer is kept in a page that the kernel empties in a forked child.
    #[inline]
    pub fn current() -> Self {
        // SAFETY: null, or the cell, which is never unmapped.
        let known =
            unsafe { CELL.load(Ordering::Acquire).as_ref() }.map_or(0, |cell| cell.load(Ordering::Relaxed));
        if known != 0 { Identity(known) } else { Self::find_out() }
    }

    #[cold]
    fn find_out() -> Self {
        let [cell, _] = fork_cleared_words();
        let pid = rustix::process::getpid();
        let start = start_time(pid).or_else(|error| match error.raw_os_error() {
            // A forked child of a process that has used up its descriptors, say.
            Some(libc::EMFILE | libc::ENFILE) => start_time_without_descriptor(pid),
            _ => Err(error),
        });
        let me = Identity::new(pid, start.expect("a process can read its own start time from /proc"));
        cell.store(me.0, Ordering::Relaxed);
        me
    }

    /// The process that has this pid now.
    ///
    /// # Errors
    /// `NotFound` when there is none; otherwise what reading `/proc` reported.
    pub fn of_pid(pid: Pid) -> io::Result<Self> {
        Ok(Identity::new(pid, start_time(pid)?))
    }

    fn new(pid: Pid, start: u64) -> Self {
        let number = pid.as_raw_nonzero().get() as u64;
        Identity(number | (start & ((1 << START_BITS) - 1)) << PID_BITS)
    }

    /// Reads an identity back from [`Identity::to_bits`]; `None` for 0 and for what no process can have.
    pub fn from_bits(bits: u64) -> Option<Self> {
        let pid = bits & ((1 << PID_BITS) - 1);
        (pid != 0 && bits >> Self::BITS == 0).then_some(Identity(bits))
    }

    /// The identity as a number below 2^[`Identity::BITS`], never 0.
    pub fn to_bits(self) -> u64 {
        self.0
    }

    /// The process id.
    pub fn pid(self) -> Pid {
        Pid::from_raw((self.0 & ((1 << PID_BITS) - 1)) as i32).expect("an identity has a pid above 0")
    }

    /// Whether the process still runs. A zombie does not; a process whose first thread ended while others
    /// go on does.
    pub fn is_alive(self) -> bool {
        if self == Identity::current() {
            return true;
        }
        match self.open() {
            Ok(pidfd) => !is_readable(&pidfd),
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            // Out of descriptors, say, so that `/proc` cannot be read either. A living process taken for dead would
            // cost its lock or message; a dead one taken for living costs another look a slice later.
            Err(_) => self.seems_alive(),
        }
    }

    /// A pidfd for exactly this process.
    ///
    /// # Errors
    /// `NotFound` when the process is gone (its pid may belong to another by now).
    pub fn open(self) -> io::Result<OwnedFd> {
        let pidfd = pidfd_open(self.pid(), PidfdFlags::empty()).map_err(gone)?;
        // Read after the descriptor is held: what it refers to can no longer change its pid.
        if self.started_at(start_time(self.pid())?) { Ok(pidfd) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    /// Whether the process has the file mapped. One that runs another program by now (exec) has not. True where it
    /// cannot be known.
    pub fn maps(self, file: BorrowedFd<'_>) -> bool {
        let Ok(stat) = rustix::fs::fstat(file) else { return true };
        let Ok(maps) = std::fs::read_to_string(format!("/proc/{}/maps", self.pid().as_raw_nonzero())) else {
            return true;
        };
        let (major, minor) = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
        let wanted = format!(" {major:02x}:{minor:02x} {} ", stat.st_ino);
        // A process whose first thread has ended shows none, whatever its other threads have.
        maps.is_empty() || maps.lines().any(|line| format!("{line} ").contains(&wanted))
    }

    /// What can be known without a descriptor: whether the pid is taken, and not by a child that only waits to be
    /// collected.
    fn seems_alive(self) -> bool {
        if matches!(test_kill_process(self.pid()), Err(Errno::SRCH)) {
            return false;
        }
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        !matches!(waitid(WaitId::Pid(self.pid()), options), Ok(Some(_)))
    }

    fn started_at(self, start: u64) -> bool {
        self.0 >> PID_BITS == start & ((1 << START_BITS) - 1)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pid {} (started at tick {})", self.0 & ((1 << PID_BITS) - 1), self.0 >> PID_BITS)
    }
}

/// The number that tells this process's pid namespace from others.
///
/// # Errors
/// What looking at `/proc/self/ns/pid` reported.
pub fn pid_namespace() -> io::Result<u64> {
    // It never changes for a process, but a forked child may be in another.
    let [_, known] = fork_cleared_words();
    match known.load(Ordering::Relaxed) {
        0 => {}
        namespace => return Ok(namespace),
    }
    let namespace = rustix::fs::stat("/proc/self/ns/pid")?.st_ino;
    known.store(namespace, Ordering::Relaxed);
    Ok(namespace)
}

fn gone(error: Errno) -> io::Error {
    if error == Errno::SRCH { io::ErrorKind::NotFound.into() } else { error.into() }
}

fn is_readable(pidfd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(poll(&mut fds, Some(&now)), Ok(n) if n > 0)
}

/// Field 22 of `/proc/PID/stat`: when the process started, in clock ticks since boot.
fn start_time(pid: Pid) -> io::Result<u64> {
    let stat =
        std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).map_err(
            |error| match error.raw_os_error() {
                Some(libc::ESRCH) => io::ErrorKind::NotFound.into(),
                _ => error,
            },
        )?;
    parse_start_time(&stat)
}

/// The same, where this process can open nothing.
fn start_time_without_descriptor(pid: Pid) -> io::Result<u64> {
    let path = CString::new(format!("/proc/{}/stat", pid.as_raw_nonzero()))?;
    let mut buffer = [0; 1024];
    let len = apart::read(&path, &mut buffer)?;
    parse_start_time(&String::from_utf8_lossy(&buffer[..len]))
}

fn parse_start_time(stat: &str) -> io::Result<u64> {
    // The name in field 2 may hold blanks and parentheses; the last parenthesis ends it.
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    after_name
        .split_ascii_whitespace()
        .nth(19)
        .and_then(|field| field.parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "unreadable /proc/PID/stat"))
}

/// The cell that holds this process's identity, once it is known; null before.
static CELL: AtomicPtr<AtomicU64> = AtomicPtr::new(std::ptr::null_mut());

/// Words that read 0 in a forked child, however the fork came about: who this process is, and the number of its pid namespace.
fn fork_cleared_words() -> &'static [AtomicU64; 2] {
    static MADE: OnceLock<&'static [AtomicU64; 2]> = OnceLock::new();
    let words = MADE.get_or_init(|| {
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
            mm::madvise(page, len, Advice::LinuxWipeOnFork).expect("MADV_WIPEONFORK, Linux 4.14 or newer");
            &*page.cast::<[AtomicU64; 2]>()
        }
    });
    CELL.store(std::ptr::from_ref(&words[0]).cast_mut(), Ordering::Release);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_current_process_lives_and_reads_back() {
        let me = Identity::current();
        assert_eq!(me, Identity::of_pid(rustix::process::getpid()).unwrap());
        assert_eq!(Identity::from_bits(me.to_bits()), Some(me));
        assert!(me.is_alive());
    }

    #[test]
    fn another_start_time_is_another_process() {
        let me = Identity::current();
        let impostor = Identity::from_bits(me.to_bits() ^ (1 << PID_BITS)).unwrap();
        assert!(!impostor.is_alive());
        assert_eq!(impostor.open().unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_zombie_is_dead() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let id = Identity::of_pid(Pid::from_child(&child)).unwrap();
        let pidfd = id.open().unwrap();
        poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], None).unwrap();
        assert!(!id.is_alive());
        child.wait().unwrap();
        assert!(!id.is_alive());
    }

    #[test]
    fn without_descriptors_the_living_are_not_taken_for_dead() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let id = Identity::of_pid(Pid::from_child(&child)).unwrap();
        assert!(id.seems_alive());
        let pidfd = id.open().unwrap();
        child.kill().unwrap();
        poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], None).unwrap();
        assert!(!id.seems_alive(), "a zombie");
        child.wait().unwrap();
        assert!(!id.seems_alive());
    }

    #[test]
    fn without_descriptors_a_process_knows_itself() {
        let pid = rustix::process::getpid();
        assert_eq!(start_time_without_descriptor(pid).unwrap(), start_time(pid).unwrap());
    }

    #[test]
    fn nonsense_is_no_identity() {
        assert_eq!(Identity::from_bits(0), None);
        assert_eq!(Identity::from_bits(u64::MAX), None);
    }
}
