//! Many small objects in few shared mappings.
//!
//! A descriptor and a page for every lock would soon meet the limit of 1,024 descriptors. So small objects
//! are slots of a **chunk**: a memfd of 64 KiB, the later ones of a process larger, up to 1 MiB. What needs
//! more than a quarter of that gets a chunk of its own.
//!
//! Only the process that made a chunk puts slots into it, so that which slots are taken is that
//! process's private knowledge: no death can leave it half-changed, and no two processes fight over it. (A
//! forked child starts a chunk of its own.) There are no reference counts either. Every process keeps a chunk mapped while
//! it has a handle on something in it, and the kernel frees the memory with the last mapping and descriptor.
//!
//! A slot is used again if nobody else can know it: its handle was never sent, and this process did
//! not fork while it lived. Otherwise it stays as it is until the chunk goes.

mod pool;

use std::io;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use procession_sys::crash_point::{AtomicU32, AtomicU64, Ordering};
use procession_sys::memory::{self, Mapping};
use procession_sys::{fork, identity::Identity};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};

use super::fd_ref::FdRef;
use super::handed_out::{self, Exportable};
use super::registry::Registry;
use super::transfer;
use super::{CreateError, Header, Kind, ObjectId, OpenError};

/// Slots begin at multiples of this and their size is one, in bytes.
pub const SLOT_ALIGN: usize = 64;

/// The chunks that this process has open. Used only with the fork gate held.
static CHUNKS: Registry<Chunk> = Registry::new();

/// One memfd, mapped whole.
///
/// Memory: a [`ChunkHead`], then slots. All of it is reserved before the first slot is used.
#[derive(Debug)]
struct Chunk {
    mapping: Mapping,
    fd: OwnedFd,
    id: ObjectId,
}

/// What a chunk begins with. Written by its creator before the header is published, constant since.
#[repr(C, align(64))]
struct ChunkHead {
    header: Header,
    /// The chunk's size in bytes, this head included.
    size: AtomicU64,
}

const HEAD: usize = size_of::<ChunkHead>();

impl Exportable for Chunk {
    fn id(&self) -> ObjectId {
        self.id
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn header(&self) -> &Header {
        // SAFETY: every chunk's mapping begins with a head, checked when it was opened; but for its counters, which are
        // atomics, the header does not change.
        unsafe { &self.mapping.start().cast::<ChunkHead>().as_ref().header }
    }

    fn is_open(id: ObjectId) -> bool {
        CHUNKS.is_open(id)
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        handed_out::let_go(self.id);
    }
}

impl Chunk {
    fn create(size: usize) -> Result<Arc<Self>, CreateError> {
        let failed = |action| move |cause| CreateError::System { kind: Kind::Arena, action, cause };
        if size as u64 > memory::limit() || (size > 64 << 20 && size as u64 > memory::available()) {
            return Err(failed("reserving its memory")(io::ErrorKind::OutOfMemory.into()));
        }
        let fd = memory::create(c"procession-arena", size as u64).map_err(failed("making a memfd"))?;
        memory::reserve(&fd, 0, size as u64).map_err(failed("reserving its memory"))?;
        let mapping = Mapping::new(&fd, 0, size).map_err(failed("mapping it"))?;
        let id = ObjectId::random();
        let header = Header::new(Kind::Arena, id).map_err(failed("reading the pid namespace"))?;
        let head = mapping.start().cast::<ChunkHead>();
        // SAFETY: the mapping is new, ours alone, page-aligned and at least a head long.
        unsafe {
            head.write(ChunkHead { header, size: AtomicU64::new(size as u64) });
            head.as_ref().header.publish();
        }
        Ok(Arc::new(Chunk { mapping, fd, id }))
    }

