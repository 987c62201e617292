//! The queue's memory: a ring that grows, blocks for large messages, and what survives a death.
//!
//! Producers and consumers have a lock each (Michael and Scott, "Simple, Fast, and Practical Non-Blocking and
//! Blocking Concurrent Queue Algorithms", PODC 1996) and so never wait for the other side. A message is written first
//! and published by one store of the tail; taking it is one store of the head. What was not published did not
//! happen, so a death leaves nothing to repair but caches and blocks that nobody has.

mod accounts;
mod apart;
mod blocks;
mod get;
pub(crate) mod layout;
mod locks;
mod put;
mod recovery;
mod segment;
mod shortage;
mod watch;

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU32 as LocalAtomicU32;

use procession_sys::clock::Deadline;
use procession_sys::memory::{self, Mapping};
use rustix::fd::{BorrowedFd, OwnedFd};

pub use self::accounts::Peeked;
pub use self::layout::{BEGINNING, INLINE_MAX, MAX_MESSAGES};
pub(crate) use self::layout::{ON_ITS_WAY, PRESENT};
pub use self::watch::WatchError;
pub(crate) use self::{
    apart::Apart,
    get::{GetSession, Take, Taken},
    put::{Content, Pushed},
    shortage::Usage,
    watch::Side,
};

use self::apart::Spare;
use self::layout::{
    ACCOUNTS, ACCOUNTS_AT, Account, BlockState, Control, Cursor, DESCRIPTORS_AT, Descriptor, FIRST_SEGMENT,
    FIRST_TABLE, Segment, UNIT,
};
use self::segment::{SegmentCache, SegmentMemory};
use self::shortage::Shortage;
use self::watch::Watches;
use crate::shm::windows::{self, Windows};
use crate::shm::{CreateError, Header, Kind, ObjectId, OpenError};
use crate::sync::atomic::Ordering;

/// So many bytes are no burden, whoever says that a message has them.
const PLAUSIBLE: u64 = 1 << 20;

/// The shared memory contradicts itself: something else wrote to it. The object is of no more use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the queue's shared memory is damaged: {0}")]
pub struct Damaged(pub &'static str);

/// Why a queue's memory did not take or give a message.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RingError {
    /// The queue's own limit.
    #[error("the queue holds {used} bytes, {needed} more would exceed its max_bytes of {max_bytes}")]
    Limit {
        /// What it holds.
        used: u64,
        /// What the message would take.
        needed: u64,
        /// The limit.
        max_bytes: u64,
    },
    /// The system's.
    #[error("the system has no memory for the queue: {0}")]
    System(io::Error),
    /// The queue counts unfinished tasks, and more living processes than it can tell apart take from it.
    #[error("more than {ACCOUNTS} processes take tasks from this queue")]
    TooManyConsumers,
    /// A living process holds an internal lock of the queue and makes no progress. The operation
    /// has done nothing, and may be retried.
    #[error(
        "another process is inside the queue and does not go on; it may be stopped by a signal, a debugger or a frozen cgroup, and describe() says which process it is"
    )]
    Busy,
    /// A forked child has only a copy of its parent's reservation or delivery.
    #[error(
        "it belongs to the process that made or took it, of which this one is a forked child; use it there"
    )]
    Inherited,
    /// The shared memory is damaged.
    #[error(transparent)]
    Damaged(#[from] Damaged),
}

/// What a new queue is to be like.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Settings {
    /// 0 for no bound.
    pub(crate) max_messages: u32,
    pub(crate) max_bytes: u64,
    /// Whether puts wait for room in bytes; else a put fails that finds none.
    pub(crate) waits_for_bytes: bool,
    pub(crate) joinable: bool,
    pub(crate) abandonable: bool,
    /// 0 when the creator did not say.
    pub(crate) shape: u64,
}

/// One process's view of a queue's memory.
pub(crate) struct Ring {
    windows: Windows,
    control: NonNull<Control>,
    id: ObjectId,
    settings: Settings,
    put_segment: SegmentCache,
    get_segment: SegmentCache,
    /// The account this process used last, a hint.
    account: LocalAtomicU32,
    watches: Watches,
    spare: Spare,
    shortage: Shortage,
}

