//! Messages in blocks and tasks: large messages, deliveries that are acknowledged or handed out again, tasks taken for good, and who
//! waits for all to be done.
//!
//! | here | in `procession-core/src` |
//! | --- | --- |
//! | `Tasks::put` | `queue/message.rs`: `Reservation::new`, `commit`; `ring/put.rs`: `push`, of a block: the record, `seq`, `Queued`; then the tail |
//! | `Tasks::get` | `queue/get.rs`: `Shared::try_get`; `ring/get.rs`: `next`, `take_inline`, `take_block`, `publish` |
//! | `take_returned`, `hold`, `copy_to_block` | `ring/get.rs`: the methods of these names (the first with `find_returned`) |
//! | `my_account`, `charge` | `ring/accounts.rs`: `my_account`, `open_account`, `charge` |
//! | `unfinished`, `task_done`, `settle`, `give_back`, `owe`, `collect_losses` | `ring/accounts.rs`: the methods of these names |
//! | `At::Wait` | `queue/get.rs`: `wait_for_message` and `look_around`; one step, which may happen when one of their looks finds something |
//! | `At::Join`, `At::JoinWait` | `queue/join.rs`: `Queue::join`, `done`, `look` |
//!
//! The two words of a message stand for its bytes. Blocks, locks and the sweep: `crate::blocks`. Left out: what `crate::ring` has
//! (space in the ring), `crate::wait` has (sleeping), and shutdown.

mod accounts;
mod judge;

use crate::blocks::{
    Account, Block, BlockState, Fate, GET, IN_BLOCK, MEMORY, Mem, PUT, Queue, allocate, free, lock, mend,
    sweep, unlock,
};
use crate::machine::{Protocol, Step, Words};

/// What is done wrong on purpose, to see that it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// A block becomes `Queued` after the tail was stored.
    QueuedAfterTail,
    /// A consumer marks its block after it has stored the head.
    TakenAfterHead,
    /// A consumer frees a block before it has read it.
    FreedBeforeRead,
    /// Who takes the put lock from the dead leaves blocks queued that were not published.
    UnpublishedKept,
    /// Who takes the memory lock from the dead does not build the stack and the sums anew.
    NotRebuilt,
    /// A delivery is copied to its block after the head was stored.
    HeldAfterHead,
    /// An account is charged after the head was stored.
    ChargedAfterHead,
    /// Who takes the get lock from the dead does not take their charges back.
    ChargeNotUndone,
    /// Nor what they marked as theirs and had not taken.
    TakesNotUndone,
    /// A sweep does not say that it has begun.
    SweepNotAnnounced,
    /// A delivery is marked as returned before it is counted as that.
    ReturnedBeforeCounted,
    /// The sums of unfinished tasks are added up without a second look at the tail.
    TailNotLookedAtAgain,
}

/// What a consumer does with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Use {
    /// Takes it for good, and in a queue of tasks declares it done.
    Plain,
    /// Takes a delivery and acknowledges it.
    Done,
    /// Gives its first delivery back, acknowledges the others.
    GiveBack,
    /// Takes a delivery for good, then declares it done.
    Own,
}

/// One queue and its users.
#[derive(Clone, Debug)]
pub struct Tasks {
    /// Whether tasks are counted.
    pub joinable: bool,
    /// For each producer its messages; true for large ones.
    pub producers: Vec<Vec<bool>>,
    /// Each consumer.
    pub consumers: Vec<Use>,
    /// Whether somebody waits for all tasks to be done, once there was one.
    pub joiner: bool,
    /// What is done wrong.
    pub mutant: Option<Mutant>,
}

/// Where a process is between two calls.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum At {
    /// Before a put; how many have returned.
    Put(u8),
    /// Before a get; whether a delivery was given back.
    Get(bool),
    /// The queue was empty.
    Wait(bool),
    /// With a message, and the block it lies in: its number plus 1.
    Work(u8, u8, bool),
    /// Taken for good and not declared done.
    Owing(u8, bool),
    /// Before a join.
    Join,
    /// Tasks were unfinished.
    JoinWait,
}

impl Tasks {
    pub(crate) fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    fn deliveries(&self) -> bool {
        self.consumers.iter().any(|consumer| *consumer != Use::Plain)
    }

