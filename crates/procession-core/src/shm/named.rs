//! Objects that unrelated programs find by name.
//!
//! A named object is a file in `/dev/shm`, of mode 0600, that only its owner's processes use. The kernel tells whether
//! anybody still does: every user holds a shared lock on the file's first byte, through the open file
//! description that its mapping keeps. So a file whose users were all killed is known as such, and the name is
//! free. Making and opening are serialised by a lock on the second byte.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use procession_sys::clock::{Deadline, now_ms};
use procession_sys::file_lock::{FileLock, try_lock};
use procession_sys::{posix_shm, procfs};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{FileType, Mode, OFlags, fstat, lstat, open, stat, unlink};
use rustix::io::Errno;

use super::error::{CreateError, OpenError};
use super::kind::Kind;

const SOMETHING_ELSE: &str = "the file in /dev/shm holds something else";
const OTHER_OWNER: &str = "it belongs to another user";
const DIRECTORY: &str = "/dev/shm";
const PREFIX: &str = "procession.";
/// The longest name in bytes.
const LONGEST: usize = 200;
/// The byte that users of an object lock.
const USERS: u32 = 0;
/// The byte that is locked while an object is looked at or made.
const GATE: u32 = 1;
/// How long another process may take to make or open an object of the same name.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long it may take while the last handle is dropped. A file that stays is removed by the next who asks for the name.
const PATIENCE_AT_END: Duration = Duration::from_secs(1);

/// A name in use. Each clone is dropped after a descriptor or mappings of the object, and removes the file if nobody uses it any more.
#[derive(Clone, Debug)]
pub struct Name(PathBuf);

/// Why a name could not be used.
enum Refusal {
    NotFound,
    Taken,
    Unusable(&'static str),
    System(&'static str, io::Error),
}

impl Name {
    /// Makes a new file for the name and has `make` fill it before others find it. Also removes what killed users left under
    /// other names.
    ///
    /// # Errors
    /// [`CreateError::Taken`] when a living process uses the name.
    pub fn create<T>(
        name: &str,
        kind: Kind,
        make: impl FnOnce(OwnedFd) -> Result<T, CreateError>,
    ) -> Result<(T, Self), CreateError> {
        let named = |refusal| match refusal {
            Refusal::Taken => CreateError::Taken { name: name.into() },
            // Creating the file does not find it missing, but its directory.
            Refusal::NotFound => {
                let cause = io::Error::from(Errno::NOENT);
                CreateError::System { kind, action: posix_shm::making(&cause), cause }
            }
            Refusal::Unusable(problem) => CreateError::Name { name: name.into(), problem },
            Refusal::System(action, cause) => CreateError::System { kind, action, cause },
        };
        let path = path_of(name).map_err(named)?;
        remove_stale();
        let fd = enter(&path, OFlags::CREATE).map_err(named)?;
        let free = try_lock(&fd, USERS, FileLock::Exclusive)
            .map_err(|error| named(Refusal::System("locking a name", error)))?;
        if !free {
            give_up(&fd);
            return Err(named(Refusal::Taken));
        }
        // What the dead left is worth nothing; what never was ours is not ours to clear.
        let fresh = is_ours(&fd).and_then(|ours| {
            if !ours {
                return Err(Refusal::Unusable(SOMETHING_ELSE));
            }
            rustix::fs::ftruncate(&fd, 0).map_err(system("clearing a stale object"))
        });
        fresh.map_err(named)?;
        let gate =
            fd.try_clone().map_err(|error| named(Refusal::System("duplicating a descriptor", error)))?;
        match make(fd) {
            Ok(object) => {
                let shared = try_lock(&gate, USERS, FileLock::Shared).and_then(|_| leave(&gate));
                shared.map_err(|error| named(Refusal::System("locking a name", error)))?;
                Ok((object, Name(path)))
            }
            Err(error) => {
                let _ = unlink(&path);
                give_up(&gate);
                Err(error)
            }
        }
    }

    /// Opens the file of a name that a living process uses.
    ///
    /// # Errors
    /// [`OpenError::NotFound`] when there is none.
    pub fn open(name: &str) -> Result<(OwnedFd, Self), OpenError> {
        let named = |refusal| match refusal {
            Refusal::Taken | Refusal::NotFound => OpenError::NotFound { name: name.into() },
            Refusal::Unusable(problem) => OpenError::Name { name: name.into(), problem },
            Refusal::System(action, cause) => OpenError::System { action, cause },
        };
        let path = path_of(name).map_err(named)?;
        let fd = enter(&path, OFlags::empty()).map_err(named)?;
        let locked = |error| named(Refusal::System("locking a name", error));
        if try_lock(&fd, USERS, FileLock::Exclusive).map_err(locked)? {
            // Its users were all killed.
            if is_ours(&fd).is_ok_and(|ours| ours) {
                let _ = unlink(&path);
            }
            give_up(&fd);
            return Err(named(Refusal::NotFound));
        }
        try_lock(&fd, USERS, FileLock::Shared).map_err(locked)?;
        leave(&fd).map_err(locked)?;
        Ok((fd, Name(path)))
    }

    /// The name of an object that was opened by its handle, if it has one; this process becomes one of its users.
    ///
    /// # Errors
    /// The lock is refused: the object is being made anew, its users having all ended.
    pub fn of(fd: BorrowedFd<'_>) -> io::Result<Option<Self>> {
        // A memfd has no name anywhere, nor has a file whose name was removed.
        if fstat(fd)?.st_nlink == 0 {
            return Ok(None);
        }
        let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let path = std::fs::read_link(&link).map_err(procfs::explain(link))?;
        let named = path.parent().is_some_and(|parent| parent == Path::new(DIRECTORY))
            && path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(PREFIX.as_bytes()));
        if !named {
            return Ok(None);
        }
        if !try_lock(fd, USERS, FileLock::Shared)? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Some(Name(path)))
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        // Who drops the name at the same moment has the gate for an instant, and may have seen our lock: the last one
        // through it finds no other.
        remove_if_unused(&self.0, Deadline::after(PATIENCE_AT_END));
    }
}

