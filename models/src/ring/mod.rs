//! The ring: two sides with a lock each, a tail and a head that publish, pads, growth to another segment and back.
//!
//! | here | in `procession-core/src` |
//! | --- | --- |
//! | `Ring::lock` | `ring/locks.rs`: `lock_put`, `lock_get`, `lock_memory`; `ring/recovery.rs`: `recover_put`, `recover_get`; the lock itself is one step, which `crate::wait` takes apart |
//! | `Ring::sweep` | `ring/recovery.rs`: `Ring::sweep`, `segments_in_use`, as far as they concern segments |
//! | `Ring::put` | `queue/put.rs`: `Shared::try_put` with one message, `put_batch` with several |
//! | `Put::push`, `room`, `fits`, `look_at_consumers`, `may_hold_one_more` | `ring/put.rs`: the methods of `PutSession` of these names |
//! | `Put::publish` | `PutSession::publish`: the store of `tail` |
//! | `Put::grow`, `Put::enter` | `PutSession::grow`, `shrink` and `enter`, store by store |
//! | `Ring::get` | `queue/get.rs`: `Shared::try_get` |
//! | `Get::next`, `find_record`, `enter`, `shrink` | `ring/get.rs`: the methods of `GetSession` of these names |
//! | `Ring::allocate`, `Ring::free` | `ring/blocks.rs`: `allocate_reserved` and `free`: the change of the block's state under the memory lock |
//!
//! Positions and counts begin just below where they wrap. A segment has 4 units or 8, a message takes one or two. What was
//! freed or taken is scrambled at once, so that whoever still reads it is found out.
//!
//! Left out: the order in which other processors see stores (`crate::wait` and the tests of memory orders); reserving memory, which
//! may fail before anything is published; stacks of free blocks and large messages (`crate::blocks`); the wait of a producer for
//! consumers to make room in a large ring; sleeping (`crate::wait`): who waits for a message or for room goes on when it is there.

mod consumer;
mod producer;

use self::consumer::Get;
use self::producer::Put;
use crate::machine::{Memory, Protocol, Step, Words};

/// What is done wrong on purpose, to see that it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// The tail is stored before the record is written.
    TailBeforeRecord,
    /// Nobody takes a lock from the dead.
    NoOwnerRecovery,
    /// A consumer frees the old segment before it has left it.
    FreeBeforeLeaving,
    /// Producers are led into the new segment before the record that leads consumers there is written.
    SegmentBeforeLink,
    /// No unit is left free for that record.
    NoRoomForLink,
    /// A batch is not published before the ring grows.
    GrowWithoutPublishing,
    /// The head is stored before the record is read.
    HeadBeforeRead,
    /// The new block is marked as a segment after producers were led into it.
    MarkedTooLate,
    /// A producer takes consumers to be further than it has seen.
    KnownGetsAhead,
}

/// Producers and consumers of one queue.
#[derive(Clone, Debug)]
pub struct Ring {
    /// For each producer its puts, each a batch of messages, of which the units are given.
    pub producers: Vec<Vec<Vec<u8>>>,
    /// How many consumers, each taking whatever comes.
    pub consumers: usize,
    /// The most messages at a time; 0 for no bound.
    pub bound: u8,
    /// What is done wrong.
    pub mutant: Option<Mutant>,
}

/// Units of each block.
const UNITS: [u8; 4] = [4, 4, 8, 8];
/// A drained segment of more units is given back.
const KEPT: u8 = 4;
const FIRST: u8 = 253;

const SCRAMBLED: u8 = 0;
/// 1 and 2: a message of so many units. Its number stands in the argument, and in the unit that follows.
const PAD: u8 = 3;
const LINK: u8 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum BlockState {
    Free,
    Writing(u8),
    Segment,
}

type Cursor = (u8, u8);

/// The control words, blocks and records, and what was put and got.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Control {
    put_lock: u8,
    get_lock: u8,
    memory_lock: u8,
    sweep_wanted: bool,
    put_segment: (u8, u8),
    in_use_from: u8,
    known_gets: u8,
    tail: Cursor,
    get_segment: (u8, u8),
    known_tail: Cursor,
    head: Cursor,
    states: [BlockState; 4],
    successors: [u8; 4],
    /// Header and argument of each unit.
    units: [[(u8, (u8, u8)); 8]; 4],
    /// Noted: published and not taken, in order.
    queued: Vec<u8>,
    /// Noted: whose put has returned, and whose get; a bit for each message.
    put: u32,
    got: u32,
    /// Noted: taken by a get that has not returned, for each process.
    in_hand: Vec<u8>,
}

