//! Blocks of memory, their stack, and what finds those that the dead have: for `crate::delivery`, which puts messages into them.
//!
//! | here | in `procession-core/src/ring` |
//! | --- | --- |
//! | `lock` | `recovery.rs`: `lock_get` with `recover_get`, `lock_put` with `recover_put` (whose caches `crate::ring` has), `lock_memory` |
//! | `undo_charges` | `accounts.rs`: `undo_charges` |
//! | `free_unpublished`, `undo_takes` | `recovery.rs`: the methods of these names |
//! | `allocate` | `blocks.rs`: `allocate_reserved`, `pop_free`, `carve` |
//! | `free`, `free_locked` | `blocks.rs`: `free`, `free_locked`, `push_free` |
//! | `mend` | `queue/mod.rs`: `Shared::mend`, with `sweep_if_wanted` |
//! | `sweep` | `recovery.rs`: `sweep`, `sweep_under`, all states but `Segment` |
//! | `rebuild` | `blocks.rs`: `rebuild`, without the sums of bytes |
//!
//! Left out: sizes of blocks (all are of one class), what they count for against `max_bytes`, and giving memory back.

use crate::delivery::{Mutant, Tasks};
use crate::machine::{Answer, Memory, Step, Words};

/// `BlockState`, and whose a block is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum BlockState {
    /// For nothing.
    #[default]
    Free,
    /// A producer fills it, or a consumer its copy.
    Writing(u8),
    /// In the ring.
    Queued,
    /// A consumer reads it.
    Taken(u8),
    /// A delivery.
    Held(u8),
    /// A delivery of a message that lay in the ring.
    HeldCopy(u8),
    /// A delivery to be handed out again.
    Returned,
    /// Taken for good, not declared done.
    Owed(u8),
}

/// A descriptor, and the two words of the message in its block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Block {
    pub(crate) state: BlockState,
    pub(crate) seq: u8,
    pub(crate) next_free: u8,
    pub(crate) words: (u8, u8),
}

/// What a process took for good and declared done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Account {
    pub(crate) owner: u8,
    /// How many, and the head's count that the last one was to publish.
    pub(crate) taken: (u8, u8),
    pub(crate) done: u8,
    pub(crate) lost: u8,
}

/// The words of `GetSide`, `PutSide`, `Memory` and the rest, and notes on each message.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Queue {
    /// In the order in which they are taken: get, put, memory.
    pub(crate) locks: [u8; 3],
    pub(crate) sweep_wanted: bool,
    pub(crate) head: u8,
    pub(crate) tail: u8,
    /// A record each: a message, or a block's number after [`IN_BLOCK`].
    pub(crate) records: Vec<u8>,
    pub(crate) descriptors: u8,
    pub(crate) blocks: [Block; BLOCKS as usize],
    pub(crate) free: u8,
    pub(crate) held: u8,
    pub(crate) returned: u8,
    pub(crate) owed: u8,
    pub(crate) accounts: Vec<Account>,
    /// Noted: what became of each message.
    pub(crate) fates: Vec<Fate>,
    /// Noted: the joiner has seen no unfinished task since it began to look.
    pub(crate) was_done: bool,
}

/// What became of a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Fate {
    /// Its tail was stored.
    pub(crate) published: bool,
    /// Its put returned.
    pub(crate) put: bool,
    /// How often a get returned with it.
    pub(crate) gets: u8,
    /// Who took it for good.
    pub(crate) taken: u8,
    /// It was declared done, or reported as lost.
    pub(crate) done: bool,
}

/// The most blocks.
pub const BLOCKS: u8 = 5;
/// A record above this is a block's number.
pub const IN_BLOCK: u8 = 16;
/// Which lock.
pub(crate) const GET: usize = 0;
pub(crate) const PUT: usize = 1;
pub(crate) const MEMORY: usize = 2;

pub(crate) type Mem<'a> = Memory<'a, Tasks>;

impl Answer for BlockState {
    fn to_bits(&self) -> u32 {
        let (state, owner) = match *self {
            BlockState::Free => (0, 0),
            BlockState::Writing(owner) => (1, owner),
            BlockState::Queued => (2, 0),
            BlockState::Taken(owner) => (3, owner),
            BlockState::Held(owner) => (4, owner),
            BlockState::HeldCopy(owner) => (5, owner),
            BlockState::Returned => (6, 0),
            BlockState::Owed(owner) => (8, owner),
        };
        state << 8 | u32::from(owner)
    }

    fn from_bits(bits: u32) -> Self {
        let owner = bits as u8;
        match bits >> 8 {
            0 => BlockState::Free,
            1 => BlockState::Writing(owner),
            2 => BlockState::Queued,
            3 => BlockState::Taken(owner),
            4 => BlockState::Held(owner),
            5 => BlockState::HeldCopy(owner),
            6 => BlockState::Returned,
            _ => BlockState::Owed(owner),
        }
    }
}

