//! The identity of a process: its pid together with a number that tells it from earlier and later
//! processes of the same pid.

use std::fmt;
use std::io;
use std::sync::atomic::Ordering;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, PidfdGetfdFlags, WaitId, WaitIdOptions, pidfd_getfd, pidfd_open, waitid,
};

use super::fork_page::ForkPage;
use super::instance::Instance;
use super::procfs;

/// Bits of a pid: the kernel's `PID_MAX_LIMIT` is 2^22.
const PID_BITS: u32 = 22;

/// A process, told apart from every other that ever has the same pid. Fits in 60 bits, so that a
/// control word can hold it beside up to four bits of state. One store then changes both.
///
/// A process that cannot be examined counts as alive: a process taken for dead would lose its locks
/// and messages to others while it runs. On a kernel before Linux 6.9 a process that `/proc` hides
/// is told apart by its pid alone.
///
/// Valid within one pid namespace; the header of each object names its own, and refuses those of another one.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity(u64);

impl Identity {
    /// A process that there never was: no process has the number 0.
    pub const NOBODY: Identity = Identity((1 << PID_BITS) - 1);

    /// The number of low bits that an identity occupies in a word.
    pub const BITS: u32 = PID_BITS + Instance::BITS;

    /// The calling process.
    ///
    /// Costs one load: the answer is kept in a page that the kernel empties in a forked child.
    #[inline]
    pub fn current() -> Self {
        let known = ForkPage::known().map_or(0, |page| page.me.load(Ordering::Relaxed));
        if known != 0 { Identity(known) } else { Self::find_out() }
    }

    /// Whether it is the calling process.
    #[inline]
    pub fn is_current(self) -> bool {
        match ForkPage::known() {
            Some(page) if page.me.load(Ordering::Relaxed) == self.0 => true,
            // The page of a forked child is empty at first.
            _ => self.is_found_out(),
        }
    }

    #[cold]
    fn is_found_out(self) -> bool {
        self == Self::current()
    }

    #[cold]
    fn find_out() -> Self {
        let me = &ForkPage::get().me;
        let found = Identity::new(rustix::process::getpid(), Instance::own());
        // Of two threads that ask at once, and learn different things, the first decides.
        match me.compare_exchange(0, found.0, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => found,
            Err(other) => Identity(other),
        }
    }

    /// The process that has this pid now. One that has ended, but has not been collected, still has
    /// it.
    ///
    /// # Errors
    /// `NotFound` when there is none.
    pub fn of_pid(pid: Pid) -> io::Result<Self> {
        let pidfd = match open_leader(pid) {
            Ok(pidfd) => pidfd,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(error),
            // Out of descriptors, say.
            Err(_) if is_leader(pid) => {
                return Ok(Identity::new(pid, Instance::without_descriptor(pid).unwrap_or(Instance::ANY)));
            }
            Err(_) => return Err(io::ErrorKind::NotFound.into()),
        };
        match Instance::of(&pidfd, pid) {
            Ok(instance) => Ok(Identity::new(pid, instance)),
            Err(_) if is_readable(&pidfd) => Err(io::ErrorKind::NotFound.into()),
            // It lives, and `/proc` does not show it.
            Err(_) => Ok(Identity::new(pid, Instance::ANY)),
        }
    }

    pub(super) fn new(pid: Pid, instance: Instance) -> Self {
        let number = pid.as_raw_nonzero().get() as u64;
        Identity(number | instance.to_bits() << PID_BITS)
    }

    fn instance(self) -> Instance {
        Instance::from_bits(self.0 >> PID_BITS)
    }

    /// Reads an identity back from [`Identity::to_bits`]; `None` for 0 and for what no process can have.
    pub fn from_bits(bits: u64) -> Option<Self> {
        let pid = bits & ((1 << PID_BITS) - 1);
        (pid != 0 && bits >> Self::BITS == 0).then_some(Identity(bits))
    }

    /// The identity as a number below 2^[`Identity::BITS`], never 0.
    pub const fn to_bits(self) -> u64 {
        self.0
    }

    /// The process id.
    pub fn pid(self) -> Pid {
        Pid::from_raw((self.0 & ((1 << PID_BITS) - 1)) as i32).expect("an identity has a pid above 0")
    }

    /// The process id as a number, as errors name it.
    pub fn pid_number(self) -> u32 {
        self.pid().as_raw_nonzero().get().unsigned_abs()
    }

    /// Whether the process still runs. A zombie does not; a process whose first thread has ended
    /// while others run does. A process that cannot be examined counts as running.
    pub fn is_alive(self) -> bool {
        if self == Identity::current() {
            return true;
        }
        match open_leader(self.pid()) {
            // Asked after the descriptor is held: what it refers to can no longer change its pid.
            Ok(pidfd) => self.instance().may_be(&pidfd, self.pid()) && !is_readable(&pidfd),
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            // Out of descriptors, say. A living process taken for dead would cost its lock or
            // message; a dead one taken for living costs another look a slice later.
            Err(_) => self.instance() != Instance::NONE && self.seems_alive(),
        }
    }

    /// A pidfd for exactly this process.
    ///
    /// # Errors
    /// `NotFound` when the process is gone (its pid may belong to another by now), or out of
    /// descriptors.
    pub fn open(self) -> io::Result<OwnedFd> {
        let pidfd = open_leader(self.pid())?;
        if self.instance().may_be(&pidfd, self.pid()) {
            Ok(pidfd)
        } else {
            Err(io::ErrorKind::NotFound.into())
        }
    }

