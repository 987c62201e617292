//! The words of a queue in shared memory: who writes each, and which store publishes what.
//!
//! ```text
//! file offset 0      Header        64 bytes
//!             64     Control       the rest of the first 4 KiB
//!             4 KiB  descriptors   the first 64, further tables where `Memory::tables` says
//!             8 KiB  Watchers      of both sides
//!             12 KiB Accounts      only of a queue that counts unfinished tasks
//!             then   blocks        ring segments and large messages, each inside one window
//! ```
//!
//! Three locks, taken in the order `get`, `put`, `memory`. Each is robust: who takes it after its holder
//! died restores what the lock guards (`recovery.rs`) before going on.

use procession_sys::identity::Identity;

use crate::shm::Header;
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::sync::{Robust, WaitQueue};

/// The ring's unit of space in bytes. A record takes a whole number of units.
pub(crate) const UNIT: u64 = 16;
/// Bytes before a record's payload.
pub(crate) const RECORD_HEADER: u64 = 8;
/// The longest message in bytes that lies in the ring itself; a longer one lies in a block of its own, so that
/// nobody copies more than this while holding a lock.
pub const INLINE_MAX: usize = 16 << 10;
/// The first segment's size in bytes.
pub(crate) const FIRST_SEGMENT: u64 = 64 << 10;
/// The largest segment's size in bytes. More is a chain of segments.
pub(crate) const LARGEST_SEGMENT: u64 = 1 << 30;
/// What rings may hold in all, in units: well below where positions would compare wrongly.
pub(crate) const MAX_UNITS: u32 = 1 << 30;
/// How many messages a queue may hold.
pub const MAX_MESSAGES: u32 = 1 << 31;
/// The smallest block in bytes: a page.
pub(crate) const SMALLEST_CLASS: u32 = 12;
/// The largest block is 2^45 bytes.
pub(crate) const CLASSES: usize = 46;
/// Descriptors in table 0; table `k` has this many shifted left by `k`.
pub(crate) const FIRST_TABLE: u32 = 64;
/// Tables of descriptors: enough for 2^31 descriptors.
pub(crate) const TABLES: usize = 25;
/// Where table 0 lies.
pub(crate) const DESCRIPTORS_AT: u64 = 4096;
/// Where the watchers lie.
pub(crate) const WATCHERS_AT: u64 = 8192;
/// How many processes can wait by a descriptor for messages, and how many for room: one bit each in a word.
pub(crate) const WATCHERS: usize = 64;
/// Where the accounts lie, in a queue that has them.
pub(crate) const ACCOUNTS_AT: u64 = 12288;
/// A byte of an abandonable queue's file. Each process with the queue holds a shared lock on it,
/// unless that process itself waits for a message. The first two bytes of a named object's file are
/// locked for its name.
pub(crate) const PRESENT: u32 = 2;
/// The byte that is locked for handles on their way to another process.
pub(crate) const ON_ITS_WAY: u32 = 3;
/// How many bytes of a delivery those are shown who only look, at most.
pub const BEGINNING: u64 = 64;
/// How many processes' unfinished tasks are told apart.
pub(crate) const ACCOUNTS: usize = 512;

/// A place in the stream of messages: how many lie before it, and where in the rings it is. Both only grow
/// (and wrap at 2^32), and one store changes both: that store publishes a message, or frees its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cursor {
    /// Messages before this place.
    pub(crate) count: u32,
    /// Units of ring space before this place.
    pub(crate) position: u32,
}

impl Cursor {
    pub(crate) fn from_bits(bits: u64) -> Self {
        Cursor { count: (bits >> 32) as u32, position: bits as u32 }
    }

    pub(crate) fn to_bits(self) -> u64 {
        u64::from(self.count) << 32 | u64::from(self.position)
    }

    /// Messages from `earlier` to this place.
    pub(crate) fn messages_since(self, earlier: Cursor) -> u32 {
        self.count.wrapping_sub(earlier.count)
    }
}

/// A segment in use: its block, and the position at which its first byte lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) block: u32,
    pub(crate) base: u32,
}

impl Segment {
    pub(crate) fn from_bits(bits: u64) -> Self {
        Segment { block: (bits >> 32) as u32, base: bits as u32 }
    }

    pub(crate) fn to_bits(self) -> u64 {
        u64::from(self.block) << 32 | u64::from(self.base)
    }
}

/// The fixed part of a queue.
#[repr(C)]
pub(crate) struct Control {
    pub(crate) header: Header,
    pub(crate) settings: Settings,
    pub(crate) put: PutSide,
    pub(crate) get: GetSide,
    pub(crate) memory: Memory,
    pub(crate) waiting: Waiting,
}

