//! The number that tells a process from every other that has, had or will have the same pid.

use std::ffi::CString;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fd::AsFd;
use rustix::fs::{fstat, fstatfs};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{helper_process, procfs};

/// One process among those of the same pid, as a number of [`Instance::BITS`] bits.
///
/// It is the inode of the process's pidfd, which Linux 6.9 and newer never use twice. Where the
/// kernel is older, or the process may not make pidfds, it is the time at which the process
/// started. The highest bit says which: a process that knows only the other number cannot tell, and
/// takes the two for the same process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Instance(u64);

/// Whether pidfds of this kernel have inodes of their own.
static PIDFS: AtomicU32 = AtomicU32::new(UNKNOWN);
const UNKNOWN: u32 = 0;
const YES: u32 = 1;
const NO: u32 = 2;

impl Instance {
    /// How many bits one has.
    pub(super) const BITS: u32 = 38;
    /// The number is an inode, not a time.
    const INODE: u64 = 1 << (Self::BITS - 1);
    /// No process has this one.
    pub(super) const NONE: Instance = Instance(0);
    /// Nothing is known but the pid.
    pub(super) const ANY: Instance = Instance(Self::INODE - 1);

    fn by_inode(inode: u64) -> Self {
        Instance(Self::INODE | (inode & (Self::INODE - 1)))
    }

    /// Ticks of 10 ms: 43 years before they repeat.
    fn by_start(ticks: u64) -> Self {
        Instance(ticks % (Self::INODE - 1))
    }

    /// Reads one back.
    pub(super) fn from_bits(bits: u64) -> Self {
        Instance(bits & (2 * Self::INODE - 1))
    }

    pub(super) fn to_bits(self) -> u64 {
        self.0
    }

    /// The calling process. [`Instance::ANY`] where neither a pidfd nor `/proc` can be had.
    pub(super) fn own() -> Self {
        let pid = rustix::process::getpid();
        let own = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => inode(&pidfd).ok().flatten().map(Self::by_inode),
            // A forked child of a process that has used up its descriptors, say.
            Err(_) => Self::without_descriptor(pid),
        };
        own.unwrap_or_else(|| start_of_self().map_or(Self::ANY, Self::by_start))
    }

    /// The process that has this pid now, for one that has no descriptor left. `None` where it
    /// cannot be known.
    pub(super) fn without_descriptor(pid: Pid) -> Option<Self> {
        let (system, inode) = helper_process::pidfd_inode(pid).ok()?;
        (system == PIDFS_MAGIC).then(|| Self::by_inode(inode))
    }

    /// The process of the pidfd.
    ///
    /// # Errors
    /// The kernel has no number for it, and `/proc` does not show the process.
    pub(super) fn of(pidfd: impl AsFd, pid: Pid) -> io::Result<Self> {
        match inode(pidfd)? {
            Some(inode) => Ok(Self::by_inode(inode)),
            None => start_of(pid).map(Self::by_start),
        }
    }

    /// Whether the process of the pidfd, whose pid is `pid`, may be this one. False only when it is
    /// known to be another.
    pub(super) fn may_be(self, pidfd: impl AsFd, pid: Pid) -> bool {
        match self {
            Instance::NONE => false,
            Instance::ANY => true,
            Instance(number) if number & Self::INODE != 0 => {
                inode(pidfd).ok().flatten().is_none_or(|inode| Self::by_inode(inode) == self)
            }
            // Where the offset of the clock is no multiple of a tick, a time may be rounded either
            // way.
            Instance(number) => start_of(pid).map_or(true, |start| {
                let difference = Self::by_start(start).0.abs_diff(number);
                difference <= u64::from(clock_offset().is_ok_and(|offset| offset % TICK != 0))
            }),
        }
    }
}

/// The file system of pidfds that have inodes of their own (`PID_FS_MAGIC`).
const PIDFS_MAGIC: u64 = 0x5049_4446;

/// The inode of a pidfd, if it has one of its own.
fn inode(pidfd: impl AsFd) -> io::Result<Option<u64>> {
    if PIDFS.load(Ordering::Relaxed) == UNKNOWN {
        let known = if fstatfs(&pidfd)?.f_type as u64 == PIDFS_MAGIC { YES } else { NO };
        PIDFS.store(known, Ordering::Relaxed);
    }
    match PIDFS.load(Ordering::Relaxed) {
        YES => Ok(Some(fstat(pidfd)?.st_ino)),
        _ => Ok(None),
    }
}