// SAFETY: what the pointer leads to is shared between processes by design: atomics, and records that the locks in
// it guard.
unsafe impl Send for Ring {}
// SAFETY: as above.
unsafe impl Sync for Ring {}

impl Ring {
    /// Makes a queue in an empty file of [`windows::FIRST`] bytes.
    pub(crate) fn create(fd: OwnedFd, settings: Settings) -> Result<Self, CreateError> {
        let failed =
            |action| move |cause: io::Error| CreateError::System { kind: Kind::Queue, action, cause };
        let accounts = if settings.joinable { (ACCOUNTS * size_of::<Account>()) as u64 } else { 0 };
        let fixed = ACCOUNTS_AT + accounts;
        memory::reserve(&fd, 0, fixed).map_err(failed("reserving memory"))?;
        let windows = Windows::new(fd).map_err(failed("mapping memory"))?;
        let id = ObjectId::random();
        let control =
            windows.at(0, size_of::<Control>() as u64).map_err(failed("mapping memory"))?.cast::<Control>();
        let header = Header::new(Kind::Queue, id).map_err(failed("reading the pid namespace"))?;
        // SAFETY: the control block lies at the start of window 0, which is mapped, zeroed and known to nobody else;
        // each word of it is valid as zero.
        let control = unsafe {
            (&raw mut (*control.as_ptr()).header).write(header);
            control
        };
        let ring = Ring {
            windows,
            control,
            id,
            settings,
            put_segment: SegmentCache::new(),
            get_segment: SegmentCache::new(),
            account: LocalAtomicU32::new(0),
            watches: Watches::default(),
            spare: Spare::default(),
            shortage: Shortage::default(),
        };
        let control = ring.control();
        control.settings.max_messages.store(settings.max_messages, Ordering::Relaxed);
        control.settings.joinable.store(settings.joinable.into(), Ordering::Relaxed);
        control.settings.abandonable.store(settings.abandonable.into(), Ordering::Relaxed);
        control.settings.max_bytes.store(settings.max_bytes, Ordering::Relaxed);
        control.settings.shape.store(settings.shape, Ordering::Relaxed);
        control.settings.waits_for_bytes.store(settings.waits_for_bytes.into(), Ordering::Relaxed);
        control.memory.end.store(fixed, Ordering::Relaxed);
        control.memory.used.store(fixed, Ordering::Relaxed);
        let first =
            ring.new_segment(FIRST_SEGMENT, 0, ring.limit_of_puts(), Deadline::Never).map_err(|error| {
                match error {
                    RingError::System(cause) => failed("reserving memory")(cause),
                    other => CreateError::Invalid { object: "a queue", problem: other.to_string() },
                }
            })?;
        let damaged = |error: Damaged| CreateError::Invalid { object: "a queue", problem: error.to_string() };
        let descriptor = ring.descriptor(first.block).map_err(damaged)?;
        descriptor.set_state(BlockState::Segment, None);
        control.put.segment.store(first.to_bits(), Ordering::Relaxed);
        control.put.reserved.store(descriptor.reserved.load(Ordering::Relaxed), Ordering::Relaxed);
        control.get.segment.store(first.to_bits(), Ordering::Relaxed);
        control.header.publish();
        Ok(ring)
    }

    /// Opens a queue that somebody made in this file.
    pub(crate) fn open(fd: OwnedFd) -> Result<Self, OpenError> {
        let size = memory::file_size(&fd).map_err(OpenError::system("asking for its size"))?;
        if size < windows::FIRST {
            return Err(OpenError::NotAnObject("it is too small"));
        }
        let windows = Windows::new(fd).map_err(OpenError::system("mapping it"))?;
        let control = windows
            .at(0, size_of::<Control>() as u64)
            .map_err(OpenError::system("mapping it"))?
            .cast::<Control>();
        let mut ring = Ring {
            windows,
            control,
            id: ObjectId::from_bytes([0; 16]),
            settings: Settings::default(),
            put_segment: SegmentCache::new(),
            get_segment: SegmentCache::new(),
            account: LocalAtomicU32::new(0),
            watches: Watches::default(),
            spare: Spare::default(),
            shortage: Shortage::default(),
        };
        let shared = ring.control();
        let id = shared.header.check(Kind::Queue)?;
        let settings = Settings {
            max_messages: shared.settings.max_messages.load(Ordering::Relaxed),
            max_bytes: shared.settings.max_bytes.load(Ordering::Relaxed),
            waits_for_bytes: shared.settings.waits_for_bytes.load(Ordering::Relaxed) != 0,
            joinable: shared.settings.joinable.load(Ordering::Relaxed) != 0,
            abandonable: shared.settings.abandonable.load(Ordering::Relaxed) != 0,
            shape: shared.settings.shape.load(Ordering::Relaxed),
        };
        if settings.max_messages > MAX_MESSAGES {
            return Err(OpenError::Damaged("impossible settings"));
        }
        ring.id = id;
        ring.settings = settings;
        Ok(ring)
    }

