//! A file that grows, mapped piece by piece at addresses that stay.

use std::io;
use std::ptr::NonNull;
use std::sync::OnceLock;

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};

use procession_sys::fork;
use procession_sys::memory::{self, Mapping};

/// The size of window 0 in bytes. Window `k` covers `FIRST << (k - 1)` to `FIRST << k`.
pub const FIRST: u64 = 256 << 10;
/// Enough for 2^47 bytes, all that a process can map.
const WINDOWS: usize = 30;

/// An open file and this process's mappings of it. Each window is mapped when first needed and stays
/// until the whole is dropped, so a pointer into it lives as long.
#[derive(Debug)]
pub struct Windows {
    fd: OwnedFd,
    maps: [OnceLock<Mapping>; WINDOWS],
}

/// The range of file offsets that the window around `offset` covers.
fn window_of(offset: u64) -> (usize, u64, u64) {
    if offset < FIRST {
        return (0, 0, FIRST);
    }
    let doubling = (offset / FIRST).ilog2();
    (doubling as usize + 1, FIRST << doubling, FIRST << (doubling + 1))
}

/// Where the first range of `len` bytes at or after `offset` lies that does not cross the end of its
/// window; the file must reach to the second number for it to be mapped. `None` past the last window.
pub fn place(offset: u64, len: u64) -> Option<(u64, u64)> {
    let mut offset = offset;
    loop {
        let (window, _, end) = window_of(offset);
        if window >= WINDOWS {
            return None;
        }
        if len <= end - offset {
            return Some((offset, end));
        }
        offset = end;
    }
}

impl Windows {
    /// A view of this file, with window 0 mapped.
    ///
    /// # Errors
    /// The file is smaller than window 0, or the system refused.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        fork::watch()?;
        let windows = Windows { fd, maps: [const { OnceLock::new() }; WINDOWS] };
        windows.at(0, 1)?;
        Ok(windows)
    }

    /// The file.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Where `len` bytes at `offset` are mapped. All of them are inside the file.
    ///
    /// # Errors
    /// `InvalidData` when they are not inside one window of the file; otherwise what the system reported.
    pub fn at(&self, offset: u64, len: u64) -> io::Result<NonNull<u8>> {
        let (window, start, end) = window_of(offset);
        let map = match self.maps.get(window) {
            Some(cell) if len <= end - offset => match cell.get() {
                Some(map) => map,
                None => self.map(cell, start, end)?,
            },
            _ => return Err(io::ErrorKind::InvalidData.into()),
        };
        // SAFETY: the mapping covers `start..end`, and `start <= offset < end`.
        Ok(unsafe { map.start().add((offset - start) as usize) })
    }

    #[cold]
    fn map<'a>(&self, cell: &'a OnceLock<Mapping>, start: u64, end: u64) -> io::Result<&'a Mapping> {
        if memory::file_size(&self.fd)? < end {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let map = Mapping::new(&self.fd, start, (end - start) as usize)?;
        // A child that is forked meanwhile must not find the cell waiting for a thread that it does not have.
        let _gate = fork::gate();
        // When two threads race, both mapped the same memory and the second mapping goes.
        Ok(cell.get_or_init(|| map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_follow_each_other() {
        assert_eq!(window_of(0), (0, 0, FIRST));
        assert_eq!(window_of(FIRST - 1), (0, 0, FIRST));
        assert_eq!(window_of(FIRST), (1, FIRST, 2 * FIRST));
        assert_eq!(window_of(2 * FIRST), (2, 2 * FIRST, 4 * FIRST));
        assert_eq!(window_of(4 * FIRST - 1), (2, 2 * FIRST, 4 * FIRST));
    }

    #[test]
    fn a_range_is_placed_inside_one_window() {
        assert_eq!(place(0, FIRST), Some((0, FIRST)));
        assert_eq!(place(4096, FIRST), Some((FIRST, 2 * FIRST)));
        assert_eq!(place(FIRST + 1, 16 * FIRST), Some((16 * FIRST, 32 * FIRST)));
        assert_eq!(place(0, 1 << 60), None);
    }

    #[test]
    fn memory_is_the_same_through_two_views() {
        let fd = memory::create(c"test", 4 * FIRST).unwrap();
        let a = Windows::new(fd.try_clone().unwrap()).unwrap();
        let b = Windows::new(fd).unwrap();
        let offset = 2 * FIRST + 4096;
        // SAFETY: both pointers are to mapped memory of which nobody else knows.
        unsafe {
            a.at(offset, 8).unwrap().write(7);
            assert_eq!(b.at(offset, 8).unwrap().read(), 7);
        }
        assert!(a.at(4 * FIRST, 1).is_err());
        assert!(a.at(FIRST - 1, 2).is_err());
        assert!(a.at(u64::MAX, 2).is_err());
    }
}
