//! Second mappings of messages, kept for the next message in the same place.

use std::sync::{Mutex, PoisonError};

use procession_sys::fork;
use procession_sys::memory::Mapping;

/// So many places of large messages are in use in turn where one process takes them as another puts them, with some to spare.
const MOST: usize = 8;

/// A part of the queue's file, mapped apart from its windows.
#[derive(Debug)]
pub(crate) struct Apart {
    pub(super) mapping: Mapping,
    /// Where it lies in the file.
    pub(super) offset: u64,
}

impl Apart {
    pub(crate) fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }
}

/// Mappings that nothing uses now. Mapping 16 MiB and filling the page table takes as long as copying some of them.
///
/// They have addresses and page tables, no memory of their own: what the queue gives back to the system is gone from them too.
/// Which place they show never changes. Locked under the fork gate alone, so that no forked child finds it locked; a
/// child's are of the same file and as good.
#[derive(Debug, Default)]
pub(super) struct Spare(Mutex<Vec<Apart>>);

impl Spare {
    /// One of exactly this place.
    pub(super) fn take(&self, offset: u64, len: usize) -> Option<Apart> {
        let _gate = fork::gate();
        let mut spare = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = spare.iter().rposition(|apart| apart.offset == offset && apart.mapping.len() == len)?;
        Some(spare.remove(at))
    }

    /// Keeps one; the one that has not been used for longest goes if there are too many.
    pub(super) fn keep(&self, apart: Apart) {
        let _unmapped_outside_the_gate = {
            let _gate = fork::gate();
            let mut spare = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let oldest = (spare.len() == MOST).then(|| spare.remove(0));
            spare.push(apart);
            oldest
        };
    }
}