/// Nanoseconds of a clock tick of `/proc`: `USER_HZ` is 100 on all that this library supports.
const TICK: i128 = 10_000_000;

/// When the process started, in clock ticks since the machine started, whatever time namespace this
/// process is in.
fn start_of(pid: Pid) -> io::Result<u64> {
    let path = format!("/proc/{}/stat", pid.as_raw_nonzero());
    if !procfs::has_our_pids() {
        // The number is that of another process there.
        return Err(procfs::explain(path)(io::Error::from(io::ErrorKind::Unsupported)));
    }
    start_in(&procfs::read(&path)?)
}

/// The same of the calling process.
fn start_of_self() -> io::Result<u64> {
    let path = format!("/proc/{}/stat", procfs::own_number()?);
    match procfs::read(&path) {
        Ok(stat) => start_in(&stat),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
            let mut buffer = [0; 1024];
            let len = helper_process::read(&CString::new(path)?, &mut buffer)?;
            start_in(&String::from_utf8_lossy(&buffer[..len]))
        }
        Err(error) => Err(error),
    }
}

/// Field 22 of `/proc/PID/stat`, without what the reader's time namespace adds to it.
fn start_in(stat: &str) -> io::Result<u64> {
    let unreadable = || io::Error::new(io::ErrorKind::InvalidData, "unreadable /proc/PID/stat");
    // The name in field 2 may hold blanks and parentheses; the last parenthesis ends it.
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let field = after_name.split_ascii_whitespace().nth(19).and_then(|field| field.parse::<u64>().ok());
    let shown = i128::from(field.ok_or_else(unreadable)?) * TICK;
    // A process that started before the namespace's clock began shows a negative time as a huge
    // one.
    let shown = Some(shown).filter(|shown| *shown < i128::from(i64::MAX)).ok_or_else(unreadable)?;
    u64::try_from((shown - clock_offset()?).div_euclid(TICK)).map_err(|_| unreadable())
}

/// What the time namespace of this process adds to the time since the machine started, in
/// nanoseconds.
fn clock_offset() -> io::Result<i128> {
    let Ok(own) = rustix::fs::stat("/proc/self/ns/time") else {
        // Before Linux 5.6 there are no such namespaces. Where /proc cannot be read, neither can
        // the time.
        return Ok(0);
    };
    let shown = rustix::fs::stat("/proc/self/ns/time_for_children")?;
    if own.st_ino != shown.st_ino {
        // This process called unshare: the file shows the offsets of its children.
        return Err(io::ErrorKind::Unsupported.into());
    }
    let offsets = procfs::read("/proc/self/timens_offsets")?;
    let boottime = offsets.lines().find_map(|line| {
        let mut fields = line.strip_prefix("boottime")?.split_ascii_whitespace();
        let (seconds, nanoseconds) =
            (fields.next()?.parse::<i128>().ok()?, fields.next()?.parse::<i128>().ok()?);
        Some(seconds * 1_000_000_000 + nanoseconds)
    });
    boottime.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "unreadable /proc/self/timens_offsets"))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// What a kernel without inodes of pidfds would know of the process.
    pub(crate) fn by_start(pid: Pid) -> Instance {
        Instance::by_start(start_of(pid).unwrap())
    }

    #[test]
    fn the_calling_process_is_the_one_of_its_pid() {
        let pid = rustix::process::getpid();
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        assert_eq!(Instance::of(&pidfd, pid).unwrap(), Instance::own());
        for instance in [Instance::own(), Instance::by_start(start_of_self().unwrap()), Instance::ANY] {
            assert!(instance.may_be(&pidfd, pid), "{instance:?}");
        }
        assert!(!Instance::NONE.may_be(&pidfd, pid));
        assert!(!Instance(Instance::own().0 ^ 1).may_be(&pidfd, pid));
        assert!(!Instance(by_start(pid).0 ^ 1).may_be(&pidfd, pid));
    }

    #[test]
    fn without_descriptors_a_process_knows_itself() {
        let pid = rustix::process::getpid();
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        let (system, found) = helper_process::pidfd_inode(pid).unwrap();
        assert_eq!(system, fstatfs(&pidfd).unwrap().f_type as u64);
        assert!(Instance::without_descriptor(pid).is_none_or(|found| found == Instance::own()));
        assert_eq!(found, fstat(&pidfd).unwrap().st_ino);
    }
}