const _: () = assert!(size_of::<Control>() <= DESCRIPTORS_AT as usize);

/// Written by the creator before the header is published, but for `shutdown` and `sweep_wanted`.
#[repr(C, align(128))]
pub(crate) struct Settings {
    /// The most messages at a time; 0 for no bound.
    pub(crate) max_messages: AtomicU32,
    /// 1 when unfinished tasks are counted, so that the queue has accounts.
    pub(crate) joinable: AtomicU32,
    /// The most bytes that rings and blocks may take.
    pub(crate) max_bytes: AtomicU64,
    /// Describes the creator's messages, for comparison when the queue is opened; 0 if the creator
    /// gave none. Written by the creator, as the first ones.
    pub(crate) shape: AtomicU64,
    /// 1 when each process that has the queue says so by a lock on its file ([`PRESENT`]).
    pub(crate) abandonable: AtomicU32,
    /// 0 open; 1 no more puts; 2 no more gets either. Only grows, under the put lock. Readers act on what
    /// they see; a process that dies right after the store leaves sleepers that find it within a slice.
    pub(crate) shutdown: AtomicU32,
    /// Not 0 when a sweep is wanted, which looks for blocks without an owner (`Ring::sweep`). A
    /// process that recovers a lock increments it. So does one that leaves a block to the sweep
    /// without a lock ([`BlockState::Unused`] and the like). A sweeper increments it under the get
    /// lock before it changes anything. It clears it at its end under all three locks, unless it
    /// was incremented meanwhile. So a sweep whose sweeper died is begun again, and so is one that
    /// may have passed a block before it was left.
    pub(crate) sweep_wanted: AtomicU32,
    /// 1 when puts wait for room in bytes as for room in messages. Written by the creator, as the
    /// first ones.
    pub(crate) waits_for_bytes: AtomicU32,
}

/// What producers share. `tail` has a line of its own: consumers read it.
#[repr(C, align(128))]
pub(crate) struct PutSide {
    /// Guards this struct and the unpublished space after `tail`.
    pub(crate) lock: Robust,
    /// The [`Segment`] that producers write to. Stored after its block is ready and the record that leads to
    /// it stands at `tail` in the segment before; a producer dying there leaves a queue whose next producer
    /// writes to the new segment at the same position.
    pub(crate) segment: AtomicU64,
    /// The first position of `segment` that is in use. A cache: how far consumers had come when a producer last
    /// looked. Never ahead of the truth; derived again after a death.
    pub(crate) in_use_from: AtomicU32,
    /// The count of `GetSide::head` when a producer last looked. A cache, as above.
    pub(crate) known_gets: AtomicU32,
    /// How many bytes of `segment`'s block have memory. A cache of the descriptor's word.
    pub(crate) reserved: AtomicU64,
    /// A bit for each of [`Watchers::messages`] whose pipe is to be made readable by the next message, before that is published.
    /// Set by the watcher, which has found no message; cleared by who has made the pipe readable. A death before the
    /// message makes it readable for nothing; one before the clearing leaves bits of pipes that are readable, so that who
    /// recovers the lock makes all of them readable and clears the bits.
    pub(crate) armed: AtomicU64,
    /// Keeps the tail off the words that only producers touch.
    pad: [u64; 4],
    /// The [`Cursor`] after the last published message. Its store with Release publishes messages: each
    /// record before it is whole. A producer that dies earlier has put nothing.
    pub(crate) tail: AtomicU64,
}

/// What consumers share. `head` has a line of its own: producers read it.
#[repr(C, align(128))]
pub(crate) struct GetSide {
    /// Guards this struct, the records from `head` on, and the accounts' `taken`.
    pub(crate) lock: Robust,
    /// The [`Segment`] that consumers read from. Stored when the record at `head` leads to the next one;
    /// `head` is at the same position in both, so a consumer dying in between harms nothing.
    pub(crate) segment: AtomicU64,
    /// `PutSide::tail` when a consumer last looked. A cache; derived again after a death.
    pub(crate) known_tail: AtomicU64,
    /// As [`PutSide::armed`], for [`Watchers::room`] and the next room.
    pub(crate) armed: AtomicU64,
    pad: [u64; 5],
    /// The [`Cursor`] of the next message. Its store with Release takes messages: the place of what lies
    /// before may be written again. A consumer that dies earlier has taken nothing.
    pub(crate) head: AtomicU64,
}