/// Where a process is between two calls.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum At {
    /// Before a put; puts and messages of the current one that have returned.
    Put(u8, u8),
    /// The queue was full.
    WaitForRoom(u8, u8),
    /// Before a get.
    Get,
    /// The queue was empty.
    WaitForMessage,
}

type Mem<'a> = Memory<'a, Ring>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lock {
    Put,
    Get,
    Memory,
}

impl Control {
    fn lock(&mut self, lock: Lock) -> &mut u8 {
        match lock {
            Lock::Put => &mut self.put_lock,
            Lock::Get => &mut self.get_lock,
            Lock::Memory => &mut self.memory_lock,
        }
    }

    fn holder(&self, lock: Lock) -> u8 {
        match lock {
            Lock::Put => self.put_lock,
            Lock::Get => self.get_lock,
            Lock::Memory => self.memory_lock,
        }
    }
}

impl Ring {
    fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    fn lock(&self, m: &mut Mem<'_>, lock: Lock) -> Step<()> {
        let me = m.me();
        let stays = self.is(Mutant::NoOwnerRecovery);
        let recovered = m.step_when(
            match lock {
                Lock::Put => "takes the put lock",
                Lock::Get => "takes the get lock",
                Lock::Memory => "takes the memory lock",
            },
            |w| w.holder(lock) == 0 || !stays && !w.is_alive(w.holder(lock)),
            |w| std::mem::replace(w.lock(lock), me) != 0,
        )?;
        if !recovered {
            return Ok(());
        }
        match lock {
            Lock::Put => {
                m.step("asks for a sweep", |w| w.sweep_wanted = true)?;
                let segment = m.guarded(|w| w.put_segment);
                let entered = m.step("looks at the consumers' segment", |w| w.get_segment == segment)?;
                let head = m.step("looks at the head", |w| w.head)?;
                let from = if entered { head.1 } else { segment.1 };
                m.step("derives in_use_from again", |w| w.in_use_from = from)?;
                m.step("derives known_gets again", |w| w.known_gets = head.0)
            }
            Lock::Get => {
                m.step("derives known_tail again", |w| w.known_tail = w.head)?;
                m.step("asks for a sweep", |w| w.sweep_wanted = true)
            }
            Lock::Memory => m.step("asks for a sweep", |w| w.sweep_wanted = true),
        }
    }

    fn unlock(&self, m: &mut Mem<'_>, lock: Lock) -> Step<()> {
        let label = match lock {
            Lock::Put => "releases the put lock",
            Lock::Get => "releases the get lock",
            Lock::Memory => "releases the memory lock",
        };
        m.step(label, |w| *w.lock(lock) = 0)
    }

    fn allocate(&self, m: &mut Mem<'_>, units: u8) -> Step<u8> {
        let me = m.me();
        self.lock(m, Lock::Memory)?;
        let block = m.step("marks a free block as its own", |w| {
            let free = (0..4).find(|&block| UNITS[block] == units && w.states[block] == BlockState::Free);
            w.must(free.is_some(), "a block is never given back");
            let block = free.unwrap_or(0);
            w.states[block] = BlockState::Writing(me);
            block as u8
        })?;
        self.unlock(m, Lock::Memory)?;
        Ok(block)
    }

    fn free(&self, m: &mut Mem<'_>, block: u8) -> Step<()> {
        self.lock(m, Lock::Memory)?;
        m.step("frees the segment", |w| w.make_free(block))?;
        self.unlock(m, Lock::Memory)
    }

