//! Shared memory from the kernel: memfds, mappings, reservation, and how much there is.

use std::ffi::CStr;
use std::io;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{
    FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate,
    memfd_create,
};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, MremapFlags, ProtFlags, madvise, mmap, mremap_fixed, munmap};
use rustix::process::{Resource, getrlimit};

use super::crash_point::crash_point;
use super::procfs;

/// This process's resident memory in bytes.
///
/// # Errors
/// What reading `/proc/self/statm` reported.
pub fn resident() -> io::Result<u64> {
    let statm = procfs::read("/proc/self/statm")?;
    let pages = statm.split_ascii_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.map(|pages| pages * page_size() as u64).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The size of a page in bytes.
pub fn page_size() -> usize {
    rustix::param::page_size()
}

/// An anonymous file of `size` bytes, all holes. It can grow but never shrink, so that a mapping inside
/// its size stays readable whatever another holder does.
///
/// # Errors
/// What the kernel reported: out of descriptors or of memory.
pub fn create(name: &CStr, size: u64) -> io::Result<OwnedFd> {
    let fd = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    resize(&fd, size)?;
    fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::SEAL)?;
    Ok(fd)
}

/// The size of the file in bytes.
///
/// # Errors
/// What `fstat` reported.
pub fn file_size(fd: impl AsFd) -> io::Result<u64> {
    Ok(u64::try_from(fstat(fd)?.st_size).unwrap_or(0))
}

/// How many bytes of the file have memory, also such as is swapped out: less than its size where it has holes.
///
/// # Errors
/// What `fstat` reported.
pub fn allocated(fd: impl AsFd) -> io::Result<u64> {
    Ok(u64::try_from(fstat(fd)?.st_blocks).unwrap_or(0).saturating_mul(512))
}

/// Whether the file can never become smaller, so that a mapping inside its size stays readable: true of what
/// [`create`] made and of nothing that was not made so on purpose.
pub fn cannot_shrink(fd: impl AsFd) -> bool {
    fcntl_get_seals(fd).is_ok_and(|seals| seals.contains(SealFlags::SHRINK))
}

/// Grows the file to `size` bytes of holes; does nothing when it is that large already.
///
/// # Errors
/// What the kernel reported.
pub fn grow(fd: impl AsFd, size: u64) -> io::Result<()> {
    let fd = fd.as_fd();
    if file_size(fd)? < size { resize(fd, size) } else { Ok(()) }
}

/// Sets the size of a file that is smaller.
///
/// # Errors
/// `FileTooLarge` over `RLIMIT_FSIZE`; otherwise what the kernel reported.
pub fn resize(fd: impl AsFd, size: u64) -> io::Result<()> {
    check_file_size(size)?;
    crash_point();
    Ok(ftruncate(fd, size)?)
}

/// Whether a file may grow to `size` bytes under `RLIMIT_FSIZE`, which counts for memory too. The kernel would not only refuse,
/// but send SIGXFSZ, which ends a process that does not expect it.
///
/// # Errors
/// `FileTooLarge` when it may not.
pub fn check_file_size(size: u64) -> io::Result<()> {
    match getrlimit(Resource::Fsize).current {
        Some(most) if size > most => Err(Errno::FBIG.into()),
        _ => Ok(()),
    }
}