/// Blocks and their descriptors.
#[repr(C, align(128))]
pub(crate) struct Memory {
    /// Guards this struct and the descriptors' way from and to [`BlockState::Free`].
    pub(crate) lock: Robust,
    /// Where the next new block may begin. Grows before the block is described, so that a death in
    /// between loses addresses of the file, not memory.
    pub(crate) end: AtomicU64,
    /// Descriptors that exist. Grows when one is whole.
    pub(crate) descriptors: AtomicU32,
    /// Bytes reserved for blocks of any state. Derived again after a death.
    pub(crate) used: AtomicU64,
    /// Bytes reserved for free blocks, kept for the next message. Derived again after a death.
    pub(crate) cached: AtomicU64,
    /// Deliveries not acknowledged: blocks in the states `Held`, `HeldCopy`, `Returned` and `Owed`. Derived again after a death.
    pub(crate) held: AtomicU64,
    /// Of these, the ones to be handed out again. Stored before the state `Returned` of the one that is added: who dies in
    /// between leaves one too many, and the memory lock, which brings a consumer to mend both. Derived again after a death.
    pub(crate) returned: AtomicU64,
    /// Of the held ones, those in the state `Owed`. Derived again after a death.
    pub(crate) owed: AtomicU64,
    /// When somebody last looked whether holders of deliveries live, in ms of the monotonic clock. Whoever moves it
    /// looks; dying then costs one interval.
    pub(crate) last_look: AtomicU64,
    /// A stack of free blocks for each size 2^class: the top's number plus 1, or 0. Derived again after a death.
    pub(crate) free: [AtomicU32; CLASSES],
    /// File offsets of the descriptor tables, 0 for none yet. Stored once each, before `descriptors` grows into it.
    pub(crate) tables: [AtomicU64; TABLES],
}

/// Where processes sleep.
#[repr(C, align(128))]
pub(crate) struct Waiting {
    /// Consumers, until there is a message.
    pub(crate) not_empty: WaitQueue,
    /// Producers, until there is room in the ring, for a message that lies there or its block's
    /// number.
    pub(crate) not_full: WaitQueue,
    /// Producers, until there is memory for the block of a message. Only where puts wait for bytes.
    pub(crate) bytes_free: WaitQueue,
    /// Those who wait for all tasks to be done.
    pub(crate) all_done: WaitQueue,
}

/// The processes that wait for the queue by descriptors.
#[repr(C)]
pub(crate) struct Watchers {
    /// Until there is a message. Guarded by the put lock.
    pub(crate) messages: [Watcher; WATCHERS],
    /// Until there is room. Guarded by the get lock.
    pub(crate) room: [Watcher; WATCHERS],
}

const _: () = assert!(WATCHERS_AT + size_of::<Watchers>() as u64 <= ACCOUNTS_AT);

/// A process that waits by a descriptor, and the pipe behind that.
#[repr(C)]
pub(crate) struct Watcher {
    /// Whose pipe it is, or 0. Stored by the watcher after the other words, in the place of 0 or of a dead process, whose bit
    /// in `armed` is cleared first. 0 again when the watcher has closed its handle, which takes no lock, or when somebody finds that there
    /// is no such pipe. A watcher that dies leaves a pipe that nobody reads, or that cannot be opened any more.
    pub(crate) owner: AtomicU64,
    /// The pipe's inode, by which whoever opens it makes sure that it is the one.
    pub(crate) inode: AtomicU64,
    /// The number of the pipe among the owner's descriptors.
    pub(crate) descriptor: AtomicU32,
    pad: u32,
}

/// What a block is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum BlockState {
    /// For nothing.
    Free = 0,
    /// A producer fills it. Goes with the producer.
    Writing = 1,
    /// A message in the ring, when its `seq` is before the tail; otherwise its producer is about to store the tail, under
    /// the put lock, or died before: then who recovers that lock frees the block.
    Queued = 2,
    /// A message that a consumer reads where it lies. Goes with the consumer. When its `seq` is not before the head, the
    /// consumer is about to store the head, under the get lock, or died before: then who recovers that lock makes it `Queued`.
    Taken = 3,
    /// A delivery to be acknowledged. Handed out again when the consumer dies; otherwise as `Taken`.
    Held = 4,
    /// As `Held`, of a message that lay in the ring itself: a copy until the head has passed it, freed by who recovers the
    /// get lock if its consumer died before.
    HeldCopy = 5,
    /// A delivery whose consumer died, of whom it keeps the identity, or gave it back.
    Returned = 6,
    /// As `Held`, but not to be handed out again: its consumer took the message for good and owes a `task_done`. The
    /// debt of a dead consumer stays until somebody waiting for all tasks was told.
    Owed = 8,
    /// Without an owner: the last one found that the memory lock's holder made no progress, and
    /// left the block to the next sweep. The owner stores this state without a lock, and asks for a
    /// sweep before and after the store. The first request covers its death in between, the second
    /// a sweep that had passed the block.
    Unused = 9,
    /// A segment of the ring, when the chain from `GetSide::segment` to `PutSide::segment` has it.
    Segment = 7,
}