    fn sweep(&self, m: &mut Mem<'_>) -> Step<()> {
        self.lock(m, Lock::Get)?;
        self.lock(m, Lock::Put)?;
        self.lock(m, Lock::Memory)?;
        for block in 0..4u8 {
            let free =
                m.step("looks whether a block is anybody's", |w| match w.states[usize::from(block)] {
                    BlockState::Free => false,
                    BlockState::Writing(owner) => !w.is_alive(owner),
                    BlockState::Segment => !w.is_in_use(block),
                })?;
            if free {
                m.step("frees a block that nobody has", |w| w.make_free(block))?;
            }
        }
        m.step("notes that it has swept", |w| w.sweep_wanted = false)?;
        self.unlock(m, Lock::Memory)?;
        self.unlock(m, Lock::Put)?;
        self.unlock(m, Lock::Get)
    }

    fn mend(&self, m: &mut Mem<'_>) -> Step<()> {
        if m.step("looks whether a sweep is wanted", |w| w.sweep_wanted)? { self.sweep(m) } else { Ok(()) }
    }

    /// The messages' numbers of one put.
    fn batch(&self, producer: usize, put: u8) -> Vec<(u8, u8)> {
        let puts = &self.producers[producer];
        let before: usize = self.producers[..producer].iter().flatten().map(Vec::len).sum();
        let first = before + puts[..usize::from(put)].iter().map(Vec::len).sum::<usize>();
        let numbered = puts[usize::from(put)].iter().enumerate();
        numbered.map(|(index, units)| ((first + index + 1) as u8, *units)).collect()
    }

    /// How many messages of a batch were put.
    fn put(&self, m: &mut Mem<'_>, batch: &[(u8, u8)]) -> Step<u8> {
        self.mend(m)?;
        self.lock(m, Lock::Put)?;
        let segment = m.guarded(|w| w.put_segment);
        let tail = m.guarded(|w| w.tail);
        let mut session = Put { ring: self, segment, tail, unpublished: Vec::new() };
        let mut put = 0;
        for message in batch {
            if !session.push(m, *message)? {
                break;
            }
            put += 1;
        }
        if !self.is(Mutant::TailBeforeRecord) && put > 0 {
            session.publish(m)?;
        }
        self.unlock(m, Lock::Put)?;
        Ok(put)
    }

    /// Whether there was a message.
    fn get(&self, m: &mut Mem<'_>) -> Step<bool> {
        self.mend(m)?;
        self.lock(m, Lock::Get)?;
        let segment = m.guarded(|w| w.get_segment);
        let head = m.guarded(|w| w.head);
        let known_tail = m.guarded(|w| w.known_tail);
        let mut session = Get { ring: self, segment, head, known_tail };
        let Some(message) = session.next(m)? else {
            self.unlock(m, Lock::Get)?;
            return Ok(false);
        };
        if !self.is(Mutant::HeadBeforeRead) {
            session.publish(m, message)?;
        }
        if UNITS[usize::from(session.segment.0)] > KEPT && session.head.0 == session.known_tail.0 {
            session.shrink(m)?;
        }
        let me = usize::from(m.me()) - 1;
        m.step("releases the get lock and returns with the message", |w| {
            w.get_lock = 0;
            w.in_hand[me] = 0;
            w.must(w.got & 1 << message == 0, "a message was got twice");
            w.got |= 1 << message;
        })?;
        Ok(true)
    }
}

impl Control {
    fn make_free(&mut self, block: u8) {
        let block = usize::from(block);
        self.states[block] = BlockState::Free;
        self.successors[block] = 0;
        self.units[block] = [(SCRAMBLED, (0, 0)); 8];
    }

    /// Moves the head, which lies in `segment`, and scrambles what it leaves.
    fn move_head(&mut self, head: Cursor, segment: (u8, u8)) {
        let block = usize::from(segment.0);
        let mut position = self.head.1;
        while position != head.1 {
            let offset = position.wrapping_sub(segment.1) & (UNITS[block] - 1);
            self.units[block][usize::from(offset)] = (SCRAMBLED, (0, 0));
            position = position.wrapping_add(1);
        }
        self.head = head;
    }

    /// Whether a segment lies between the consumers' and the producers'.
    fn is_in_use(&self, wanted: u8) -> bool {
        let mut block = self.get_segment.0;
        for _ in 0..4 {
            if block == wanted {
                return true;
            }
            if block == self.put_segment.0 || self.successors[usize::from(block)] == 0 {
                return false;
            }
            block = self.successors[usize::from(block)] - 1;
        }
        false
    }
}