    /// Whether the file is a queue whose users hold a presence lock; false for any other object.
    pub(crate) fn is_abandonable(fd: BorrowedFd<'_>) -> bool {
        let at =
            std::mem::offset_of!(Control, settings) + std::mem::offset_of!(layout::Settings, abandonable);
        let mut word = [0; 4];
        rustix::io::pread(fd, &mut word, at as u64) == Ok(word.len()) && word != [0; 4]
    }

    pub(crate) fn id(&self) -> ObjectId {
        self.id
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.windows.fd()
    }

    pub(crate) fn settings(&self) -> Settings {
        self.settings
    }

    #[inline]
    pub(crate) fn control(&self) -> &Control {
        // SAFETY: window 0 stays mapped as long as `self`, `Control` lies within it, and all of it is atomics
        // and locks, valid in any state.
        unsafe { self.control.as_ref() }
    }

    /// The accounts; none in a queue that counts no tasks.
    pub(crate) fn accounts(&self) -> &[Account] {
        if !self.settings.joinable {
            return &[];
        }
        // SAFETY: the accounts lie in window 0 behind the descriptors, mapped as long as `self`; all atomics.
        unsafe {
            let first = self.control.cast::<u8>().add(ACCOUNTS_AT as usize).cast::<Account>();
            std::slice::from_raw_parts(first.as_ptr(), ACCOUNTS)
        }
    }

    /// Bytes before the first block.
    fn fixed_bytes(&self) -> u64 {
        ACCOUNTS_AT + size_of_val(self.accounts()) as u64
    }

    /// How many descriptors there are.
    pub(crate) fn descriptor_count(&self) -> u32 {
        self.control().memory.descriptors.load(Ordering::Acquire)
    }

    /// The descriptor of a block, which exists or is about to.
    pub(crate) fn descriptor_slot(&self, block: u32) -> Result<&Descriptor, Damaged> {
        let (table, index) = table_of(block);
        let at = match table {
            0 => DESCRIPTORS_AT,
            _ => {
                let tables = &self.control().memory.tables;
                let at = tables.get(table).ok_or(Damaged("block number"))?.load(Ordering::Acquire);
                if at == 0 || at % 4096 != 0 {
                    return Err(Damaged("table of blocks"));
                }
                at
            }
        };
        // No table is so large that this overflows, wherever it is said to begin.
        let offset = at.saturating_add(u64::from(index) * size_of::<Descriptor>() as u64);
        let place = self
            .windows
            .at(offset, size_of::<Descriptor>() as u64)
            .map_err(|_| Damaged("table of blocks"))?;
        // SAFETY: mapped as long as `self`, aligned to 64 since the table is to a page, and all atomics.
        Ok(unsafe { place.cast::<Descriptor>().as_ref() })
    }

    /// The numbers of all blocks, for who looks at each. What a death or a peer leaves may say anything; a table that has
    /// no memory was made by nobody, and looking through it would take time, and memory, without end.
    pub(crate) fn blocks(&self) -> Result<std::ops::Range<u32>, Damaged> {
        let count = self.descriptor_count();
        if count > FIRST_TABLE && !self.has_memory_for(u64::from(count) * size_of::<Descriptor>() as u64) {
            return Err(Damaged("the number of blocks"));
        }
        Ok(0..count)
    }

    /// Whether the file has so many bytes of memory: a number that says how much lies in it cannot be right otherwise.
    pub(crate) fn has_memory_for(&self, bytes: u64) -> bool {
        memory::allocated(self.fd()).is_ok_and(|allocated| bytes <= allocated)
    }

