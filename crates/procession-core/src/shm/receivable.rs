//! Which handles of processes that have exited may still be received.
//!
//! A handle lies in a queue, its *carrier*. A process that has the carrier open may receive it. But
//! the carrier's own handle may lie in another queue, and only a [`keeper`](super::keeper) may have
//! it open. So each keeper shows the others what it keeps, as *edges* in a memfd: an object, and a
//! queue that carries its handles. A search collects the edges of all keepers, marks the carriers
//! that other processes have open, and follows the edges from there. Thus two keepers that have
//! each other's queues do not keep each other.
//!
//! Nothing here allocates: a keeper searches.

use std::ffi::CStr;
use std::io;

use procession_sys::memory;
use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::io::{pread, pwrite};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use super::header::ObjectId;
use super::holders::{self, Process};

/// How many queues that carry an object's handles are remembered.
pub(super) const CARRIERS: usize = 16;
/// The name of a keeper's process.
pub(super) const KEEPER: &CStr = c"procession-keep";
/// The name of the memfd with its edges.
const EDGES: &CStr = c"procession-edges";
/// What a link in `/proc/PID/fd` to it begins with.
const LINK: &[u8] = b"/memfd:procession-edges";
/// An edge in that file: the object's id, then the carrier's, which is 0 where the handles went
/// elsewhere. All 0 where there is none, or none any more.
const EDGE_LEN: usize = 32;
const NONE: [u8; 16] = [0; 16];
/// An object's edges.
const ENTRY_LEN: usize = CARRIERS * EDGE_LEN;
/// As large as a graph may be in bytes.
const GRAPH_LEN: usize = 16 << 20;

/// The carriers of an object's handles; none where they went elsewhere.
pub(super) type Carriers = [Option<ObjectId>; CARRIERS];

/// Shows which objects a keeper that is about to be made will keep, each at its index.
///
/// # Errors
/// Out of descriptors or memory.
pub(super) fn show(kept: impl Iterator<Item = (Option<ObjectId>, Carriers)>) -> io::Result<OwnedFd> {
    let file = memory::create(EDGES, 0)?;
    for (index, (object, carriers)) in kept.enumerate() {
        memory::grow(&file, ((index + 1) * ENTRY_LEN) as u64)?;
        let Some(object) = object else { continue };
        let mut entry = [0; ENTRY_LEN];
        let last = carriers.iter().flatten().count().max(1);
        for (edge, carrier) in entry.chunks_exact_mut(EDGE_LEN).zip(carriers).take(last) {
            let (to, from) = edge.split_at_mut(16);
            to.copy_from_slice(&object.to_bytes());
            from.copy_from_slice(&carrier.map_or(NONE, ObjectId::to_bytes));
        }
        pwrite(&file, &entry, (index * ENTRY_LEN) as u64)?;
    }
    Ok(file)
}

/// Removes an object's edges again. A keeper that dies before has none at all.
pub(super) fn withdraw(file: BorrowedFd<'_>, index: usize) {
    // Edges that stay make other keepers wait for this one, no longer than it lives.
    let _ = pwrite(file, &[0; ENTRY_LEN], (index * ENTRY_LEN) as u64);
}

/// An object, and a queue that carries its handles. Ids are 0 for none.
#[derive(Clone, Copy)]
#[repr(C)]
struct Edge {
    object: [u8; 16],
    carrier: [u8; 16],
    /// The keeper's pid, and 0 for the caller.
    keeper: i32,
    /// Which of the caller's objects it is.
    index: u32,
    /// Whether a process may receive the object.
    is_reached: bool,
    is_followed: bool,
}

/// The edges of all keepers.
pub(super) struct Graph {
    /// Memory of this value alone.
    edges: &'static mut [Edge],
    len: usize,
    /// Whether all edges had room. Otherwise any object may be received.
    is_complete: bool,
}