impl Protocol for Ring {
    type Words = Control;
    type Local = At;

    fn start(&self) -> (Words<Control>, Vec<At>) {
        let processes = self.producers.len() + self.consumers;
        let first = (FIRST, FIRST);
        let mut states = [BlockState::Free; 4];
        states[0] = BlockState::Segment;
        let control = Control {
            put_lock: 0,
            get_lock: 0,
            memory_lock: 0,
            sweep_wanted: false,
            put_segment: (0, FIRST),
            in_use_from: FIRST,
            known_gets: FIRST,
            tail: first,
            get_segment: (0, FIRST),
            known_tail: first,
            head: first,
            states,
            successors: [0; 4],
            units: [[(SCRAMBLED, (0, 0)); 8]; 4],
            queued: Vec::new(),
            put: 0,
            got: 0,
            in_hand: vec![0; processes],
        };
        let producers = self.producers.iter().map(|_| At::Put(0, 0));
        let locals = producers.chain((0..self.consumers).map(|_| At::Get)).collect();
        (Words::new(processes, control), locals)
    }

    fn name(&self, process: usize) -> String {
        match process.checked_sub(self.producers.len()) {
            None => format!("producer {}", process + 1),
            Some(consumer) => format!("consumer {}", consumer + 1),
        }
    }

    fn run(&self, at: &At, m: &mut Mem<'_>) -> Step<Option<At>> {
        let me = usize::from(m.me()) - 1;
        Ok(Some(match *at {
            At::Put(put, _) if usize::from(put) == self.producers[me].len() => return Ok(None),
            At::Put(put, from) => {
                let batch = self.batch(me, put);
                let rest = &batch[usize::from(from)..];
                let count = self.put(m, rest)?;
                let returned =
                    rest[..usize::from(count)].iter().fold(0, |mask, (message, _)| mask | 1 << message);
                m.step("returns from the put", |w| w.put |= returned)?;
                match rest.len() - usize::from(count) {
                    0 => At::Put(put + 1, 0),
                    _ => At::WaitForRoom(put, from + count),
                }
            }
            At::WaitForRoom(put, from) => {
                let bound = self.bound;
                m.step_when("finds that there is room", |w| w.tail.0.wrapping_sub(w.head.0) < bound, |_| ())?;
                At::Put(put, from)
            }
            At::Get => match self.get(m)? {
                true => At::Get,
                false => At::WaitForMessage,
            },
            At::WaitForMessage => {
                m.step_when("finds that there is a message", |w| w.tail.0 != w.head.0, |_| ())?;
                At::Get
            }
        }))
    }

    fn wrong(&self, w: &Words<Control>) -> Option<&'static str> {
        let is_segment = |block: u8| w.states[usize::from(block)] == BlockState::Segment;
        if !is_segment(w.put_segment.0) || !is_segment(w.get_segment.0) {
            return Some("a segment in use was freed");
        }
        if usize::from(w.tail.0.wrapping_sub(w.head.0)) != w.queued.len() {
            return Some("the counts do not tell how many messages there are");
        }
        None
    }

    fn wrong_at_the_end(&self, w: &Words<Control>, stuck: &[(usize, &At)]) -> Option<&'static str> {
        let consumers: Vec<u8> = (self.producers.len()..w.in_hand.len()).map(|me| me as u8 + 1).collect();
        let nobody_gets = consumers.iter().all(|&consumer| !w.is_alive(consumer));
        let waits_rightly = |at: &At| match at {
            At::WaitForMessage => w.queued.is_empty(),
            At::WaitForRoom(..) => nobody_gets && w.queued.len() >= self.bound.into(),
            At::Put(..) | At::Get => false,
        };
        if !stuck.iter().all(|(_, at)| waits_rightly(at)) {
            return Some("a process hangs");
        }
        let lost = w.in_hand.iter().fold(0, |mask, message| mask | 1u32 << message);
        let queued = w.queued.iter().fold(0, |mask, message| mask | 1u32 << message);
        if w.put & !(w.got | lost | queued) != 0 || queued != 0 && !nobody_gets {
            return Some("a message is lost");
        }
        None
    }
}