    /// Whether a message, or whatever is to be read at once, may be so long.
    pub(crate) fn check_length(&self, len: u64) -> Result<(), Damaged> {
        if len <= PLAUSIBLE || self.has_memory_for(len) { Ok(()) } else { Err(Damaged("a message's length")) }
    }

    /// The descriptor of an existing block.
    pub(crate) fn descriptor(&self, block: u32) -> Result<&Descriptor, Damaged> {
        if block >= self.descriptor_count() {
            return Err(Damaged("block number"));
        }
        self.descriptor_slot(block)
    }

    /// Where the first `len` bytes of a block are mapped, which they were before.
    pub(crate) fn block_memory(&self, descriptor: &Descriptor, len: u64) -> Result<NonNull<u8>, Damaged> {
        self.map_block(descriptor, len).map_err(|error| match error {
            RingError::Damaged(damaged) => damaged,
            _ => Damaged("a block's place, or there is no room to map it"),
        })
    }

    /// Maps the first `len` bytes of a block, so that [`Ring::block_memory`] cannot fail for them afterwards.
    pub(crate) fn map_block(&self, descriptor: &Descriptor, len: u64) -> Result<NonNull<u8>, RingError> {
        let offset = self.block_offset(descriptor, len)?;
        self.windows.at(offset, len.max(1)).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => Damaged("a block's place").into(),
            _ => RingError::System(error),
        })
    }

    /// Maps a message of `len` bytes, which the caller has in a block mapped from `start` on, a second time.
    pub(crate) fn map_apart(&self, block: u32, start: NonNull<u8>, len: usize) -> io::Result<Apart> {
        let damaged = |error| io::Error::new(io::ErrorKind::InvalidData, error);
        let page = memory::page_size();
        let offset = self
            .descriptor(block)
            .and_then(|descriptor| self.block_offset(descriptor, len as u64))
            .map_err(damaged)?;
        if !offset.is_multiple_of(page as u64) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let len = len.next_multiple_of(page);
        // The descriptor may say something else by now; only where the block was when the caller came to have it is it the
        // caller's, and inside the file.
        if self.windows.at(offset, len as u64)? != start {
            return Err(damaged(Damaged("a block's place")));
        }
        if let Some(spare) = self.spare.take(offset, len) {
            return Ok(spare);
        }
        Ok(Apart { mapping: Mapping::populated(self.fd(), offset, len)?, offset })
    }

    /// Takes a mapping back that nobody uses any more, shared as it was made.
    pub(crate) fn keep_apart(&self, apart: Apart) {
        self.spare.keep(apart);
    }

    /// Where a block lies in the file. It has `len` bytes there, and the caller uses this number: the descriptor may say
    /// something else the next time.
    fn block_offset(&self, descriptor: &Descriptor, len: u64) -> Result<u64, Damaged> {
        let class = descriptor.class.load(Ordering::Relaxed);
        let offset = descriptor.offset.load(Ordering::Relaxed);
        let fits = class < layout::CLASSES as u32 && len <= 1 << class;
        if !fits || !offset.is_multiple_of(4096) || offset < ACCOUNTS_AT {
            return Err(Damaged("a block's place"));
        }
        Ok(offset)
    }

    /// A segment's memory, through the cache of one side.
    #[inline(always)]
    fn segment_memory(&self, cache: &SegmentCache, block: u32) -> Result<SegmentMemory, RingError> {
        match cache.get(block) {
            Some(memory) => Ok(memory),
            None => self.find_segment(cache, block),
        }
    }

    #[cold]
    fn find_segment(&self, cache: &SegmentCache, block: u32) -> Result<SegmentMemory, RingError> {
        let descriptor = self.descriptor(block)?;
        let class = descriptor.class.load(Ordering::Relaxed);
        if !(layout::SMALLEST_CLASS..=30).contains(&class) {
            return Err(Damaged("a segment's size").into());
        }
        let start = self.map_block(descriptor, 1 << class)?;
        // SAFETY: the block's 2^class bytes are mapped as long as `self` and aligned to a page.
        let memory = unsafe { SegmentMemory::new(start, ((1u64 << class) / UNIT) as u32) };
        cache.set(block, memory);
        Ok(memory)
    }

    #[inline]
    pub(crate) fn head(&self) -> Cursor {
        Cursor::from_bits(self.control().get.head.load(Ordering::Acquire))
    }

    #[inline]
    pub(crate) fn tail(&self) -> Cursor {
        Cursor::from_bits(self.control().put.tail.load(Ordering::Acquire))
    }

    /// Messages that are put and not taken, at one instant.
    pub(crate) fn len(&self) -> u64 {
        /// Consumers at full speed are met again some ten times. Who never lets go of it does not take messages.
        const TRIES: u32 = 100_000;
        let mut tries = 0;
        loop {
            let head = self.head();
            let tail = self.tail();
            let queued = u64::from(tail.messages_since(head));
            let returned = self.control().memory.returned.load(Ordering::Acquire);
            // With both ends where they were, the third number was right for both.
            let same = self.head() == head && (!self.settings.joinable || self.tail() == tail);
            if same || tries == TRIES {
                return queued.saturating_add(returned);
            }
            tries += 1;
        }
    }

    /// How many messages wait, if as many can lie in the memory that the queue has, and where the last one ends.
    pub(crate) fn plausible_backlog(&self, head: Cursor) -> Result<(u32, Cursor), Damaged> {
        let tail = self.tail();
        let count = tail.messages_since(head);
        let units = u64::from(tail.position.wrapping_sub(head.position));
        // Half: what is skipped at a segment's end counts too, and may have no memory.
        let much = units * UNIT > PLAUSIBLE;
        if u64::from(count) > units || much && !self.has_memory_for(units * UNIT / 2) {
            return Err(Damaged("the count of messages"));
        }
        Ok((count, tail))
    }

    /// Whether a consumer would find a message.
    #[inline]
    pub(crate) fn has_message(&self) -> bool {
        self.available() != 0
    }

    /// [`Ring::available`], for who looks again and again: brings the next record's line over together with the
    /// tail's, instead of one after the other.
    #[inline]
    pub(crate) fn look_for_message(&self) -> u32 {
        let head = self.head();
        let segment = Segment::from_bits(self.control().get.segment.load(Ordering::Relaxed));
        let available = self.available();
        if let Some(memory) = self.get_segment.get(segment.block) {
            memory.prefetch_to_read(head.position.wrapping_sub(segment.base));
        }
        available
    }

    /// About how many messages a consumer would find.
    #[inline]
    pub(crate) fn available(&self) -> u32 {
        self.tail().messages_since(self.head()).saturating_add(self.returned())
    }

    /// How many deliveries are to be handed out again.
    #[inline]
    pub(crate) fn returned(&self) -> u32 {
        if self.settings.joinable {
            // Each has a block.
            (self.control().memory.returned.load(Ordering::Relaxed) as u32).min(self.descriptor_count())
        } else {
            0
        }
    }

    /// Whether as many messages wait as the queue may hold.
    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.room() == 0
    }

    /// How many more messages the queue may hold.
    #[inline]
    pub(crate) fn room(&self) -> u32 {
        let max = match self.settings.max_messages {
            0 => MAX_MESSAGES,
            max => max,
        };
        max.saturating_sub(u32::try_from(self.len()).unwrap_or(u32::MAX))
    }

    /// Whether the queue is shut down and no message will come any more. Not while somebody else may die with a task that is then
    /// to be done here.
    pub(crate) fn is_over(&self) -> bool {
        match self.shutdown_state() {
            1 => !self.may_inherit_a_delivery().is_ok_and(|may| may),
            state => state != 0,
        }
    }

    /// 0, 1 or 2, as in [`layout::Settings`].
    #[inline]
    pub(crate) fn shutdown_state(&self) -> u32 {
        self.control().settings.shutdown.load(Ordering::Acquire)
    }
}

/// Which table has a block's descriptor, and where in it.
fn table_of(block: u32) -> (usize, u32) {
    let table = (block / FIRST_TABLE + 1).ilog2();
    let first = FIRST_TABLE * ((1 << table) - 1);
    (table as usize, block - first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_double() {
        assert_eq!(table_of(0), (0, 0));
        assert_eq!(table_of(63), (0, 63));
        assert_eq!(table_of(64), (1, 0));
        assert_eq!(table_of(64 + 127), (1, 127));
        assert_eq!(table_of(64 + 128), (2, 0));
    }
}
