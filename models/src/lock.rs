//! Locks that know their owner: the one that the library keeps its own words with, and the ones that a user sees.
//!
//! | here | in `procession-core/src` |
//! | --- | --- |
//! | `Kind::Internal` | `sync/robust.rs`: `try_lock`, `lock_slow` and the guard's drop: the store of 0, then `wake_settled` |
//! | `Kind::Plain` | `objects/owned.rs`: `Owned::take`, `take_slow`, `take_from_dead`, `give` (one exchange, then `wake_after_seqcst`); `objects/wait_for.rs`: `wait_for` |
//! | `Kind::Recursive` | the same and `Recursive::acquire`, `acquire_at`, `taken`, `mark`, `release`, `release_all`; each process takes the lock twice |
//! | `Locks::release_by_other` | `objects/lock.rs`: `Lock::release`, by another process than the one that took it |
//! | sleeping and waking | `crate::wait`, with the store buffer of whoever releases the internal lock |
//!
//! Noted in the words is who is inside. Checked: nobody gets in while somebody who lives is inside; whoever gets in is told of the
//! death of the last one if, and only if, that one died inside; with slices everybody gets in; without them nobody sleeps while the
//! lock is free, but for a death.
//!
//! The last process may have a deadline, which may pass at any time: the process gives up after a
//! sleep (`lock_until`). It tries once more before that, so that a wake meant for it is not lost.
//!
//! Left out: the user's lock made with `robust` false; the wait beyond a deadline; the lookout,
//! which lets one waiter at a time check the owner.

use crate::machine::{Memory, Protocol, Step, Words};
use crate::wait::{Waiters, bit, look_and_wake, prepare, sleep};

/// What is done wrong on purpose, to see that it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// Nobody takes the lock from the dead.
    NoOwnerRecovery,
    /// Who waits takes the lock from the living too.
    OwnerNotLookedAt,
    /// Who takes it from the dead stores its name without looking whether somebody else was faster.
    TakenByStore,
    /// Who takes it from the dead is not told.
    NotTold,
    /// A waiter does not look again between its arrival and its sleep.
    NoSecondLook,
    /// A process whose deadline has passed leaves without another try.
    GoesWithoutLook,
    /// Who releases looks for sleepers first.
    LookBeforeRelease,
    /// See [`crate::wait::Mutant::ResetsNotCounted`].
    ResetsNotCounted,
}

/// Which lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `Robust`.
    Internal,
    /// `Lock`.
    Plain,
    /// `RLock`.
    Recursive,
}

/// Processes that take a lock and release it.
#[derive(Clone, Debug)]
pub struct Locks {
    /// Which lock.
    pub kind: Kind,
    /// How often each process takes it.
    pub rounds: Vec<u8>,
    /// The first process takes it and leaves it to the second to release it; neither dies.
    pub release_by_other: bool,
    /// Whether who sleeps looks again after a slice.
    pub slices: bool,
    /// Whether the last process gives up at a deadline.
    pub timed: bool,
    /// What is done wrong.
    pub mutant: Option<Mutant>,
}

/// The lock's words, and who is inside.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Lock {
    /// 0, or the owner; above [`TAKING`] while a recursive lock's other words do not stand.
    owner: u8,
    depth: u8,
    waiters: Waiters,
    /// Whose release is still in its processor's store buffer, or 0.
    buffered: u8,
    /// Noted: who has got in and not out, dead or alive.
    inside: u8,
    /// Noted: the first process has left the release to the second.
    handed_over: bool,
}

const TAKING: u8 = 16;

/// How a wait ended.
enum Waited {
    Taken,
    Again,
    GivenUp,
}

/// Where a process is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum At {
    /// Before it takes the lock; how often it will.
    Outside(u8),
    /// Waits for it.
    Waiting(u8),
    /// Has it.
    Inside(u8),
    /// Waits until it is to release another's lock.
    Releasing,
    /// The processors' store buffer.
    Buffer,
}

type Mem<'a> = Memory<'a, Locks>;

fn waiters(lock: &mut Lock) -> &mut Waiters {
    &mut lock.waiters
}