/// Makes the kernel set memory aside for `len` bytes at `offset`, so that touching them later cannot fail.
/// What was there stays.
///
/// # Errors
/// `StorageFull` or `OutOfMemory` when there is no memory for it.
pub fn reserve(fd: impl AsFd, offset: u64, len: u64) -> io::Result<()> {
    crash_point();
    loop {
        match fallocate(&fd, FallocateFlags::empty(), offset, len) {
            Ok(()) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Gives the memory of `len` bytes at `offset` back; they read as zero afterwards.
///
/// # Errors
/// What the kernel reported.
pub fn release(fd: impl AsFd, offset: u64, len: u64) -> io::Result<()> {
    crash_point();
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(fallocate(fd, flags, offset, len)?)
}

const ACCESS: ProtFlags = ProtFlags::READ.union(ProtFlags::WRITE);

/// A shared mapping of part of a file, unmapped when dropped.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping is plain memory; the rules for what lies in it are those of its users.
unsafe impl Send for Mapping {}
// SAFETY: as above; `&Mapping` only hands out pointers.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes at `offset` (a multiple of the page size) for reading and writing.
    ///
    /// # Errors
    /// What the kernel reported: out of memory or of mappings, or over `RLIMIT_AS`.
    pub fn new(fd: impl AsFd, offset: u64, len: usize) -> io::Result<Self> {
        Self::with_flags(fd, offset, len, MapFlags::SHARED)
    }

    /// [`Mapping::new`], with all pages that have memory mapped at once instead of one by one as they are touched.
    ///
    /// # Errors
    /// As [`Mapping::new`].
    pub fn populated(fd: impl AsFd, offset: u64, len: usize) -> io::Result<Self> {
        Self::with_flags(fd, offset, len, MapFlags::SHARED | MapFlags::POPULATE)
    }

    fn with_flags(fd: impl AsFd, offset: u64, len: usize, flags: MapFlags) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choosing disturbs nothing that exists.
        let start = unsafe { mmap(std::ptr::null_mut(), len, ACCESS, flags, fd, offset)? };
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Mapping { start, len })
    }

    /// Replaces the shared pages, which are those of the file from `offset` on, by private ones of the same bytes, at the same
    /// addresses. Once for a mapping. Other threads go on reading and writing, and what they write stays.
    ///
    /// Until [`Mapping::copy_pages`], a page that has not been written to since is still the file's.
    ///
    /// # Errors
    /// Out of memory or of mappings, or over `RLIMIT_AS`; the mapping is as it was.
    pub fn make_private(&self, fd: impl AsFd, offset: u64) -> io::Result<()> {
        // What was written so far is in the file, and so in the new mapping; what is written from now on goes to a copy of its
        // page, which the kernel makes in one step. At no time is there a page elsewhere that writes could miss.
        let private = Self::with_flags(fd, offset, self.len, MapFlags::PRIVATE | MapFlags::NORESERVE)?;
        let (from, to) = (private.start.as_ptr().cast(), self.start.as_ptr().cast());
        // SAFETY: the new mapping is moved, in one step for all other threads, over exactly the range of this one. Who has
        // pointers into it finds the same bytes there.
        unsafe { mremap_fixed(from, self.len, self.len, MremapFlags::MAYMOVE, to)? };
        std::mem::forget(private);
        Ok(())
    }

    /// Makes copies of all pages that are still the file's, after [`Mapping::make_private`]. Other threads go on as there.
    ///
    /// # Errors
    /// Out of memory; some pages may be the file's then.
    pub fn copy_pages(&self) -> io::Result<()> {
        loop {
            // SAFETY: it changes no byte of this mapping.
            match unsafe { madvise(self.start.as_ptr().cast(), self.len, Advice::LinuxPopulateWrite) } {
                Ok(()) => return Ok(()),
                Err(Errno::INTR | Errno::AGAIN) => {}
                // Before Linux 5.14.
                Err(Errno::INVAL) => break,
                Err(error) => return Err(error.into()),
            }
        }
        for at in (0..self.len).step_by(page_size()) {
            // SAFETY: a byte of the mapping, which other threads may use as the bytes of one that they share.
            let byte = unsafe { AtomicU8::from_ptr(self.start.as_ptr().add(at)) };
            let mut value = byte.load(Ordering::Relaxed);
            while let Err(other) = byte.compare_exchange(value, value, Ordering::Relaxed, Ordering::Relaxed) {
                value = other;
            }
        }
        Ok(())
    }

    /// The first byte.
    pub fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// The size in bytes.
    #[allow(clippy::len_without_is_empty, reason = "a mapping is never empty")]
    pub fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `new` and nobody borrows from a mapping that is dropped.
        let result = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
        debug_assert!(result.is_ok(), "munmap of a whole mapping");
    }
}

/// How many bytes this process may hope to use: the machine's memory or the cgroup's limit, whichever is
/// smaller. Asked once a process.
pub fn limit() -> u64 {
    static LIMIT: OnceLock<u64> = OnceLock::new();
    *LIMIT.get_or_init(|| {
        let machine = {
            let info = rustix::system::sysinfo();
            (info.totalram as u64).saturating_mul(info.mem_unit.into())
        };
        cgroup_limit().map_or(machine, |limit| limit.min(machine))
    })
}

/// How many more bytes can be had right now without driving this process, or another, out of memory: a guess
/// from above, for refusing what cannot be before the kernel starts killing.
pub fn available() -> u64 {
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|info| {
        let field = |name: &str| -> Option<u64> {
            let line = info.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
        };
        Some(field("MemAvailable:")?.saturating_add(field("SwapFree:")?))
    });
    machine.map_or_else(limit, |machine| machine.min(limit()))
}

/// The lowest limit of memory on the way from this process's cgroup to the root, in both versions of cgroups.
fn cgroup_limit() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let lowest = |root: &str, own: &str, file: &str| -> Option<u64> {
        let own = Path::new(root).join(own);
        let limits = own.ancestors().take_while(|dir| dir.starts_with(root));
        limits.filter_map(|dir| std::fs::read_to_string(dir.join(file)).ok()?.trim().parse().ok()).min()
    };
    let limits = groups.lines().filter_map(|line| {
        // Number, controllers, path.
        let (number, rest) = line.split_once(':')?;
        let (controllers, own) = rest.split_once(":/")?;
        if number == "0" {
            lowest("/sys/fs/cgroup", own, "memory.max")
        } else if controllers.split(',').any(|controller| controller == "memory") {
            lowest("/sys/fs/cgroup/memory", own, "memory.limit_in_bytes")
        } else {
            None
        }
    });
    limits.min()
}
