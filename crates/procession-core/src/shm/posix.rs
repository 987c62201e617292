//! Plain shared memory with a name, as POSIX and Python's `multiprocessing.shared_memory` have it.

use std::ffi::CString;
use std::io;
use std::ptr::NonNull;

use procession_sys::memory::{self, Mapping};
use procession_sys::posix_shm;

use super::{ObjectId, OpenError, copy};

/// A mapped file in `/dev/shm`: its bytes and nothing else.
///
/// Unlike all other objects it outlives its users, until somebody unlinks it.
#[derive(Debug)]
pub struct SharedMemory {
    name: String,
    mapping: Mapping,
}

/// Shared memory with a name could not be created, opened or unlinked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SharedMemoryError {
    /// Not a name that shared memory can have.
    #[error(
        "{name:?} is no name for shared memory: 1 to 255 bytes without '/' and NUL, and neither \".\" nor \"..\""
    )]
    InvalidName {
        /// What was asked for.
        name: String,
    },
    /// A size of 0, or of more than can be addressed.
    #[error("shared memory cannot have a size of {size} bytes: it has 1 to {} bytes", i64::MAX)]
    InvalidSize {
        /// What was asked for.
        size: usize,
    },
    /// Shared memory of that name exists.
    #[error("shared memory named {name:?} exists already; open it, unlink it, or choose another name")]
    Taken {
        /// What was asked for.
        name: String,
    },
    /// There is none of that name.
    #[error("there is no shared memory named {name:?}")]
    NotFound {
        /// What was asked for.
        name: String,
    },
    /// It belongs to another user.
    #[error("shared memory named {name:?} belongs to another user")]
    OtherOwner {
        /// What was asked for.
        name: String,
    },
    /// What has the name is no memory.
    #[error(
        "what is named {name:?} in /dev/shm is a directory, a link, a pipe or a socket, not shared memory"
    )]
    NotMemory {
        /// What was asked for.
        name: String,
    },
    /// It exists, but has no bytes yet: its creator is about to set the size, or died before.
    #[error("shared memory named {name:?} is empty: its creator has not set its size yet")]
    Empty {
        /// What was asked for.
        name: String,
    },
    /// The system refused.
    #[error("shared memory named {name:?}: {action}: {cause}")]
    System {
        /// What was asked for.
        name: String,
        /// The step that failed.
        action: &'static str,
        /// What the system said.
        cause: io::Error,
    },
}

impl From<SharedMemoryError> for OpenError {
    /// What it means for a handle, which is a name.
    fn from(error: SharedMemoryError) -> Self {
        match error {
            SharedMemoryError::NotFound { name } => OpenError::NotFound { name },
            SharedMemoryError::OtherOwner { name } => {
                OpenError::Name { name, problem: "it belongs to another user" }
            }
            SharedMemoryError::InvalidName { name } => OpenError::Name { name, problem: "it is no name" },
            SharedMemoryError::Taken { name } => OpenError::Name { name, problem: "it is taken" },
            SharedMemoryError::NotMemory { .. } => OpenError::NotAnObject("a directory, a link or a pipe"),
            SharedMemoryError::Empty { .. } => OpenError::NotAnObject("it has no size yet"),
            SharedMemoryError::InvalidSize { .. } => OpenError::NotAnObject("its size is impossible"),
            SharedMemoryError::System { action, cause, .. } => OpenError::System { action, cause },
        }
    }
}