impl Queue {
    /// Whether each block that is marked as queued is the one of a message in the ring.
    pub(crate) fn queued_blocks_are_in_the_ring(&self) -> bool {
        (0..self.descriptors)
            .filter(|block| self.blocks[usize::from(*block)].state == BlockState::Queued)
            .all(|block| {
                let seq = self.blocks[usize::from(block)].seq;
                self.is_queued(block) && self.records[usize::from(seq)] == IN_BLOCK + block
            })
    }

    pub(crate) fn block(&mut self, block: u8) -> &mut Block {
        &mut self.blocks[usize::from(block)]
    }

    fn is_queued(&self, block: u8) -> bool {
        (self.head..self.tail).contains(&self.blocks[usize::from(block)].seq)
    }

    /// Notes what has changed about unfinished tasks.
    pub(crate) fn note(&mut self) {
        self.was_done |= self.fates.iter().all(|fate| !fate.published || fate.done);
    }

    pub(crate) fn fate(&mut self, message: u8) -> &mut Fate {
        &mut self.fates[usize::from(message) - 1]
    }

    /// Frees a block, and scrambles what was in it.
    fn make_free(&mut self, block: u8) {
        self.block(block).state = BlockState::Free;
        self.block(block).words = (0, 0);
    }
}

pub(crate) fn lock(tasks: &Tasks, m: &mut Mem<'_>, lock: usize) -> Step<()> {
    let me = m.me();
    let labels = ["takes the get lock", "takes the put lock", "takes the memory lock"];
    let recovered = m.step_when(
        labels[lock],
        |w| w.locks[lock] == 0 || !w.is_alive(w.locks[lock]),
        |w| std::mem::replace(&mut w.locks[lock], me) != 0,
    )?;
    if !recovered {
        return Ok(());
    }
    m.step("asks for a sweep", |w| w.sweep_wanted = true)?;
    if lock == PUT && !tasks.is(Mutant::UnpublishedKept) {
        free_unpublished(tasks, m)?;
    }
    if lock == GET {
        if !tasks.is(Mutant::ChargeNotUndone) {
            undo_charges(m)?;
        }
        if !tasks.is(Mutant::TakesNotUndone) {
            undo_takes(tasks, m)?;
        }
    }
    if lock == MEMORY && !tasks.is(Mutant::NotRebuilt) { rebuild(m) } else { Ok(()) }
}

pub(crate) fn unlock(m: &mut Mem<'_>, lock: usize) -> Step<()> {
    let labels = ["releases the get lock", "releases the put lock", "releases the memory lock"];
    m.step(labels[lock], |w| w.locks[lock] = 0)
}

fn undo_charges(m: &mut Mem<'_>) -> Step<()> {
    for account in 0..m.guarded(|w| w.accounts.len() as u8) {
        let account = usize::from(account);
        let next = m.guarded(|w| w.head) + 1;
        let (taken, count) = m.guarded(|w| w.accounts[account].taken);
        if count == next {
            m.step("takes back a charge", |w| w.accounts[account].taken = (taken - 1, 0))?;
        }
    }
    Ok(())
}

/// Under the put lock.
fn free_unpublished(tasks: &Tasks, m: &mut Mem<'_>) -> Step<()> {
    let tail = m.guarded(|w| w.tail);
    for block in 0..m.step("looks how many blocks there are", |w| w.descriptors)? {
        let seq = m.step("looks at a block's seq", |w| w.blocks[usize::from(block)].seq)?;
        let queued = |w: &mut Words<Queue>| w.blocks[usize::from(block)].state == BlockState::Queued;
        if seq >= tail && m.step("looks whether a block is queued", queued)? {
            free(tasks, m, block)?;
        }
    }
    Ok(())
}

fn undo_takes(tasks: &Tasks, m: &mut Mem<'_>) -> Step<()> {
    self::lock(tasks, m, MEMORY)?;
    for block in 0..m.guarded(|w| w.descriptors) {
        let state = m.guarded(|w| w.blocks[usize::from(block)].state);
        let queued = m.guarded(|w| w.is_queued(block));
        let (BlockState::Taken(owner) | BlockState::Held(owner) | BlockState::HeldCopy(owner)) = state else {
            continue;
        };
        if queued && m.step("looks whether a block's owner lives", |w| !w.is_alive(owner))? {
            m.step("puts a block back that was not taken after all", |w| match state {
                BlockState::HeldCopy(_) => w.make_free(block),
                _ => w.block(block).state = BlockState::Queued,
            })?;
        }
    }
    rebuild(m)?;
    unlock(m, MEMORY)
}