    /// Duplicates a descriptor of the process. This is for a process that `/proc` does not show: where
    /// it does, more processes can open the descriptor there. Where Yama restricts debugging, this is for the process's
    /// ancestors and for root.
    ///
    /// # Errors
    /// `NotFound` when the process, or its descriptor, is gone; `PermissionDenied` otherwise, with the
    /// reason.
    pub fn duplicate_descriptor(self, number: u32) -> io::Result<OwnedFd> {
        let pidfd = self.open()?;
        let number = i32::try_from(number).map_err(|_| io::ErrorKind::NotFound)?;
        pidfd_getfd(&pidfd, number, PidfdGetfdFlags::empty()).map_err(|error| match error {
            Errno::BADF | Errno::SRCH => io::ErrorKind::NotFound.into(),
            Errno::PERM => {
                let pid = self.pid().as_raw_nonzero();
                let problem = format!(
                    "/proc/{pid}/fd cannot be used: /proc is not mounted, is that of another pid namespace, or hides \
                     the process, which is another user's (hidepid) or has changed its user"
                );
                io::Error::new(io::ErrorKind::PermissionDenied, problem)
            }
            error => error.into(),
        })
    }

    /// Whether the process is known to be stopped: by a signal, or by a debugger. False where it
    /// cannot be known, and for one whose cgroup is frozen.
    pub fn is_stopped(self) -> bool {
        self != Identity::current()
            && std::fs::read_to_string(format!("/proc/{}/stat", self.pid().as_raw_nonzero()))
                .is_ok_and(|stat| matches!(state(&stat), Some("T" | "t")))
    }

    /// Whether the process has the file mapped. One that runs another program by now (exec) has not. True where it
    /// cannot be known.
    pub fn maps(self, file: BorrowedFd<'_>) -> bool {
        let Ok(stat) = rustix::fs::fstat(file) else { return true };
        if !procfs::has_our_pids() {
            return true;
        }
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
        if !is_leader(self.pid()) {
            return false;
        }
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        !matches!(waitid(WaitId::Pid(self.pid()), options), Ok(Some(_)))
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pid {} (number {})", self.0 & ((1 << PID_BITS) - 1), self.0 >> PID_BITS)
    }
}

/// The number that tells this process's pid namespace from others. A process stays in the one that
/// it began in.
///
/// # Errors
/// `/proc/self/ns/pid` cannot be looked at, and the kernel is older than Linux 6.11, which needs no
/// `/proc` for it.
pub fn pid_namespace() -> io::Result<u64> {
    let known = &ForkPage::get().pid_namespace;
    match known.load(Ordering::Relaxed) {
        0 => {
            const PATH: &str = "/proc/self/ns/pid";
            let namespace = match rustix::fs::stat(PATH) {
                Ok(about) => about.st_ino,
                Err(error) => pid_namespace_without_proc().map_err(|_| procfs::explain(PATH)(error))?,
            };
            known.store(namespace, Ordering::Relaxed);
            Ok(namespace)
        }
        namespace => Ok(namespace),
    }
}

fn pid_namespace_without_proc() -> io::Result<u64> {
    /// `PIDFD_GET_PID_NAMESPACE`: `_IO(0xFF, 5)`.
    const GET_PID_NAMESPACE: libc::Ioctl = (0xFF << 8 | 5) as libc::Ioctl;
    let me = pidfd_open(rustix::process::getpid(), PidfdFlags::empty())?;
    // SAFETY: the request takes no pointer; what it returns, if not negative, is a new descriptor.
    let namespace = unsafe {
        match libc::ioctl(me.as_raw_fd(), GET_PID_NAMESPACE, 0) {
            ..0 => return Err(io::Error::last_os_error()),
            fd => OwnedFd::from_raw_fd(fd),
        }
    };
    Ok(rustix::fs::fstat(namespace)?.st_ino)
}

/// A pidfd for the process that has this pid now.
///
/// # Errors
/// `NotFound` when there is none; a thread of another process that has the number is none.
fn open_leader(pid: Pid) -> io::Result<OwnedFd> {
    pidfd_open(pid, PidfdFlags::empty()).map_err(|error| match error {
        Errno::SRCH => io::ErrorKind::NotFound.into(),
        // What kernels say of a thread, each in its own way; a filter of system calls may say the
        // same of anything.
        Errno::INVAL | Errno::NOENT if !is_leader(pid) => io::ErrorKind::NotFound.into(),
        error => error.into(),
    })
}

/// Whether there is a process with this pid, perhaps one that has ended and waits to be collected.
fn is_leader(pid: Pid) -> bool {
    let pid = pid.as_raw_nonzero().get();
    // SAFETY: no pointers; the signal 0 only asks.
    let asked = unsafe { libc::syscall(libc::SYS_tgkill, pid, pid, 0) };
    asked == 0 || io::Error::last_os_error().raw_os_error() != Some(libc::ESRCH)
}

fn is_readable(pidfd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(poll(&mut fds, Some(&now)), Ok(n) if n > 0)
}

/// Field 3 of `/proc/PID/stat`.
fn state(stat: &str) -> Option<&str> {
    stat.rsplit_once(')')?.1.split_ascii_whitespace().next()
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
    fn another_number_is_another_process() {
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
    fn a_thread_that_has_the_pid_is_not_the_process() {
        let (tell, told) = std::sync::mpsc::channel();
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            tell.send(rustix::thread::gettid()).unwrap();
            stopped.recv().is_err()
        });
        let number = told.recv().unwrap();
        assert_eq!(Identity::of_pid(number).unwrap_err().kind(), io::ErrorKind::NotFound);
        let dead = Identity::new(number, Instance::ANY);
        assert!(!dead.is_alive() && !dead.seems_alive());
        drop(stop);
        assert!(thread.join().unwrap());
    }

    #[test]
    fn nonsense_is_no_identity() {
        assert_eq!(Identity::from_bits(0), None);
        assert_eq!(Identity::from_bits(u64::MAX), None);
    }
}
