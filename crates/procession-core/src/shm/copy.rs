//! Copies between shared memory and memory of this process, while other processes may write.
//!
//! Shared memory is read and written by relaxed atomics. Whole units of the caller's size are
//! combined into words of eight bytes where possible, and else accessed one by one. No unit is
//! torn, and there is no order between units.
//!
//! Another thread may access the same bytes in units of another size. Rust's memory model does not
//! define such races; the processors that the library supports do.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU16};

use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Copies `to.len()` bytes of shared memory.
///
/// # Safety
/// `from` is aligned to `unit` bytes (1, 2, 4 or 8), of which `to.len()` is a multiple. The memory
/// is valid for atomic loads.
#[inline]
pub(crate) unsafe fn read(from: NonNull<u8>, to: &mut [u8], unit: usize) {
    let (head, words) = split(from, to.len(), unit);
    let (head, rest) = to.split_at_mut(head);
    let (words, tail) = rest.split_at_mut(words);
    // SAFETY: the three parts lie one after the other. The first and last are whole units at
    // aligned addresses; the middle begins at a multiple of 8 by `split`.
    unsafe {
        read_units(from, head, unit);
        read_words(from.add(head.len()), words);
        read_units(from.add(head.len() + words.len()), tail, unit);
    }
}

/// Copies `from` to shared memory.
///
/// # Safety
/// As [`read`], for atomic stores.
#[inline]
pub(crate) unsafe fn write(to: NonNull<u8>, from: &[u8], unit: usize) {
    let (head, words) = split(to, from.len(), unit);
    let (head, rest) = from.split_at(head);
    let (words, tail) = rest.split_at(words);
    // SAFETY: as in `read`.
    unsafe {
        write_units(to, head, unit);
        write_words(to.add(head.len()), words);
        write_units(to.add(head.len() + words.len()), tail, unit);
    }
}

/// How many bytes to copy in units before the shared address is a multiple of 8, and how many in
/// words of 8 then.
#[inline]
fn split(shared: NonNull<u8>, len: usize, unit: usize) -> (usize, usize) {
    if len < 8 || unit == 8 {
        // Units of 8 are words.
        return (0, if unit == 8 { len } else { 0 });
    }
    let head = (shared.addr().get().wrapping_neg() % 8).min(len);
    (head, (len - head) / 8 * 8)
}

macro_rules! copies {
    ($read:ident, $write:ident, $atomic:ident, $word:ident) => {
        /// # Safety
        /// As [`read`], with the size of the word as the unit.
        #[inline]
        unsafe fn $read(from: NonNull<u8>, to: &mut [u8]) {
            let from = from.cast::<$atomic>();
            for (index, bytes) in to.chunks_exact_mut(size_of::<$word>()).enumerate() {
                // SAFETY: inside the range by the caller's word; atomics may be shared.
                let word = unsafe { from.add(index).as_ref() }.load(Ordering::Relaxed);
                bytes.copy_from_slice(&word.to_ne_bytes());
            }
        }

        /// # Safety
        /// As [`write`], with the size of the word as the unit.
        #[inline]
        unsafe fn $write(to: NonNull<u8>, from: &[u8]) {
            let to = to.cast::<$atomic>();
            for (index, bytes) in from.chunks_exact(size_of::<$word>()).enumerate() {
                let word = $word::from_ne_bytes(std::array::from_fn(|i| bytes[i]));
                // SAFETY: inside the range by the caller's word; atomics may be shared.
                unsafe { to.add(index).as_ref() }.store(word, Ordering::Relaxed);
            }
        }
    };
}

copies!(read_words, write_words, AtomicU64, u64);
copies!(read_fours, write_fours, AtomicU32, u32);
copies!(read_twos, write_twos, AtomicU16, u16);
copies!(read_bytes, write_bytes, AtomicU8, u8);

/// # Safety
/// As [`read`].
#[inline]
unsafe fn read_units(from: NonNull<u8>, to: &mut [u8], unit: usize) {
    // SAFETY: the caller's word.
    unsafe {
        match unit {
            8 => read_words(from, to),
            4 => read_fours(from, to),
            2 => read_twos(from, to),
            _ => read_bytes(from, to),
        }
    }
}

/// # Safety
/// As [`write`].
#[inline]
unsafe fn write_units(to: NonNull<u8>, from: &[u8], unit: usize) {
    // SAFETY: the caller's word.
    unsafe {
        match unit {
            8 => write_words(to, from),
            4 => write_fours(to, from),
            2 => write_twos(to, from),
            _ => write_bytes(to, from),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_start_and_length_is_copied_exactly() {
        for unit in [1, 2, 4, 8] {
            for start in (0..16).step_by(unit) {
                for len in (0..40).step_by(unit) {
                    let mut memory = [0_u64; 10];
                    let shared = NonNull::from(&mut memory).cast::<u8>();
                    let from: Vec<u8> = (1..).take(len).collect();
                    let mut back = vec![0; len];
                    // SAFETY: within `memory`, which is aligned to 8, and only this thread uses it.
                    unsafe {
                        write(shared.add(start), &from, unit);
                        read(shared.add(start), &mut back, unit);
                    }
                    assert_eq!(back, from, "{unit} {start}");
                    let all: Vec<u8> = memory.iter().flat_map(|word| word.to_ne_bytes()).collect();
                    assert_eq!(all[start..start + len], from);
                    assert!(all[..start].iter().chain(&all[start + len..]).all(|byte| *byte == 0));
                }
            }
        }
    }
}