impl Graph {
    /// Without edges.
    ///
    /// # Errors
    /// Out of memory.
    pub(super) fn new() -> io::Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping of the kernel's choosing, aligned to a page, that nothing else
        // refers to until `drop` unmaps it. An `Edge` may be all zero.
        let edges = unsafe {
            let start = mmap_anonymous(std::ptr::null_mut(), GRAPH_LEN, access, flags)?;
            std::slice::from_raw_parts_mut(start.cast::<Edge>(), GRAPH_LEN / size_of::<Edge>())
        };
        Ok(Graph { edges, len: 0, is_complete: true })
    }

    /// Adds an object that the caller keeps.
    pub(super) fn add(&mut self, index: usize, object: Option<ObjectId>, carriers: &Carriers) {
        let object = object.map_or(NONE, ObjectId::to_bytes);
        let went_elsewhere = carriers[0].is_none().then_some(NONE);
        for carrier in carriers.iter().flatten().map(|id| id.to_bytes()).chain(went_elsewhere) {
            self.add_edge(object, carrier, 0, index as u32);
        }
    }

    fn add_edge(&mut self, object: [u8; 16], carrier: [u8; 16], keeper: i32, index: u32) {
        let is_reached = carrier == NONE;
        match self.edges.get_mut(self.len) {
            Some(edge) => {
                *edge = Edge { object, carrier, keeper, index, is_reached, is_followed: false };
                self.len += 1;
            }
            None => self.is_complete = false,
        }
    }

    /// Looks at all other processes, and finds what they may receive.
    pub(super) fn search(&mut self) {
        let me = rustix::process::getpid();
        let _all = holders::each_process::<()>(|process| {
            if process.pid != me && process.is_named(KEEPER) {
                self.add_edges_of(&process);
            }
            None
        });
        let _all = holders::each_process::<()>(|process| {
            let pid = process.pid.as_raw_nonzero().get();
            // A keeper that has come since is taken for any process, until the next search.
            if process.pid != me && !self.edges().iter().any(|edge| edge.keeper == pid) {
                process.each_object::<()>(|_, id| {
                    self.reach(id.to_bytes());
                    None
                });
            }
            None
        });
        while let Some(edge) = self.edges_mut().iter_mut().find(|edge| edge.is_reached && !edge.is_followed) {
            edge.is_followed = true;
            let object = edge.object;
            if object != NONE {
                self.reach(object);
            }
        }
    }

    fn add_edges_of(&mut self, keeper: &Process) {
        keeper.each_link::<()>(&[LINK], |file| {
            let mut entry = [0; ENTRY_LEN];
            let mut at = 0;
            while self.is_complete && pread(&file, &mut entry, at) == Ok(ENTRY_LEN) {
                at += ENTRY_LEN as u64;
                for edge in entry.chunks_exact(EDGE_LEN) {
                    let (mut object, mut carrier) = (NONE, NONE);
                    let (to, from) = edge.split_at(16);
                    object.copy_from_slice(to);
                    carrier.copy_from_slice(from);
                    if object != NONE {
                        self.add_edge(object, carrier, keeper.pid.as_raw_nonzero().get(), 0);
                    }
                }
            }
            None
        });
    }

    /// A process may have the object.
    fn reach(&mut self, id: [u8; 16]) {
        for edge in self.edges_mut().iter_mut().filter(|edge| edge.carrier == id) {
            edge.is_reached = true;
        }
    }

    /// Whether a process may receive the caller's object with this index, as the search has found.
    pub(super) fn is_receivable(&self, index: usize) -> bool {
        let is_mine = |edge: &&Edge| edge.keeper == 0 && edge.index as usize == index;
        !self.is_complete || self.edges().iter().filter(is_mine).any(|edge| edge.is_reached)
    }

    fn edges(&self) -> &[Edge] {
        self.edges.get(..self.len).unwrap_or_default()
    }

    fn edges_mut(&mut self) -> &mut [Edge] {
        self.edges.get_mut(..self.len).unwrap_or_default()
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: the mapping from `new`, which nothing refers to after this.
        unsafe {
            let _ = munmap(self.edges.as_mut_ptr().cast(), GRAPH_LEN);
        }
    }
}
