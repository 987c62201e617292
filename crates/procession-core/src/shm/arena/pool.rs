//! Which slots of this process's own chunks are free. Private to the process; see [`super`].

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use procession_sys::memory;

use super::{CHUNKS, Chunk, HEAD, Identity, SLOT_ALIGN, Slot, SlotKind, fork};
use crate::shm::{CreateError, Kind};

const FIRST_CHUNK: usize = 64 << 10;
const LARGEST_CHUNK: usize = 1 << 20;

/// Where a slot came from.
#[derive(Debug)]
pub(super) struct Origin {
    /// Who made it: a forked child that drops its copy of the handle must not touch the pool.
    maker: Identity,
    chunk: u64,
    /// [`fork::count`] when it was made.
    forks: u64,
}

/// The chunks that this process puts slots into, by number. Used only with the fork gate held.
static POOL: Mutex<Option<Pool>> = Mutex::new(None);

#[derive(Debug)]
struct Pool {
    /// Whose pool: a forked child finds its parent's and begins anew.
    process: Identity,
    chunks: HashMap<u64, Own>,
    /// (size in units, chunk number) of all free lists that are not empty.
    free: BTreeSet<(u32, u64)>,
    /// The chunk that new slots are cut from: the last number given, if there is a chunk of that number.
    current: u64,
    next_size: usize,
    nonce: u64,
}

#[derive(Debug)]
struct Own {
    chunk: Arc<Chunk>,
    /// Where the next slot is cut off.
    next: usize,
    /// Slots that this process still has.
    live: u32,
    /// Offsets of slots to be used again, by size in units.
    free: BTreeMap<u32, Vec<u32>>,
}

/// A slot of that size, zeroed, with a new tag that is not yet published.
pub(super) fn allocate(kind: SlotKind, units: u32) -> Result<Slot, CreateError> {
    let bytes = units as usize * SLOT_ALIGN;
    fork::watch().map_err(CreateError::system(Kind::Arena, "preparing for forks"))?;
    let me = Identity::current();
    let alone = if bytes > LARGEST_CHUNK / 4 { Some(create_for_one(bytes)?) } else { None };

    let _gate = fork::gate();
    let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    if pool.as_ref().is_some_and(|pool| pool.process != me) {
        *pool = None;
    }
    let pool = pool.get_or_insert_with(|| Pool::new(me));
    let tag = pool.tag(kind);
    if let Some(chunk) = alone {
        CHUNKS.insert(chunk.id, &chunk);
        return Ok(Slot { chunk, offset: HEAD as u32, units, tag, sent: false.into(), origin: None });
    }
    let (number, offset, used_before) = match pool.take_free(units) {
        Some((number, offset)) => (number, offset, true),
        None => {
            let (number, offset) = pool.cut(bytes)?;
            (number, offset, false)
        }
    };
    let chunk = {
        let own = pool.chunks.get_mut(&number).expect("a chunk of the pool");
        own.live += 1;
        own.chunk.clone()
    };
    let origin = Some(Origin { maker: me, chunk: number, forks: fork::count() });
    let slot = Slot { chunk, offset, units, tag, sent: false.into(), origin };
    if used_before {
        // SAFETY: the slot lies inside the mapping and nobody else knows it: it was never sent, its last handle is
        // gone, and no fork copied that handle.
        unsafe { slot.start().write_bytes(0, bytes) };
    }
    Ok(slot)
}

/// Takes a slot back whose last handle in this process is gone.
pub(super) fn give_back(origin: Origin, slot: &Slot, known_elsewhere: bool) {
    if origin.maker != Identity::current() {
        return;
    }
    let _gate = fork::gate();
    let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(pool) = pool.as_mut() else { return };
    let Some(own) = pool.chunks.get_mut(&origin.chunk) else { return };
    own.live -= 1;
    if !known_elsewhere && origin.forks == fork::count() {
        slot.head().tag.store(0, std::sync::atomic::Ordering::Release);
        own.free.entry(slot.units).or_default().push(slot.offset);
        pool.free.insert((slot.units, origin.chunk));
    }
    pool.release_if_unused(origin.chunk);
}

fn create_for_one(bytes: usize) -> Result<Arc<Chunk>, CreateError> {
    Chunk::create((HEAD + bytes).next_multiple_of(memory::page_size()))
}

impl Pool {
    fn new(process: Identity) -> Self {
        let random = crate::shm::ObjectId::random().to_bytes();
        Pool {
            process,
            chunks: HashMap::new(),
            free: BTreeSet::new(),
            current: 0,
            next_size: FIRST_CHUNK,
            nonce: u64::from_le_bytes(std::array::from_fn(|i| random[i])),
        }
    }

    /// A tag that no other slot of this process has (the numbers repeat after 2^56).
    fn tag(&mut self, kind: SlotKind) -> u64 {
        // An odd step visits every number once; this one spreads them over all bits.
        self.nonce = self.nonce.wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.nonce << 8 | kind as u64
    }

    fn take_free(&mut self, units: u32) -> Option<(u64, u32)> {
        let &(_, number) = self.free.range((units, 0)..=(units, u64::MAX)).next()?;
        let own = self.chunks.get_mut(&number)?;
        let list = own.free.get_mut(&units)?;
        let offset = list.pop()?;
        if list.is_empty() {
            own.free.remove(&units);
            self.free.remove(&(units, number));
        }
        Some((number, offset))
    }

    /// Cuts a new slot off the current chunk, or off a new one when that is full.
    fn cut(&mut self, bytes: usize) -> Result<(u64, u32), CreateError> {
        if let Some(own) = self.chunks.get_mut(&self.current)
            && own.next + bytes <= own.chunk.mapping.len()
        {
            let offset = own.next as u32;
            own.next += bytes;
            return Ok((self.current, offset));
        }
        let size = self.next_size.max((bytes * 4).next_power_of_two()).min(LARGEST_CHUNK);
        let chunk = Chunk::create(size)?;
        CHUNKS.insert(chunk.id, &chunk);
        self.next_size = (size * 2).min(LARGEST_CHUNK);
        let previous = self.current;
        self.current += 1;
        self.release_if_unused(previous);
        let own = Own { chunk, next: HEAD + bytes, live: 0, free: BTreeMap::new() };
        self.chunks.insert(self.current, own);
        Ok((self.current, HEAD as u32))
    }

    /// Lets go of a chunk that no slot of this process lies in, unless the next one will.
    fn release_if_unused(&mut self, number: u64) {
        if number == self.current || self.chunks.get(&number).is_none_or(|own| own.live > 0) {
            return;
        }
        if let Some(own) = self.chunks.remove(&number) {
            for units in own.free.keys() {
                self.free.remove(&(*units, number));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_carry_their_kind_and_differ() {
        let mut pool = Pool::new(Identity::current());
        let tags: BTreeSet<u64> = (0..1000).map(|_| pool.tag(SlotKind::Event)).collect();
        assert_eq!(tags.len(), 1000);
        assert!(tags.iter().all(|tag| *tag as u8 == SlotKind::Event as u8));
    }
}
