//! Which living processes have an object open, as `/proc` tells.
//!
//! Nothing here allocates: a [`keeper`](super::keeper) searches too.

use std::mem::MaybeUninit;

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags, RawDir, fstat, openat, readlinkat_raw};
use rustix::process::{Pid, geteuid};

use super::header::{Header, ObjectId};

/// What the links in `/proc/PID/fd` begin with that may lead to an object.
const PREFIXES: [&[u8]; 2] = [b"/memfd:procession-", b"/dev/shm/procession."];
/// As long as the longest of them.
const LONGEST_PREFIX: usize = 20;

/// Opens the object where any process of this user has it open.
pub(super) fn find(id: ObjectId) -> Option<OwnedFd> {
    each(None, |fd, found| (found == id).then_some(fd))
}

/// Whether a process of this user other than the caller's has one of these objects open.
pub(super) fn any_elsewhere(ids: &[ObjectId]) -> bool {
    each(Some(rustix::process::getpid()), |_, found| ids.contains(&found).then_some(())).is_some()
}

/// Calls `visit` with each object that a process of this user, other than `except`, has open, as
/// often as one does; until it returns something. Processes that hide their descriptors (not
/// dumpable, another user's) are passed over.
pub(super) fn each<R>(
    except: Option<Pid>,
    mut visit: impl FnMut(OwnedFd, ObjectId) -> Option<R>,
) -> Option<R> {
    let directory = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let proc = openat(CWD, c"/proc", directory, Mode::empty()).ok()?;
    let me = geteuid().as_raw();
    let mut space = [MaybeUninit::uninit(); 4096];
    let mut processes = RawDir::new(&proc, &mut space);
    while let Some(Ok(process)) = processes.next() {
        let pid = pid_of(process.file_name().to_bytes());
        if pid.is_none() || pid == except {
            continue;
        }
        let Ok(process) = openat(&proc, process.file_name(), directory, Mode::empty()) else { continue };
        if !fstat(&process).is_ok_and(|about| about.st_uid == me) {
            continue;
        }
        let Ok(fds) = openat(&process, c"fd", directory, Mode::empty()) else { continue };
        let mut space = [MaybeUninit::uninit(); 4096];
        let mut entries = RawDir::new(&fds, &mut space);
        while let Some(Ok(entry)) = entries.next() {
            let mut link = [MaybeUninit::uninit(); LONGEST_PREFIX];
            let Ok((link, _)) = readlinkat_raw(&fds, entry.file_name(), &mut link) else { continue };
            if !PREFIXES.iter().any(|prefix| link.starts_with(prefix)) {
                continue;
            }
            let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
            let Ok(fd) = openat(&fds, entry.file_name(), flags, Mode::empty()) else { continue };
            if let Some(id) = Header::id_in(fd.as_fd())
                && let Some(result) = visit(fd, id)
            {
                return Some(result);
            }
        }
    }
    None
}

/// The pid that a directory's name in `/proc` stands for.
fn pid_of(name: &[u8]) -> Option<Pid> {
    std::str::from_utf8(name).ok()?.parse().ok().and_then(Pid::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::{Queue, QueueOptions};

    #[test]
    fn an_object_is_found_where_it_is_open() {
        let queue = Queue::create(&QueueOptions::new()).unwrap();
        assert_eq!(find(queue.id()).and_then(|fd| Header::id_in(fd.as_fd())), Some(queue.id()));
        assert!(!any_elsewhere(&[queue.id()]));
        let id = queue.id();
        drop(queue);
        assert!(find(id).is_none());
    }
}