    fn put(&self, m: &mut Mem<'_>, message: u8, large: bool) -> Step<()> {
        mend(self, m)?;
        let block = if large {
            let block = allocate(self, m)?;
            fill(m, block, message)?;
            Some(block)
        } else {
            None
        };
        lock(self, m, PUT)?;
        let tail = m.guarded(|w| w.tail);
        let record = block.map_or(message, |block| IN_BLOCK + block);
        m.step("writes the record", |w| w.records[usize::from(tail)] = record)?;
        let seq = |m: &mut Mem<'_>, block| m.step("stores the block's seq", |w| w.block(block).seq = tail);
        let queued = |m: &mut Mem<'_>, block| {
            m.step("marks the block as queued", |w| w.block(block).state = BlockState::Queued)
        };
        let publish = |m: &mut Mem<'_>| {
            m.step("stores the tail", |w| {
                w.tail = tail + 1;
                w.fate(message).published = true;
            })
        };
        match block {
            Some(block) if self.is(Mutant::QueuedAfterTail) => {
                seq(m, block)?;
                publish(m)?;
                queued(m, block)?;
            }
            Some(block) => {
                seq(m, block)?;
                queued(m, block)?;
                publish(m)?;
            }
            None => publish(m)?,
        }
        unlock(m, PUT)?;
        m.step("returns from the put", |w| w.fate(message).put = true)
    }

    /// A message, and the block in which it lies plus 1.
    fn get(&self, m: &mut Mem<'_>, delivery: bool) -> Step<Option<(u8, u8)>> {
        mend(self, m)?;
        lock(self, m, GET)?;
        let got = match self.take_returned(m, delivery)? {
            Some(got) => Some(got),
            None => self.take_next(m, delivery)?,
        };
        let Some((message, block)) = got else {
            unlock(m, GET)?;
            return Ok(None);
        };
        let extra = if self.deliveries() { m.guarded(|_| 1) } else { 0 };
        m.step("releases the get lock and returns with a message", |w| {
            w.locks[GET] = 0;
            let allowed = if extra == 0 { 0 } else { w.deaths() + 1 };
            let gets = w.fate(message).gets;
            w.must(gets <= allowed, "a message was got too often");
            w.fate(message).gets += 1;
        })?;
        Ok(Some((message, block)))
    }

    fn take_next(&self, m: &mut Mem<'_>, delivery: bool) -> Step<Option<(u8, u8)>> {
        let me = m.me();
        let head = m.guarded(|w| w.head);
        if m.step("looks at the tail", |w| w.tail)? == head {
            return Ok(None);
        }
        let record = m.guarded(|w| w.records[usize::from(head)]);
        let account = if self.joinable && !delivery { Some(self.my_account(m)?) } else { None };
        let late_take = self.is(Mutant::TakenAfterHead) || self.is(Mutant::HeldAfterHead);
        let publish = |m: &mut Mem<'_>| {
            m.step("stores the head", |w| {
                w.head = head + 1;
                if !delivery {
                    let message = match record.checked_sub(IN_BLOCK) {
                        Some(block) => w.block(block).words.0,
                        None => record,
                    };
                    w.must(message != 0, "a message was torn");
                    w.fate(message.max(1)).taken = me;
                }
            })
        };
        if late_take {
            publish(m)?;
        }
        let got = match record.checked_sub(IN_BLOCK) {
            None if !delivery => (record, 0),
            None => {
                let block = allocate(self, m)?;
                fill(m, block, record)?;
                self.hold(m, block, BlockState::HeldCopy(me), head)?;
                (record, block + 1)
            }
            Some(block) => {
                let message = m.step("checks the message's block", |w| {
                    let Block { state, seq, words, .. } = *w.block(block);
                    w.must(seq == head && state != BlockState::Free, "a message's block was freed");
                    words.0
                })?;
                if delivery {
                    self.hold(m, block, BlockState::Held(me), head)?;
                } else {
                    m.step("marks the block as taken", |w| w.block(block).state = BlockState::Taken(me))?;
                }
                (message, block + 1)
            }
        };
        let charge = |m: &mut Mem<'_>| match account {
            Some(account) => {
                let taken = m.guarded(|w| w.accounts[usize::from(account)].taken.0) + 1;
                m.step("charges its account", |w| w.accounts[usize::from(account)].taken = (taken, head + 1))
            }
            None => Ok(()),
        };
        if !self.is(Mutant::ChargedAfterHead) {
            charge(m)?;
        }
        if !late_take {
            publish(m)?;
        }
        if self.is(Mutant::ChargedAfterHead) {
            charge(m)?;
        }
        Ok(Some(got))
    }

    fn hold(&self, m: &mut Mem<'_>, block: u8, state: BlockState, head: u8) -> Step<()> {
        lock(self, m, MEMORY)?;
        m.step("stores the block's seq", |w| w.block(block).seq = head)?;
        m.step("marks the block as held", |w| w.block(block).state = state)?;
        m.step("counts it as held", |w| w.held += 1)?;
        unlock(m, MEMORY)
    }

    fn take_returned(&self, m: &mut Mem<'_>, delivery: bool) -> Step<Option<(u8, u8)>> {
        if !self.joinable || m.step("looks whether deliveries were returned", |w| w.returned)? == 0 {
            return Ok(None);
        }
        let me = m.me();
        lock(self, m, MEMORY)?;
        // The oldest: blocks pass the head in the order of their seq.
        let oldest = m.guarded(|w| {
            let returned = |block: &u8| w.blocks[usize::from(*block)].state == BlockState::Returned;
            let found =
                (0..w.descriptors).filter(returned).min_by_key(|block| w.blocks[usize::from(*block)].seq);
            found.map_or(0, |block| block + 1)
        });
        let Some(block) = oldest.checked_sub(1) else {
            m.step("corrects the sum of returned deliveries", |w| w.returned = 0)?;
            unlock(m, MEMORY)?;
            return Ok(None);
        };
        let message = m.guarded(|w| w.blocks[usize::from(block)].words.0);
        if delivery {
            m.step("marks the block as held", |w| w.block(block).state = BlockState::Held(me))?;
        } else {
            m.step("counts it as owed", |w| w.owed += 1)?;
            m.step("marks the block as owed", |w| {
                w.block(block).state = BlockState::Owed(me);
                w.fate(message).taken = me;
            })?;
        }
        m.step("counts one less as returned", |w| w.returned = w.returned.saturating_sub(1))?;
        unlock(m, MEMORY)?;
        Ok(Some((message, if delivery { block + 1 } else { 0 })))
    }

    /// What a process does after a slice in vain.
    fn look_around(&self, m: &mut Mem<'_>) -> Step<()> {
        mend(self, m)?;
        if m.step("looks whether somebody died with a delivery", |w| w.somebody_died_with_a_delivery())? {
            sweep(self, m)?;
        }
        Ok(())
    }

    fn consumer(&self, me: usize) -> Use {
        self.consumers[me - self.producers.len()]
    }

    /// The number of a producer's message, from 1.
    fn message(&self, producer: usize, index: u8) -> u8 {
        let before: usize = self.producers[..producer].iter().map(Vec::len).sum();
        before as u8 + index + 1
    }

    fn work(&self, m: &mut Mem<'_>, message: u8, block: u8, returned: bool) -> Step<Option<At>> {
        let me = usize::from(m.me()) - 1;
        let doing = self.consumer(me);
        let Some(block) = block.checked_sub(1) else { return Ok(Some(At::Owing(message, returned))) };
        let early = self.is(Mutant::FreedBeforeRead) && doing == Use::Plain;
        if early {
            free(self, m, block)?;
        }
        for second in [false, true] {
            m.step("reads a part of the message", |w| {
                let words = w.block(block).words;
                let word = if second { words.1 } else { words.0 };
                w.must(word == message, "a message was torn");
            })?;
        }
        Ok(Some(match doing {
            Use::Plain => {
                if !early {
                    free(self, m, block)?;
                }
                At::Owing(message, returned)
            }
            Use::GiveBack if !returned => {
                self.give_back(m, block)?;
                At::Get(true)
            }
            Use::Own => {
                self.owe(m, block, message)?;
                At::Owing(message, returned)
            }
            Use::Done | Use::GiveBack => {
                lock(self, m, MEMORY)?;
                self.settle(m, block, false, |w| {
                    w.fate(message).done = true;
                    w.note();
                })?;
                unlock(m, MEMORY)?;
                At::Get(returned)
            }
        }))
    }
}