impl Locks {
    fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    fn claim(&self, me: u8) -> u8 {
        if self.kind == Kind::Recursive { me | TAKING } else { me }
    }

    /// One exchange of the owner's word for this process's name.
    fn exchange(&self, m: &mut Mem<'_>, label: &'static str, from: u8) -> Step<bool> {
        let (me, claim) = (m.me(), self.claim(m.me()));
        let by_store = self.is(Mutant::TakenByStore) && from != 0;
        let told = from != 0 && !self.is(Mutant::NotTold);
        m.step(label, |w| {
            // An exchange empties the buffer of the one who makes it.
            if w.buffered == me {
                w.drain();
            }
            let taken = w.owner == from || by_store;
            if taken {
                w.owner = claim;
                w.waiters.woken &= !bit(me);
                let last = w.inside;
                let shut_out = last == 0 || !w.is_alive(last);
                w.must(shut_out, "two are inside at a time");
                w.must(told == (last != 0), "who gets in is told wrongly whether the last one died inside");
                w.inside = me;
            }
            taken
        })
    }

    /// What a recursive lock's new owner records.
    fn taken(&self, m: &mut Mem<'_>) -> Step<()> {
        if self.kind != Kind::Recursive {
            return Ok(());
        }
        let me = m.me();
        m.step("stores the depth", |w| w.depth = 1)?;
        m.step("becomes the owner", |w| w.owner = me)
    }

    /// Whether it has a deadline.
    fn is_timed(&self, me: u8) -> bool {
        self.timed && usize::from(me) == self.rounds.len()
    }

    fn wait(&self, m: &mut Mem<'_>) -> Step<Waited> {
        let settles = self.kind == Kind::Internal;
        let ticket = prepare(m, waiters, None)?;
        if settles {
            m.step_when("has settled", |w| w.buffered == 0, |_| ())?;
        }
        if !self.is(Mutant::NoSecondLook) && self.exchange(m, "tries again", 0)? {
            return Ok(Waited::Taken);
        }
        let timed = self.is_timed(m.me());
        let slice = sleep(m, waiters, ticket, self.slices || timed)?;
        if timed && self.is(Mutant::GoesWithoutLook) {
            return self.give_up(m);
        }
        if self.exchange(m, "tries after its sleep", 0)? {
            return Ok(Waited::Taken);
        }
        if timed {
            return self.give_up(m);
        }
        if !slice || self.is(Mutant::NoOwnerRecovery) {
            return Ok(Waited::Again);
        }
        let owner = m.step("looks who the owner is", |w| w.owner)?;
        let any = self.is(Mutant::OwnerNotLookedAt);
        let dead =
            m.step("looks whether the owner lives", |w| owner != 0 && (any || !w.is_alive(owner & !TAKING)))?;
        let taken = dead && self.exchange(m, "takes it from the dead", owner)?;
        Ok(if taken { Waited::Taken } else { Waited::Again })
    }

    fn give_up(&self, m: &mut Mem<'_>) -> Step<Waited> {
        let me = m.me();
        m.step("gives up", |w| w.waiters.woken &= !bit(me))?;
        Ok(Waited::GivenUp)
    }

    fn release(&self, m: &mut Mem<'_>) -> Step<()> {
        let me = m.me();
        let late = self.is(Mutant::LookBeforeRelease);
        if late {
            look_and_wake(m, waiters, None)?;
        }
        if self.kind == Kind::Internal {
            m.step("releases, into its store buffer", |w| {
                w.buffered = me;
                w.waiters.waking |= bit(me);
            })?;
        } else {
            m.step("releases", |w| {
                w.waiters.waking |= bit(me);
                w.let_go();
            })?;
        }
        if !late && m.step("looks whether somebody may sleep", |w| w.waiters.arrivals() != 0)? {
            m.step_when("its store buffer is empty", |w| w.buffered != me, |_| ())?;
            let mutant = self.is(Mutant::ResetsNotCounted).then_some(crate::wait::Mutant::ResetsNotCounted);
            crate::wait::wake_sleepers(m, waiters, mutant, false)?;
        }
        m.step("has woken whom it had to", |w| w.waiters.waking &= !bit(me))
    }