/// One block. 64 bytes, found by number.
#[repr(C, align(64))]
#[derive(Default)]
pub(crate) struct Descriptor {
    /// A [`BlockState`] above, the [`Identity`] it concerns below. One store moves a block from owner to owner.
    state: AtomicU64,
    /// The message's place in the stream (its cursor's count). Stored before the state that it belongs to.
    pub(crate) seq: AtomicU32,
    /// The next free block's number plus 1, or 0, while free. Guarded by the memory lock.
    pub(crate) next_free: AtomicU32,
    /// The message's length in bytes. Stored before the state.
    pub(crate) len: AtomicU64,
    /// Where the block lies in the file. Stored once, before the descriptor counts.
    pub(crate) offset: AtomicU64,
    /// The block's size is 2^class. Stored once, as above.
    pub(crate) class: AtomicU32,
    /// How often the delivery in the block was left or given back. Stored before the state `Returned`; a death in between
    /// counts it once too often.
    pub(crate) attempts: AtomicU32,
    /// How many of its bytes, from the first, have memory set aside. Stored by who has the block, after it has paid
    /// for them (`charged`) and then got them.
    pub(crate) reserved: AtomicU64,
    /// How many of its bytes count in `Memory::used`: at least `reserved`, more while its owner asks for memory or gives
    /// it back, or when the owner died over that. Guarded by the memory lock.
    pub(crate) charged: AtomicU64,
    /// The segment that follows this one, plus 1, or 0. Written by the producer that grows the ring.
    pub(crate) successor: AtomicU32,
    pad_end: u32,
}

impl Descriptor {
    /// The state, and whom it concerns. `None` for bits that mean nothing.
    pub(crate) fn state(&self) -> Option<(BlockState, Option<Identity>)> {
        use BlockState::{Free, Held, HeldCopy, Owed, Queued, Returned, Segment, Taken, Unused, Writing};
        let bits = self.state.load(Ordering::Acquire);
        let state = [Free, Writing, Queued, Taken, Held, HeldCopy, Returned, Segment, Owed, Unused]
            .into_iter()
            .find(|state| *state as u64 == bits >> Identity::BITS)?;
        Some((state, Identity::from_bits(bits & ((1 << Identity::BITS) - 1))))
    }

    /// Publishes a state and all that was stored in the descriptor and block before.
    pub(crate) fn set_state(&self, state: BlockState, owner: Option<Identity>) {
        let owner = owner.map_or(0, Identity::to_bits);
        self.state.store((state as u64) << Identity::BITS | owner, Ordering::Release);
    }
}

/// What one process has taken from the queue and not declared done, of the messages taken without a delivery.
#[repr(C)]
#[derive(Default)]
pub(crate) struct Account {
    /// Whose account, or 0. Taken over from a dead process under the get lock, after `lost` was stored.
    pub(crate) owner: AtomicU64,
    /// Above, how many the process took; below, what tells whether the last one counts: the head's count that
    /// the take was to publish. Stored before the head is, so a consumer that dies in between is found out by
    /// a head that has not come so far. Guarded by the get lock.
    pub(crate) taken: AtomicU64,
    /// How many it declared done; may be ahead of `taken`, since any process may declare any task
    /// done. Incremented under the memory lock. Where that lock's holder makes no progress, the
    /// account's owner increments it without the lock, up to `taken`.
    pub(crate) done: AtomicU64,
    /// Of `taken` less `done`, the debt of dead earlier owners of this account. Stored under the get lock.
    pub(crate) lost: AtomicU64,
}

/// What a record in the ring is: the first 8 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    /// A message of so many bytes follows.
    Inline(u32),
    /// A message lies in a block; its number follows.
    Block,
    /// Nothing up to the segment's end.
    Pad,
    /// The stream goes on in another segment; its [`Segment`] follows.
    Link,
}

impl Record {
    pub(crate) fn to_bits(self) -> u64 {
        match self {
            Record::Inline(len) => 1 << 32 | u64::from(len),
            Record::Block => 2 << 32,
            Record::Pad => 3 << 32,
            Record::Link => 4 << 32,
        }
    }

    pub(crate) fn from_bits(bits: u64) -> Option<Self> {
        match (bits >> 32, bits as u32) {
            (1, len) => Some(Record::Inline(len)),
            (2, 0) => Some(Record::Block),
            (3, 0) => Some(Record::Pad),
            (4, 0) => Some(Record::Link),
            _ => None,
        }
    }
}

/// Units that a record with `len` bytes after its header takes.
pub(crate) fn units(len: usize) -> u32 {
    ((len as u64 + RECORD_HEADER).div_ceil(UNIT)) as u32
}