/// A block in the state `Writing` of this process.
pub(crate) fn allocate(tasks: &Tasks, m: &mut Mem<'_>) -> Step<u8> {
    let me = m.me();
    lock(tasks, m, MEMORY)?;
    let top = m.guarded(|w| w.free);
    let block = if let Some(block) = top.checked_sub(1) {
        m.step("marks the top free block as its own", |w| {
            let free = w.block(block).state == BlockState::Free;
            w.must(free, "the stack of free blocks has one that is not free");
            w.block(block).state = BlockState::Writing(me);
        })?;
        let next = m.guarded(|w| w.blocks[usize::from(block)].next_free);
        m.step("takes it from the stack", |w| w.free = next)?;
        block
    } else {
        let block = m.guarded(|w| w.descriptors);
        m.step("describes a new block as its own", |w| {
            w.must(block < BLOCKS, "blocks are lost");
            w.block(block.min(BLOCKS - 1)).state = BlockState::Writing(me);
        })?;
        m.step("counts the new block", |w| w.descriptors = block + 1)?;
        block
    };
    unlock(m, MEMORY)?;
    Ok(block)
}

pub(crate) fn free(tasks: &Tasks, m: &mut Mem<'_>, block: u8) -> Step<()> {
    lock(tasks, m, MEMORY)?;
    free_locked(m, block, |_| ())?;
    unlock(m, MEMORY)
}

/// With the memory lock held. `note` is told when the block is free.
pub(crate) fn free_locked(m: &mut Mem<'_>, block: u8, note: impl FnOnce(&mut Words<Queue>)) -> Step<()> {
    m.step("frees a block", |w| {
        let free = w.block(block).state == BlockState::Free;
        w.must(!free, "a block was freed twice");
        note(w);
        w.make_free(block);
    })?;
    push_free(m, block)
}

fn push_free(m: &mut Mem<'_>, block: u8) -> Step<()> {
    let top = m.guarded(|w| w.free);
    m.step("notes the next free block", |w| w.block(block).next_free = top)?;
    m.step("puts it on the stack", |w| w.free = block + 1)
}

pub(crate) fn mend(tasks: &Tasks, m: &mut Mem<'_>) -> Step<()> {
    if !m.step("looks whether a sweep is wanted", |w| w.sweep_wanted)? {
        return Ok(());
    }
    lock(tasks, m, GET)?;
    if m.step("looks whether it is wanted still", |w| w.sweep_wanted)? {
        sweep_under(tasks, m)
    } else {
        unlock(m, GET)
    }
}

pub(crate) fn sweep(tasks: &Tasks, m: &mut Mem<'_>) -> Step<()> {
    lock(tasks, m, GET)?;
    sweep_under(tasks, m)
}

/// With the get lock, which it releases.
fn sweep_under(tasks: &Tasks, m: &mut Mem<'_>) -> Step<()> {
    if !tasks.is(Mutant::SweepNotAnnounced) {
        m.step("asks for a sweep, should it die over its own", |w| w.sweep_wanted = true)?;
    }
    for each in [PUT, MEMORY] {
        lock(tasks, m, each)?;
    }
    for block in 0..m.guarded(|w| w.descriptors) {
        let state = m.guarded(|w| w.blocks[usize::from(block)].state);
        let queued = m.guarded(|w| w.is_queued(block));
        let owner = match state {
            BlockState::Writing(owner) | BlockState::Taken(owner) => owner,
            BlockState::Held(owner) | BlockState::HeldCopy(owner) => owner,
            _ => 0,
        };
        let dead = owner != 0 && m.step("looks whether a block's owner lives", |w| !w.is_alive(owner))?;
        let unused = match state {
            BlockState::Writing(_) => dead,
            BlockState::Queued => !queued,
            BlockState::HeldCopy(_) if queued && dead => true,
            BlockState::Taken(_) | BlockState::Held(_) if queued && dead => {
                m.step("puts a block back that was not taken after all", |w| {
                    w.block(block).state = BlockState::Queued;
                })?;
                false
            }
            BlockState::Taken(_) => dead,
            BlockState::Held(_) | BlockState::HeldCopy(_) if dead => {
                m.step("marks a delivery as one to be handed out again", |w| {
                    w.block(block).state = BlockState::Returned;
                })?;
                false
            }
            _ => false,
        };
        if unused {
            m.step("frees a block that nobody has", |w| w.make_free(block))?;
        }
    }
    rebuild(m)?;
    m.step("notes that it has swept", |w| w.sweep_wanted = false)?;
    for each in [MEMORY, PUT, GET] {
        unlock(m, each)?;
    }
    Ok(())
}

fn rebuild(m: &mut Mem<'_>) -> Step<()> {
    m.step("clears the stack of free blocks", |w| w.free = 0)?;
    let (mut held, mut returned, mut owed) = (0, 0, 0);
    for block in (0..m.guarded(|w| w.descriptors)).rev() {
        match m.guarded(|w| w.blocks[usize::from(block)].state) {
            BlockState::Free => push_free(m, block)?,
            BlockState::Held(_) | BlockState::HeldCopy(_) => held += 1,
            BlockState::Returned => returned += 1,
            BlockState::Owed(_) => owed += 1,
            BlockState::Writing(_) | BlockState::Queued | BlockState::Taken(_) => {}
        }
    }
    m.step("derives the sum of held deliveries", |w| w.held = held + returned + owed)?;
    m.step("derives the sum of returned deliveries", |w| w.returned = returned)?;
    m.step("derives the sum of owed deliveries", |w| w.owed = owed)
}