impl SharedMemory {
    /// Creates `size` bytes of zeros under `name` (leading slashes are ignored), or without one under a name like `psm_1f0c6a2e`.
    ///
    /// # Errors
    /// See [`SharedMemoryError`]; nothing is left then.
    pub fn create(name: Option<&str>, size: usize) -> Result<Self, SharedMemoryError> {
        if size == 0 || i64::try_from(size).is_err() {
            return Err(SharedMemoryError::InvalidSize { size });
        }
        let mut candidate = name.map_or_else(random_name, |name| name.trim_start_matches('/').to_owned());
        c_name(&candidate)?;
        // Named when it is whole: whoever opens it finds its size, and a death before leaves nothing.
        let make = || -> Result<_, (&'static str, io::Error)> {
            if size as u64 > memory::limit() || (size > 64 << 20 && size as u64 > memory::available()) {
                return Err(("reserving its memory", io::ErrorKind::OutOfMemory.into()));
            }
            let fd = posix_shm::create().map_err(|error| (posix_shm::making(&error), error))?;
            memory::resize(&fd, size as u64).map_err(|error| ("setting its size", error))?;
            memory::reserve(&fd, 0, size as u64).map_err(|error| ("reserving its memory", error))?;
            let mapping = Mapping::new(&fd, 0, size).map_err(|error| ("mapping it", error))?;
            Ok((fd, mapping))
        };
        let (fd, mapping) = match make() {
            Ok(made) => made,
            Err((action, cause)) => {
                return Err(SharedMemoryError::System { name: candidate, action, cause });
            }
        };
        loop {
            match posix_shm::link(&fd, &c_name(&candidate)?) {
                Ok(()) => return Ok(SharedMemory { name: candidate, mapping }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && name.is_none() => {
                    candidate = random_name();
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    return Err(SharedMemoryError::Taken { name: candidate });
                }
                Err(cause) => {
                    let action = posix_shm::making(&cause);
                    return Err(SharedMemoryError::System { name: candidate, action, cause });
                }
            }
        }
    }

    /// Opens what exists under `name`, in its size at this time.
    ///
    /// # Errors
    /// See [`SharedMemoryError`].
    pub fn open(name: &str) -> Result<Self, SharedMemoryError> {
        let name = name.trim_start_matches('/').to_owned();
        let fd = match posix_shm::open(&c_name(&name)?) {
            Ok(fd) => fd,
            Err(error) => return Err(explain(name, "opening it in /dev/shm", error)),
        };
        let system = |action| {
            let name = name.clone();
            move |cause| SharedMemoryError::System { name, action, cause }
        };
        if posix_shm::owner(&fd).map_err(system("looking at it"))? != posix_shm::user() {
            return Err(SharedMemoryError::OtherOwner { name });
        }
        if !posix_shm::is_regular(&fd).map_err(system("looking at it"))? {
            return Err(SharedMemoryError::NotMemory { name });
        }
        let size = memory::file_size(&fd).map_err(system("looking at it"))?;
        let size = usize::try_from(size).map_err(|_| SharedMemoryError::InvalidSize { size: usize::MAX })?;
        if size == 0 {
            return Err(SharedMemoryError::Empty { name });
        }
        let mapping = Mapping::new(&fd, 0, size).map_err(system("mapping it"))?;
        Ok(SharedMemory { name, mapping })
    }

    /// The name, without a leading slash.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The size in bytes, at least 1.
    pub fn size(&self) -> usize {
        self.mapping.len()
    }

    /// The first byte. Other processes may change the memory at any time.
    pub fn as_ptr(&self) -> NonNull<u8> {
        self.mapping.start()
    }

    /// The memory as a slice, for reading without a copy.
    ///
    /// # Safety
    /// While the slice is used, nobody, in this process or another, writes to the memory, and no process truncates the
    /// file.
    pub unsafe fn as_slice(&self) -> &[u8] {
        // SAFETY: the mapping is that long and stays while `self` is borrowed; the rest is the caller's word.
        unsafe { std::slice::from_raw_parts(self.mapping.start().as_ptr(), self.size()) }
    }

    /// The memory as a slice, for writing.
    ///
    /// # Safety
    /// While the slice is used, nobody else, in this process or another, reads or writes the memory, and no process
    /// truncates the file.
    #[allow(clippy::mut_from_ref, reason = "who else has the memory is the caller's word")]
    pub unsafe fn as_mut_slice(&self) -> &mut [u8] {
        // SAFETY: as in `as_slice`.
        unsafe { std::slice::from_raw_parts_mut(self.mapping.start().as_ptr(), self.size()) }
    }

    /// Copies the bytes from `offset` on into `bytes`; what others write meanwhile is seen in part.
    ///
    /// # Panics
    /// When the range ends beyond the memory.
    #[track_caller]
    pub fn read(&self, offset: usize, bytes: &mut [u8]) {
        let from = self.range(offset, bytes.len());
        // SAFETY: inside the mapping, which `self` keeps.
        unsafe { copy::read(from, bytes, 1) }
    }

    /// Copies `bytes` to `offset` and on.
    ///
    /// # Panics
    /// When the range ends beyond the memory.
    #[track_caller]
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        let to = self.range(offset, bytes.len());
        // SAFETY: inside the mapping, which `self` keeps.
        unsafe { copy::write(to, bytes, 1) }
    }

    /// Takes the name away: nobody can open it any more, and the memory goes with its last user.
    ///
    /// # Errors
    /// See [`SharedMemoryError`].
    pub fn unlink(&self) -> Result<(), SharedMemoryError> {
        unlink(&self.name)
    }

    /// The address of byte `offset`, from which `len` bytes on are mapped.
    #[track_caller]
    fn range(&self, offset: usize, len: usize) -> NonNull<u8> {
        let size = self.size();
        assert!(
            offset <= size && len <= size - offset,
            "range end index {} out of range for shared memory of {size} bytes",
            offset.saturating_add(len)
        );
        // SAFETY: at most the end of the mapping.
        unsafe { self.mapping.start().cast().add(offset) }
    }
}

/// Takes a name away, whether or not the memory is open here.
///
/// # Errors
/// See [`SharedMemoryError`].
pub fn unlink(name: &str) -> Result<(), SharedMemoryError> {
    let name = name.trim_start_matches('/');
    posix_shm::unlink(&c_name(name)?)
        .map_err(|error| explain(name.to_owned(), "removing its name from /dev/shm", error))
}

fn explain(name: String, action: &'static str, cause: io::Error) -> SharedMemoryError {
    match cause.kind() {
        io::ErrorKind::NotFound => SharedMemoryError::NotFound { name },
        // Or this user may not use /dev/shm, or has taken the right to it from itself.
        io::ErrorKind::PermissionDenied if c_name(&name).is_ok_and(|c| posix_shm::is_of_another_user(&c)) => {
            SharedMemoryError::OtherOwner { name }
        }
        _ if posix_shm::is_of_another_kind(&cause) => SharedMemoryError::NotMemory { name },
        _ => SharedMemoryError::System { name, action, cause },
    }
}

fn c_name(name: &str) -> Result<CString, SharedMemoryError> {
    let possible = (1..=255).contains(&name.len()) && !name.contains('/') && name != "." && name != "..";
    let c_name = if possible { CString::new(name).ok() } else { None };
    c_name.ok_or_else(|| SharedMemoryError::InvalidName { name: name.to_owned() })
}

/// As Python's `_make_filename`.
fn random_name() -> String {
    let random = ObjectId::random().to_bytes();
    format!("psm_{:08x}", u32::from_le_bytes(std::array::from_fn(|i| random[i])))
}