fn fill(m: &mut Mem<'_>, block: u8, message: u8) -> Step<()> {
    m.step("writes the first part of the message", |w| w.block(block).words.0 = message)?;
    m.step("writes the second part of the message", |w| w.block(block).words.1 = message)
}

impl Protocol for Tasks {
    type Words = Queue;
    type Local = At;

    fn start(&self) -> (Words<Queue>, Vec<At>) {
        let messages: usize = self.producers.iter().map(Vec::len).sum();
        let queue = Queue {
            locks: [0; 3],
            sweep_wanted: false,
            head: 0,
            tail: 0,
            records: vec![0; messages],
            descriptors: 0,
            blocks: Default::default(),
            free: 0,
            held: 0,
            returned: 0,
            owed: 0,
            accounts: vec![Account::default(); if self.joinable { self.consumers.len() } else { 0 }],
            fates: vec![Fate::default(); messages],
            was_done: false,
        };
        let mut locals = vec![At::Put(0); self.producers.len()];
        locals.resize(self.producers.len() + self.consumers.len(), At::Get(false));
        if self.joiner {
            locals.push(At::Join);
        }
        (Words::new(locals.len(), queue), locals)
    }

    fn name(&self, process: usize) -> String {
        match process.checked_sub(self.producers.len()) {
            None => format!("producer {}", process + 1),
            Some(consumer) if consumer < self.consumers.len() => format!("consumer {}", consumer + 1),
            Some(_) => "the joiner".to_owned(),
        }
    }

