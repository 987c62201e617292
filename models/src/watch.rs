//! Waiting for a queue by a descriptor: pipes that producers make readable before they publish.
//!
//! | here | in `procession-core/src` |
//! | --- | --- |
//! | `lock` | `ring/locks.rs`: `lock_put`; `ring/recovery.rs`: `recover_put` |
//! | `put` | `ring/put.rs`: `PutSession::publish` under the put lock, with `Ring::signal_armed` of `ring/watch.rs` in it |
//! | `At::Poll` | the program's `poll`: one step, which may happen when the pipe is readable |
//! | `At::Get` | `Queue::get` without waiting: one step, then `Ring::refresh_if_dull` where it found nothing |
//! | `refresh` | `Ring::refresh` |
//!
//! Checked: no living watcher sleeps in `poll` while a message is there; who polls and gets, again and again, comes to sleep when there is none.
//! Left out: how a place in the table is taken; what is ready without a message; the get lock.

use crate::machine::{Memory, Protocol, Step, Words};

/// What is done wrong on purpose, to see that it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// The pipes are written to after the message is published.
    ToldAfterwards,
    /// The bits are cleared before the pipes are written to.
    ClearedFirst,
    /// A watcher arms without the put lock.
    ArmedWithoutLock,
    /// Who takes the lock from the dead leaves the bits as they are.
    BitsOfTheDeadKept,
    /// A get that finds nothing leaves the pipe as it is.
    NeverDrained,
}

/// Producers, and watchers that poll and take.
#[derive(Clone, Debug)]
pub struct Watches {
    /// How many messages each producer puts.
    pub producers: Vec<u8>,
    /// How many watchers there are.
    pub watchers: u8,
    /// Messages that somebody takes who waits for nothing.
    pub others: u8,
    /// What is done wrong.
    pub mutant: Option<Mutant>,
}

/// The words, and the pipes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Queue {
    /// Who has the put lock, or 0.
    lock: u8,
    /// Messages that are put and not taken.
    messages: u8,
    /// A bit for each watcher, as for those that follow.
    armed: u8,
    readable: u8,
}

/// Where a process is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum At {
    /// Before it puts; how many it will.
    Put(u8),
    /// Before it takes what is there; how many it will.
    Take(u8),
    /// A watcher before it has asked for its descriptor.
    Ask,
    /// In `poll`.
    Poll,
    /// Before it gets.
    Get,
}

type Mem<'a> = Memory<'a, Watches>;

impl Watches {
    fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    fn lock(&self, m: &mut Mem<'_>) -> Step<()> {
        let me = m.me();
        let recovered = m.step_when(
            "takes the lock",
            |w| w.lock == 0 || !w.is_alive(w.lock),
            |w| std::mem::replace(&mut w.lock, me) != 0,
        )?;
        if recovered && !self.is(Mutant::BitsOfTheDeadKept) { self.tell(m) } else { Ok(()) }
    }

    fn unlock(m: &mut Mem<'_>) -> Step<()> {
        m.step("releases the lock", |w| w.lock = 0)
    }

    fn tell(&self, m: &mut Mem<'_>) -> Step<()> {
        let armed = m.guarded(|w| w.armed);
        if armed == 0 {
            return Ok(());
        }
        if self.is(Mutant::ClearedFirst) {
            m.step("clears the bits", |w| w.armed = 0)?;
        }
        for bit in (0..8).map(|watcher| 1 << watcher).filter(|bit| armed & bit != 0) {
            m.step("writes to a pipe", |w| w.readable |= bit)?;
        }
        if !self.is(Mutant::ClearedFirst) {
            m.step("clears the bits", |w| w.armed = 0)?;
        }
        Ok(())
    }

    fn put(&self, m: &mut Mem<'_>) -> Step<()> {
        self.lock(m)?;
        let late = self.is(Mutant::ToldAfterwards);
        if !late {
            self.tell(m)?;
        }
        m.step("publishes", |w| w.messages += 1)?;
        if late {
            self.tell(m)?;
        }
        Self::unlock(m)
    }

    fn bit(&self, me: u8) -> u8 {
        1 << (usize::from(me) - 1 - self.producers.len())
    }

    fn refresh(&self, m: &mut Mem<'_>) -> Step<()> {
        let bit = self.bit(m.me());
        let locks = !self.is(Mutant::ArmedWithoutLock);
        if locks {
            self.lock(m)?;
        }
        if m.step("looks for a message", |w| w.messages != 0)? {
            m.step("makes its pipe readable", |w| w.readable |= bit)?;
            m.step("clears its bit", |w| w.armed &= !bit)?;
        } else {
            m.step("drains its pipe", |w| w.readable &= !bit)?;
            m.step("sets its bit", |w| w.armed |= bit)?;
        }
        if locks { Self::unlock(m) } else { Ok(()) }
    }

    /// Whether there was a message.
    fn take(m: &mut Mem<'_>) -> Step<bool> {
        m.step("gets", |w| {
            let there = w.messages != 0;
            w.messages -= u8::from(there);
            there
        })
    }
}

impl Protocol for Watches {
    type Words = Queue;
    type Local = At;

    fn start(&self) -> (Words<Queue>, Vec<At>) {
        let mut locals: Vec<At> = self.producers.iter().map(|puts| At::Put(*puts)).collect();
        locals.extend((0..self.watchers).map(|_| At::Ask));
        if self.others > 0 {
            locals.push(At::Take(self.others));
        }
        (Words::new(locals.len(), Queue { lock: 0, messages: 0, armed: 0, readable: 0 }), locals)
    }

    fn name(&self, process: usize) -> String {
        match process.checked_sub(self.producers.len()) {
            None => format!("producer {}", process + 1),
            Some(watcher) if watcher < usize::from(self.watchers) => format!("watcher {}", watcher + 1),
            Some(_) => "another consumer".to_owned(),
        }
    }

    fn run(&self, at: &At, m: &mut Mem<'_>) -> Step<Option<At>> {
        Ok(Some(match *at {
            At::Put(0) | At::Take(0) => return Ok(None),
            At::Put(puts) => {
                self.put(m)?;
                At::Put(puts - 1)
            }
            At::Take(takes) => {
                Self::take(m)?;
                At::Take(takes - 1)
            }
            At::Ask => {
                self.refresh(m)?;
                At::Poll
            }
            At::Poll => {
                let bit = self.bit(m.me());
                m.step_when("its pipe is readable", |w| w.readable & bit != 0, |_| ())?;
                At::Get
            }
            At::Get => {
                let bit = self.bit(m.me());
                if !Self::take(m)?
                    && !self.is(Mutant::NeverDrained)
                    && !m.step("looks whether it is armed", |w| w.armed & bit != 0 && w.lock == 0)?
                {
                    self.refresh(m)?;
                }
                At::Poll
            }
        }))
    }

    fn wrong_at_the_end(&self, w: &Words<Queue>, stuck: &[(usize, &At)]) -> Option<&'static str> {
        let asleep = stuck.iter().any(|(_, at)| matches!(at, At::Poll));
        (asleep && w.messages != 0).then_some("a watcher sleeps beside a message")
    }
}
