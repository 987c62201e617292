//! Which living processes have an object open, as `/proc` tells.
//!
//! Nothing here allocates: a [`keeper`](super::keeper) searches too.

use std::ffi::CStr;
use std::mem::MaybeUninit;

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags, RawDir, fstat, openat, readlinkat_raw};
use rustix::process::{Pid, geteuid};

use super::header::{Header, ObjectId};

/// What the links in `/proc/PID/fd` begin with that may lead to an object.
const PREFIXES: [&[u8]; 2] = [b"/memfd:procession-", b"/dev/shm/procession."];
/// As long as the longest of those that are looked for.
const LONGEST_PREFIX: usize = 24;
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Opens the object where any process of this user has it open.
pub(super) fn find(id: ObjectId) -> Option<OwnedFd> {
    each_process(|process| process.each_object(|fd, found| (found == id).then_some(fd)))
}

/// A process of this user.
pub(super) struct Process {
    pub(super) pid: Pid,
    directory: OwnedFd,
    /// The directory of its descriptors.
    fds: OwnedFd,
}

/// Calls `visit` with each process of this user, until it returns something. Processes that hide
/// their descriptors (not dumpable, another user's) are passed over.
pub(super) fn each_process<R>(mut visit: impl FnMut(Process) -> Option<R>) -> Option<R> {
    let proc = openat(CWD, c"/proc", DIRECTORY, Mode::empty()).ok()?;
    let me = geteuid().as_raw();
    let mut space = [MaybeUninit::uninit(); 4096];
    let mut processes = RawDir::new(&proc, &mut space);
    while let Some(Ok(process)) = processes.next() {
        let Some(pid) = pid_of(process.file_name().to_bytes()) else { continue };
        let Ok(directory) = openat(&proc, process.file_name(), DIRECTORY, Mode::empty()) else { continue };
        if !fstat(&directory).is_ok_and(|about| about.st_uid == me) {
            continue;
        }
        let Ok(fds) = openat(&directory, c"fd", DIRECTORY, Mode::empty()) else { continue };
        if let Some(result) = visit(Process { pid, directory, fds }) {
            return Some(result);
        }
    }
    None
}

impl Process {
    /// Calls `visit` with each object that the process has open, as often as it does, until that
    /// returns something.
    pub(super) fn each_object<R>(&self, mut visit: impl FnMut(OwnedFd, ObjectId) -> Option<R>) -> Option<R> {
        self.each_link(&PREFIXES, |fd| Header::id_in(fd.as_fd()).and_then(|id| visit(fd, id)))
    }

    /// Calls `visit` with each file that the process has open and whose link begins so, until that
    /// returns something.
    pub(super) fn each_link<R>(
        &self,
        prefixes: &[&[u8]],
        mut visit: impl FnMut(OwnedFd) -> Option<R>,
    ) -> Option<R> {
        let mut space = [MaybeUninit::uninit(); 4096];
        let mut entries = RawDir::new(&self.fds, &mut space);
        while let Some(Ok(entry)) = entries.next() {
            let mut link = [MaybeUninit::uninit(); LONGEST_PREFIX];
            let Ok((link, _)) = readlinkat_raw(&self.fds, entry.file_name(), &mut link) else { continue };
            if !prefixes.iter().any(|prefix| link.starts_with(prefix)) {
                continue;
            }
            let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
            let Ok(fd) = openat(&self.fds, entry.file_name(), flags, Mode::empty()) else { continue };
            if let Some(result) = visit(fd) {
                return Some(result);
            }
        }
        None
    }

    /// Whether the process has this name, of at most 15 bytes.
    pub(super) fn is_named(&self, name: &CStr) -> bool {
        let mut read = [0; 16];
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        openat(&self.directory, c"comm", flags, Mode::empty())
            .and_then(|comm| rustix::io::read(comm, &mut read))
            .is_ok_and(|len| {
                read.get(..len).and_then(|read| read.strip_suffix(b"\n")) == Some(name.to_bytes())
            })
    }
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
        let id = queue.id();
        drop(queue);
        assert!(find(id).is_none());
    }
}