    /// In a recursive lock, takes it again and releases it once.
    fn inside(&self, m: &mut Mem<'_>) -> Step<()> {
        if self.kind != Kind::Recursive {
            return Ok(());
        }
        let me = m.me();
        if m.step("looks whether it is the owner", |w| w.owner)? != me {
            return m.step("is not the owner", |w| w.must(false, "an owner does not know that it is one"));
        }
        let depth = m.guarded(|w| w.depth);
        m.step("takes it again", |w| w.depth = depth + 1)?;
        let depth = m.guarded(|w| w.depth);
        m.step("releases it once", |w| {
            w.must(depth == 2, "the depth is not how often it was taken");
            w.depth = depth - 1;
        })?;
        let depth = m.guarded(|w| w.depth);
        m.step("is about to release it", |w| w.must(depth == 1, "the depth is not how often it was taken"))
    }
}

impl Lock {
    fn let_go(&mut self) {
        self.owner = 0;
        self.inside = 0;
    }

    fn drain(&mut self) {
        self.buffered = 0;
        self.let_go();
    }
}

impl Protocol for Locks {
    type Words = Lock;
    type Local = At;

    fn start(&self) -> (Words<Lock>, Vec<At>) {
        let lock = Lock {
            owner: 0,
            depth: 0,
            waiters: Waiters::default(),
            buffered: 0,
            inside: 0,
            handed_over: false,
        };
        let mut locals: Vec<At> = self.rounds.iter().map(|rounds| At::Outside(*rounds)).collect();
        if self.release_by_other {
            locals[1] = At::Releasing;
        }
        if self.kind == Kind::Internal {
            locals.push(At::Buffer);
        }
        (Words::new(locals.len(), lock), locals)
    }

    fn name(&self, process: usize) -> String {
        if process < self.rounds.len() {
            format!("process {}", process + 1)
        } else {
            "the store buffer".to_owned()
        }
    }

    fn may_die(&self, process: usize) -> bool {
        process < self.rounds.len() && !(self.release_by_other && process < 2)
    }

    fn run(&self, at: &At, m: &mut Mem<'_>) -> Step<Option<At>> {
        let hands_over = self.release_by_other && m.me() == 1;
        Ok(Some(match *at {
            At::Outside(0) => return Ok(None),
            At::Outside(rounds) => match self.exchange(m, "tries the lock", 0)? {
                true => {
                    self.taken(m)?;
                    At::Inside(rounds)
                }
                false => At::Waiting(rounds),
            },
            At::Waiting(rounds) => match self.wait(m)? {
                Waited::Taken => {
                    self.taken(m)?;
                    At::Inside(rounds)
                }
                Waited::Again => At::Waiting(rounds),
                Waited::GivenUp => At::Outside(rounds - 1),
            },
            At::Inside(_) if hands_over => {
                m.step("leaves it to another to release it", |w| w.handed_over = true)?;
                return Ok(None);
            }
            At::Inside(rounds) => {
                self.inside(m)?;
                self.release(m)?;
                At::Outside(rounds - 1)
            }
            At::Releasing => {
                m.step_when("is told to release it", |w| w.handed_over, |_| ())?;
                self.release(m)?;
                return Ok(None);
            }
            At::Buffer => {
                m.step_when("lets a store through", |w| w.buffered != 0, |w| w.drain())?;
                At::Buffer
            }
        }))
    }

    fn wrong_at_the_end(&self, w: &Words<Lock>, stuck: &[(usize, &At)]) -> Option<&'static str> {
        let waiting = stuck.iter().filter(|(_, at)| !matches!(at, At::Buffer)).count();
        let excused = w.waiters.lost_with_the_dead(|id| w.is_alive(id)) > 0;
        let owned_by_the_dead = w.owner != 0 && !w.is_alive(w.owner & !TAKING);
        if waiting > 0 && (self.slices || !excused && !owned_by_the_dead) {
            return Some("somebody waits for a lock that nobody has");
        }
        None
    }
}