    /// Opens what a handle refers to, after checking that it is the chunk with that id.
    fn open(transit: FdRef, id: ObjectId) -> Result<Arc<Self>, OpenError> {
        let fd = transfer::receive_object(transit, id)?;
        if !memory::cannot_shrink(&fd) {
            return Err(OpenError::NotAnObject("its memory could be taken away while it is used"));
        }
        let size = memory::file_size(&fd).map_err(OpenError::system("reading its size"))?;
        let size = usize::try_from(size).map_err(|_| OpenError::NotAnObject("too large to map"))?;
        if size < HEAD {
            return Err(OpenError::NotAnObject("too small for a header"));
        }
        // What its maker did not pay for would be paid for by whoever copies an array from it.
        if memory::allocated(&fd).map_err(OpenError::system("reading its size"))? < size as u64 {
            return Err(OpenError::Damaged("it has no memory for all of its size"));
        }
        let mapping = Mapping::new(&fd, 0, size).map_err(OpenError::system("mapping it"))?;
        // SAFETY: the mapping is page-aligned and at least a head long; any bytes are a valid head, and
        // the file cannot shrink.
        let head = unsafe { mapping.start().cast::<ChunkHead>().as_ref() };
        if head.header.check(Kind::Arena)? != id {
            return Err(OpenError::NotAnObject("the descriptor belongs to another object by now"));
        }
        if head.size.load(Ordering::Relaxed) != size as u64 {
            return Err(OpenError::Damaged("its size differs from what it records"));
        }
        Ok(Arc::new(Chunk { mapping, fd, id }))
    }
}

/// What a slot holds: the low byte of its tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[non_exhaustive]
pub enum SlotKind {
    /// [`crate::objects::Lock`].
    Lock = 1,
    /// [`crate::objects::RLock`].
    RLock = 2,
    /// [`crate::objects::Semaphore`].
    Semaphore = 3,
    /// [`crate::objects::Condition`].
    Condition = 4,
    /// [`crate::objects::Event`].
    Event = 5,
    /// [`crate::objects::Barrier`].
    Barrier = 6,
    /// [`crate::objects::Block`] with a lock.
    Block = 7,
    /// [`crate::objects::Block`] without one.
    RawBlock = 8,
}

/// What every slot begins with.
#[repr(C)]
#[derive(Debug)]
pub struct SlotHead {
    /// A [`SlotKind`] in the low byte and a random number above it, so that a damaged or outdated handle matches
    /// no slot. 0 until the creator has written all else, and again before the slot is given up; the store
    /// with Release publishes the object. A creator that dies earlier leaves a slot nobody can open.
    tag: AtomicU64,
    /// The slot's size in units of [`SLOT_ALIGN`]. Written by the creator before `tag`, constant since.
    units: AtomicU32,
    reserved: AtomicU32,
}

/// The shared words of one kind of object.
///
/// # Safety
/// `repr(C)`, begins with a [`SlotHead`], is aligned to [`SLOT_ALIGN`] at most, and any bytes are a valid value: other processes
/// may write whatever they like. All that changes after publication is atomic or in an `UnsafeCell`.
pub unsafe trait Words: Sync {
    /// What stands in the tag.
    const KIND: SlotKind;
}

/// One object's memory, and a share in its chunk.
#[derive(Debug)]
pub struct Slot {
    chunk: Arc<Chunk>,
    offset: u32,
    units: u32,
    tag: u64,
    /// Set by the first [`Slot::send`]: another process may know the slot.
    sent: AtomicBool,
    /// For a slot of this process's own pool: how to give it back.
    origin: Option<pool::Origin>,
}

impl Slot {
    /// A new slot with `W`'s words and `tail` more bytes behind them, all zero. The caller sets the words, then calls
    /// [`Slot::publish`]; until then nobody can open it.
    ///
    /// # Errors
    /// Larger than an address space, out of memory, of descriptors or of mappings.
    pub fn allocate<W: Words>(kind: SlotKind, tail: usize) -> Result<Self, CreateError> {
        const { assert!(align_of::<W>() <= SLOT_ALIGN && size_of::<W>() >= size_of::<SlotHead>()) };
        let invalid = || CreateError::Invalid {
            object: "an array",
            problem: format!("{tail} bytes are more than this machine can address"),
        };
        let bytes = size_of::<W>().checked_add(tail).ok_or_else(invalid)?;
        let units = u32::try_from(bytes.div_ceil(SLOT_ALIGN)).map_err(|_| invalid())?;
        let slot = pool::allocate(kind, units)?;
        slot.head().units.store(units, Ordering::Relaxed);
        Ok(slot)
    }

    /// Lets others open the slot. The last step of making an object.
    pub fn publish(&self) {
        self.head().tag.store(self.tag, Ordering::Release);
    }

    /// Opens what a handle refers to.
    ///
    /// # Errors
    /// No living process has the object open, or the handle does not fit it, or the system refused.
    pub fn open<W: Words>(handle: Handle, kind: SlotKind) -> Result<Self, OpenError> {
        if handle.tag as u8 != kind as u8 {
            return Err(OpenError::Malformed("it belongs to another kind of object"));
        }
        let offset = handle.offset as usize;
        if offset < HEAD || !offset.is_multiple_of(SLOT_ALIGN) {
            return Err(OpenError::Malformed("impossible place in a chunk"));
        }
        fork::watch().map_err(OpenError::system("preparing for forks"))?;
        let known = {
            let _gate = fork::gate();
            CHUNKS.get(handle.id)
        };
        let chunk = match known {
            Some(chunk) => chunk,
            None => {
                let chunk = Chunk::open(handle.transit, handle.id)?;
                let _gate = fork::gate();
                // Another thread may have been faster: two mappings of the same memory, both right.
                CHUNKS.insert(handle.id, &chunk);
                chunk
            }
        };
        transfer::opened(handle.transit, &chunk);
        let room = chunk.mapping.len().checked_sub(offset).ok_or(OpenError::Damaged("slot out of bounds"))?;
        if room < size_of::<W>() {
            return Err(OpenError::Damaged("slot out of bounds"));
        }
        let mut slot =
            Slot { chunk, offset: handle.offset, units: 0, tag: handle.tag, sent: true.into(), origin: None };
        let head = slot.head();
        if head.tag.load(Ordering::Acquire) != handle.tag {
            return Err(OpenError::NotAnObject("the handle is damaged, or its object no longer exists"));
        }
        let units = head.units.load(Ordering::Relaxed);
        let bytes = units as usize * SLOT_ALIGN;
        if bytes > room || bytes < size_of::<W>() {
            return Err(OpenError::Damaged("impossible size of a slot"));
        }
        slot.units = units;
        Ok(slot)
    }