    fn run(&self, at: &At, m: &mut Mem<'_>) -> Step<Option<At>> {
        let me = usize::from(m.me()) - 1;
        Ok(Some(match *at {
            At::Put(index) => {
                let Some(large) = self.producers[me].get(usize::from(index)) else { return Ok(None) };
                self.put(m, self.message(me, index), *large)?;
                At::Put(index + 1)
            }
            At::Get(returned) => match self.get(m, self.consumer(me) != Use::Plain)? {
                Some((message, block)) => At::Work(message, block, returned),
                None => At::Wait(returned),
            },
            At::Wait(returned) => {
                let there = m.options(
                    &["finds a message", "looks around"],
                    |w| {
                        let around = w.sweep_wanted || w.somebody_died_with_a_delivery();
                        u8::from(w.has_message()) | u8::from(around) << 1
                    },
                    |_, option| option == 0,
                )?;
                if !there {
                    self.look_around(m)?;
                }
                At::Get(returned)
            }
            At::Work(message, block, returned) => return self.work(m, message, block, returned),
            At::Owing(message, returned) => {
                if self.joinable {
                    self.task_done(m, message)?;
                } else {
                    m.step("returns from the get", |w| w.fate(message).done = true)?;
                }
                At::Get(returned)
            }
            At::Join => {
                let begun = |w: &Words<Queue>| w.fates.iter().any(|fate| fate.published);
                m.step_when("begins to look", begun, |w| {
                    w.was_done = false;
                    w.note();
                })?;
                if self.unfinished(m)? > 0 {
                    return Ok(Some(At::JoinWait));
                }
                m.step("returns from the join", |w| {
                    let right = w.was_done;
                    w.must(right, "a join returned though a task was unfinished all the time");
                })?;
                return Ok(None);
            }
            At::JoinWait => {
                m.step_when(
                    "looks again",
                    |w| {
                        let lost = w.head == w.tail && !w.fates.iter().any(|fate| w.is_open(fate));
                        let orphaned = w.is_orphaned(GET) || w.is_orphaned(MEMORY);
                        let died = w.sweep_wanted || w.somebody_died_with_a_delivery();
                        w.sum() <= 0 || lost || orphaned || died
                    },
                    |_| (),
                )?;
                self.look_around(m)?;
                if self.collect_losses(m)? {
                    return Ok(None);
                }
                At::Join
            }
        }))
    }

    fn wrong_at_the_end(&self, w: &Words<Queue>, stuck: &[(usize, &At)]) -> Option<&'static str> {
        let consumes = |(_, at): &(usize, &At)| matches!(at, At::Wait(_));
        let nobody_gets = !stuck.iter().any(consumes);
        let open = w.fates.iter().any(|fate| w.is_open(fate));
        let waits_rightly = |(_, at): &(usize, &At)| match at {
            At::Wait(_) => !w.has_message(),
            At::JoinWait => nobody_gets && open,
            At::Join => !w.fates.iter().any(|fate| fate.published),
            _ => false,
        };
        if !stuck.iter().all(waits_rightly) {
            return Some("a process hangs");
        }
        if open && !nobody_gets {
            return Some("a message is lost");
        }
        if w.fates.iter().any(|fate| fate.put && !fate.published) {
            return Some("a put returned without a message");
        }
        let quiet =
            !w.sweep_wanted && !w.somebody_died_with_a_delivery() && (0..3).all(|lock| !w.is_orphaned(lock));
        if quiet && !w.queued_blocks_are_in_the_ring() {
            return Some("a block is lost");
        }
        let unfinished = w.fates.iter().filter(|fate| fate.published && !fate.done).count();
        if self.joinable && quiet && usize::try_from(w.sum()) != Ok(unfinished) {
            return Some("the sums do not tell how many tasks are unfinished");
        }
        None
    }
}