/// Removes the file if it is one of this library's that nobody uses, waiting for its gate until `deadline`. A file that
/// cannot be looked at stays.
pub(super) fn remove_if_unused(path: &Path, deadline: Deadline) {
    // A description of its own: a forked child's or another descriptor's lock is in its way, ours no longer.
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let Ok(fd) = open(path, flags, Mode::empty()) else { return };
    let is_file = |about: &rustix::fs::Stat| {
        about.st_uid == rustix::process::geteuid().as_raw()
            && FileType::from_raw_mode(about.st_mode) == FileType::RegularFile
    };
    if !fstat(&fd).is_ok_and(|about| is_file(&about)) {
        return;
    }
    while !try_lock(&fd, GATE, FileLock::Exclusive).unwrap_or(false) {
        if deadline.passed() {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let unused = try_lock(&fd, USERS, FileLock::Exclusive).unwrap_or(false);
    if unused && is_at(&fd, path) && is_ours(&fd).unwrap_or(false) {
        let _ = unlink(path);
    }
    give_up(&fd);
}

/// Removes what killed users left under any name: its memory would stay until somebody uses that name again. At most
/// once a second, as it looks at every name there is. Without waiting: what is in use, or looked at by another, stays.
fn remove_stale() {
    /// When this process last did, in milliseconds of the monotonic clock.
    static LAST: AtomicU64 = AtomicU64::new(0);
    let (now, last) = (now_ms(), LAST.load(Ordering::Relaxed));
    if now.saturating_sub(last) < 1000
        || LAST.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_err()
    {
        return;
    }
    let Ok(entries) = std::fs::read_dir(DIRECTORY) else { return };
    for entry in entries.flatten() {
        if entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes()) {
            remove_if_unused(&entry.path(), Deadline::Now);
        }
    }
}

fn system<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> Refusal {
    move |error| Refusal::System(action, error.into())
}

fn path_of(name: &str) -> Result<PathBuf, Refusal> {
    if name.is_empty() || name.len() > LONGEST || name.contains(['/', '\0']) {
        return Err(Refusal::Unusable("a name has 1 to 200 bytes, without a slash"));
    }
    Ok(PathBuf::from(format!("{DIRECTORY}/{PREFIX}{name}")))
}

/// Opens the file and takes the gate of the one that the path leads to.
fn enter(path: &PathBuf, create: OFlags) -> Result<OwnedFd, Refusal> {
    let deadline = Deadline::after(PATIENCE);
    loop {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | create;
        let fd = match open(path, flags, Mode::RUSR | Mode::WUSR) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Err(Refusal::NotFound),
            Err(Errno::ACCESS | Errno::PERM) if is_of_another_user(path) => {
                return Err(Refusal::Unusable(OTHER_OWNER));
            }
            Err(Errno::LOOP) => return Err(Refusal::Unusable("the file in /dev/shm is a link")),
            // A directory; a socket.
            Err(Errno::ISDIR | Errno::NXIO) => return Err(Refusal::Unusable(SOMETHING_ELSE)),
            Err(error) if create.is_empty() => return Err(system("opening a name in /dev/shm")(error)),
            Err(error) => {
                let error = io::Error::from(error);
                return Err(Refusal::System(posix_shm::making(&error), error));
            }
        };
        let about = fstat(&fd).map_err(system("looking at a name"))?;
        if about.st_uid != rustix::process::geteuid().as_raw() {
            return Err(Refusal::Unusable(OTHER_OWNER));
        }
        if FileType::from_raw_mode(about.st_mode) != FileType::RegularFile {
            return Err(Refusal::Unusable(SOMETHING_ELSE));
        }
        if !Mode::from_raw_mode(about.st_mode).intersection(Mode::RWXG | Mode::RWXO).is_empty() {
            let problem = match is_ours(&fd)? {
                true => "others than its owner may use the file in /dev/shm",
                false => SOMETHING_ELSE,
            };
            return Err(Refusal::Unusable(problem));
        }
        if try_lock(&fd, GATE, FileLock::Exclusive).map_err(system("locking a name"))? {
            if is_at(&fd, path) {
                return Ok(fd);
            }
            // Removed in the meantime: the path leads elsewhere or nowhere.
            continue;
        }
        if deadline.passed() {
            return Err(system("waiting for another process that makes or opens it")(io::Error::from(
                io::ErrorKind::TimedOut,
            )));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Whether the file is another user's. Not where it cannot be looked at: the directory may be what
/// is wrong.
fn is_of_another_user(path: &PathBuf) -> bool {
    lstat(path).is_ok_and(|about| about.st_uid != rustix::process::geteuid().as_raw())
}

/// Drops both locks at once: a child that is forked just now keeps a copy of the descriptor for longer. What cannot be
/// unlocked is unlocked with the last copy.
fn give_up(fd: impl AsFd) {
    for byte in [USERS, GATE] {
        let _ = procession_sys::file_lock::unlock(&fd, byte);
    }
}

/// Gives the gate back.
fn leave(fd: impl AsFd) -> io::Result<()> {
    procession_sys::file_lock::unlock(fd, GATE)
}

fn is_at(fd: &OwnedFd, path: &Path) -> bool {
    match (fstat(fd), stat(path)) {
        (Ok(file), Ok(path)) => (file.st_dev, file.st_ino) == (path.st_dev, path.st_ino),
        _ => false,
    }
}

/// Whether the file is empty (somebody died making it) or begins as this library's objects do.
fn is_ours(fd: &OwnedFd) -> Result<bool, Refusal> {
    let mut start = [0; 8];
    let read = rustix::io::pread(fd, &mut start, 0).map_err(system("reading a name"))?;
    // A maker that died before it declared the object whole left zeroes where the mark goes.
    Ok(read == 0 || start == *super::header::MARK || start == [0; 8])
}