    /// A handle for another process. From now on the slot is not used again while its chunk exists.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn send(&self) -> io::Result<Handle> {
        self.sent.store(true, Ordering::Relaxed);
        let transit = transfer::send(&self.chunk)?;
        Ok(Handle { transit, id: self.chunk.id, offset: self.offset, tag: self.tag })
    }

    /// Whether a process may be using the slot: it lives, and has not become another program.
    pub fn may_be_used_by(&self, process: Identity) -> bool {
        process.is_alive() && process.maps(self.chunk.fd.as_fd())
    }

    /// The object's words.
    ///
    /// # Panics
    /// When `W` does not fit the slot, which [`Slot::allocate`] and [`Slot::open`] rule out for the same `W`.
    #[inline]
    pub fn words<W: Words>(&self) -> &W {
        assert!(size_of::<W>() <= self.bytes());
        // SAFETY: the slot lies inside the mapping, which the chunk keeps; it is aligned and large enough; any bytes are a
        // valid `W` by that trait's contract, and its memory cannot go away.
        unsafe { self.start().cast::<W>().as_ref() }
    }

    /// The atomic words behind `W`'s, up to the end of the slot.
    #[inline]
    pub fn tail_words<W: Words>(&self) -> &[AtomicU64] {
        let (start, bytes) = self.tail::<W>();
        // SAFETY: inside the slot, as in `words`; aligned, since a `W` ends at a multiple of its own alignment of 8 or more
        // (it contains an AtomicU64); atomics may be shared.
        unsafe { std::slice::from_raw_parts(start.cast().as_ptr(), bytes / 8) }
    }

    /// Where the bytes behind `W`'s words begin, and how many there are up to the end of the slot.
    #[inline]
    pub fn tail<W: Words>(&self) -> (NonNull<u8>, usize) {
        let bytes = self.bytes() - size_of::<W>();
        // SAFETY: the words lie inside the slot (checked when it was made or opened).
        (unsafe { self.start().add(size_of::<W>()) }, bytes)
    }

    fn bytes(&self) -> usize {
        self.units as usize * SLOT_ALIGN
    }

    fn start(&self) -> NonNull<u8> {
        // SAFETY: the offset was checked to lie inside the mapping when the slot was made or opened.
        unsafe { self.chunk.mapping.start().add(self.offset as usize) }
    }

    fn head(&self) -> &SlotHead {
        // SAFETY: every slot begins with a head, inside the mapping, aligned; any bytes are a valid one.
        unsafe { self.start().cast().as_ref() }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(origin) = self.origin.take() {
            let known_elsewhere = self.sent.load(Ordering::Relaxed);
            pool::give_back(origin, self, known_elsewhere);
        }
    }
}

/// What another process needs to open an object: where the chunk is, and which slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handle {
    transit: FdRef,
    id: ObjectId,
    offset: u32,
    tag: u64,
}

impl Handle {
    /// The size in bytes of the encoded form.
    pub const LEN: usize = FdRef::LEN + 16 + 4 + 8;

    /// The handle as bytes.
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..12].copy_from_slice(&self.transit.to_bytes());
        bytes[12..28].copy_from_slice(&self.id.to_bytes());
        bytes[28..32].copy_from_slice(&self.offset.to_le_bytes());
        bytes[32..].copy_from_slice(&self.tag.to_le_bytes());
        bytes
    }

    /// Reads a handle back. Whether there is such an object shows when it is opened.
    ///
    /// # Errors
    /// [`OpenError::Malformed`] for bytes of another length and for an impossible process.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, OpenError> {
        fn part<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
            std::array::from_fn(|i| bytes[at + i])
        }
        if bytes.len() != Self::LEN {
            return Err(OpenError::Malformed("wrong length"));
        }
        Ok(Handle {
            transit: FdRef::from_bytes(part(bytes, 0))?,
            id: ObjectId::from_bytes(part(bytes, 12)),
            offset: u32::from_le_bytes(part(bytes, 28)),
            tag: u64::from_le_bytes(part(bytes, 32)),
        })
    }
}
