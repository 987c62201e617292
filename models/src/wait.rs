//! Sleeping and waking: the wait queue that everything sleeps in, whose waiters and wakers may die at any point.
//!
//! | here | in `procession-core/src/sync/wait.rs` |
//! | --- | --- |
//! | `prepare` | `WaitQueue::prepare`: the load of `epoch`, the addition to `arrivals` |
//! | `sleep` | `WaitQueue::sleep_for`: one futex wait, which compares the epoch and falls asleep in one, then ends by a wake or by its slice |
//! | `wake_sleepers` | `WaitQueue::wake_sleepers`: the load of `arrivals`, the addition to `epoch`, the futex wake, the exchange |
//! | `Wake::Fenced` | `WaitQueue::wake`: the barrier waits for the change to leave the store buffer |
//! | `Wake::AfterSeqCst` | `WaitQueue::wake_after_seqcst`: the change was one exchange, which no buffer holds |
//! | `Wake::Settled` | `WaitQueue::wake_settled`: no barrier; the sleeper's last look (`WaitQueue::settle`) comes after each store that was under way when it arrived has left its buffer |
//! | a waiter | `objects/wait_for.rs`: `wait_for`; `sync/robust.rs`: `lock_slow`; `queue/mod.rs`: `wait_until`: prepare, look, sleep, look |
//!
//! A processor's store buffer is a process of its own, which does not die: what is in it arrives, also after a death. A wake picks
//! any sleeper, also one that was killed and is not out of the kernel's list yet.
//!
//! **With slices** (who sleeps wakes by himself, sooner or later) every waiter whose condition holds goes on, whoever dies. **Without**
//! them, no wake-up is lost but by a death: for each waiter left asleep although its condition holds, somebody died who was to wake it
//! (between its change and its wake) or was woken in its place (and died before it acted). So the slice is needed for deaths only.
//!
//! `wake_settled` relies on one thing that no rule of the language gives: a store leaves the processor's buffer within the settling
//! time. `Mutant::SettlesTooShort` shows a wake-up lost without that; with slices it is late by one slice.
//!
//! Counters wrap at 8 instead of 2^32 (the arrivals, at 8 with 4 resets instead of 2^16 each). Left out: several threads of a process, deadlines, spurious ends of a futex wait (they are as
//! a slice's end, which `Waiting::slices` allows at any moment).

use crate::machine::{Memory, Protocol, Step, Words};

/// What is done wrong on purpose, to see that it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// A waiter does not look again between its arrival and its sleep.
    NoSecondLook,
    /// A waiter takes its ticket after it has arrived.
    TicketAfterArrival,
    /// A waker that found no sleeper stores 0, whoever has arrived since.
    ArrivalsStored,
    /// The arrivals do not tell how often they were reset: after another waker's reset and another arrival they look as before.
    ResetsNotCounted,
    /// A waker does not change the epoch.
    NoEpoch,
    /// A waker looks for sleepers before it makes its change.
    LookBeforeChange,
    /// The barrier of `wake` is not there.
    NoBarrier,
    /// A waiter settles for less time than a store takes.
    SettlesTooShort,
}

/// What [`Waiters`] a process sleeps in, and what it sleeps for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// By `wake`.
    Fenced,
    /// By `wake_after_seqcst`.
    AfterSeqCst,
    /// By `wake_settled`.
    Settled,
}

/// The words of a `WaitQueue`, and the kernel's list of sleepers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Waiters {
    arrivals: u8,
    epoch: u8,
    /// Who sleeps, a bit for each process.
    asleep: u16,
    /// Noted: who was woken and has not acted on it.
    pub woken: u16,
    /// Noted: who has made a change and not yet woken anybody for it.
    pub waking: u16,
}

/// How many arrivals, and epochs, are told apart; and how many resets of the arrivals.
const WRAP: u8 = 8;
const RESETS: u8 = 4;

impl Waiters {
    /// Noted: for how many wake-ups the dead are to blame.
    pub fn lost_with_the_dead(&self, is_alive: impl Fn(u8) -> bool) -> u32 {
        let dead = |id: &u8| !is_alive(*id);
        let of = |mask: u16| (1..=16u8).filter(|id| mask & bit(*id) != 0).filter(dead).count() as u32;
        of(self.woken) + of(self.waking)
    }

    /// How many have arrived since the last reset.
    pub fn arrivals(&self) -> u8 {
        self.arrivals % WRAP
    }

    /// Whether this process sleeps.
    pub fn sleeps(&self, id: u8) -> bool {
        self.asleep & bit(id) != 0
    }
}

/// The bit of a process in a mask.
pub fn bit(id: u8) -> u16 {
    1 << (id - 1)
}

/// Announces a sleeper; its ticket.
pub fn prepare<P: Protocol>(
    m: &mut Memory<'_, P>,
    waiters: fn(&mut P::Words) -> &mut Waiters,
    mutant: Option<Mutant>,
) -> Step<u8> {
    let late = mutant == Some(Mutant::TicketAfterArrival);
    let mut ticket = 0;
    if !late {
        ticket = m.step("takes a ticket: the epoch", |w| waiters(w).epoch)?;
    }
    m.step("adds itself to the arrivals", |w| arrive(&mut waiters(w).arrivals))?;
    if late {
        ticket = m.step("takes a ticket: the epoch", |w| waiters(w).epoch)?;
    }
    Ok(ticket)
}

fn add(counter: &mut u8) -> bool {
    *counter = (*counter + 1) % WRAP;
    *counter == 0
}

/// Adds to the arrivals: their count goes on from its highest to 1, and what is above them counts on.
fn arrive(arrivals: &mut u8) {
    let more = if *arrivals % WRAP == WRAP - 1 { 2 } else { 1 };
    *arrivals = (*arrivals + more) % (WRAP * RESETS);
}

/// Sleeps until a wake after the ticket was taken, or with `slices` at most for one; whether the slice ended it.
pub fn sleep<P: Protocol>(
    m: &mut Memory<'_, P>,
    waiters: fn(&mut P::Words) -> &mut Waiters,
    ticket: u8,
    slices: bool,
) -> Step<bool> {
    let me = m.me();
    let slept = m.step("asks the kernel to sleep if the epoch is its ticket", |w| {
        let waiters = waiters(w);
        let sleeps = waiters.epoch == ticket;
        if sleeps {
            waiters.asleep |= bit(me);
        }
        sleeps
    })?;
    if !slept {
        return Ok(false);
    }
    m.options(
        &["wakes", "wakes after a slice"],
        |w| {
            // A copy, for the words are not to be changed here.
            let asleep = waiters(&mut (**w).clone()).sleeps(me);
            if !asleep { 1 } else { u8::from(slices) << 1 }
        },
        |w, option| {
            waiters(w).asleep &= !bit(me);
            option == 1
        },
    )
}

/// The waker's look at the arrivals, and all that follows it.
pub fn look_and_wake<P: Protocol>(
    m: &mut Memory<'_, P>,
    waiters: fn(&mut P::Words) -> &mut Waiters,
    mutant: Option<Mutant>,
) -> Step<()> {
    if m.step("looks whether somebody may sleep", |w| waiters(w).arrivals() != 0)? {
        wake_sleepers(m, waiters, mutant, false)?;
    }
    Ok(())
}

/// Wakes one sleeper, or all.
pub fn wake_sleepers<P: Protocol>(
    m: &mut Memory<'_, P>,
    waiters: fn(&mut P::Words) -> &mut Waiters,
    mutant: Option<Mutant>,
    all: bool,
) -> Step<()> {
    let arrivals = m.step("loads the arrivals", |w| waiters(w).arrivals)?;
    if mutant != Some(Mutant::NoEpoch) {
        m.step("adds to the epoch", |w| add(&mut waiters(w).epoch))?;
    }
    let woken = m.options(
        &["wakes the first sleeper", "wakes the last sleeper", "finds no sleeper"],
        |w| {
            let asleep = waiters(&mut (**w).clone()).asleep;
            let several = asleep.count_ones() > 1 && !all;
            let nobody = (1..=16).all(|id| asleep & bit(id) == 0 || !w.is_alive(id));
            u8::from(asleep != 0) | u8::from(several) << 1 | u8::from(nobody) << 2
        },
        |w, option| {
            let waiters = waiters(w);
            let chosen = match option {
                0 if all => waiters.asleep,
                0 => waiters.asleep & waiters.asleep.wrapping_neg(),
                1 => 1 << (15 - waiters.asleep.leading_zeros()),
                _ => 0,
            };
            waiters.asleep &= !chosen;
            waiters.woken |= chosen;
            chosen != 0
        },
    )?;
    if !woken {
        m.step("puts the arrivals back to none if nobody came", |w| {
            let waiters = waiters(w);
            if waiters.arrivals == arrivals || mutant == Some(Mutant::ArrivalsStored) {
                let resets = if mutant == Some(Mutant::ResetsNotCounted) { 0 } else { arrivals / WRAP + 1 };
                waiters.arrivals = resets % RESETS * WRAP;
            }
        })?;
    }
    Ok(())
}

/// Waiters, each of which takes one of the things that wakers bring.
#[derive(Clone, Debug)]
pub struct Waiting {
    /// How many wait, each for one thing.
    pub waiters: usize,
    /// How many bring one.
    pub wakers: usize,
    /// How they wake.
    pub wake: Wake,
    /// Instead: each waits for the first thing and leaves it, and all are woken, as by `Event` and the end of a `join`.
    pub all: bool,
    /// Whether who sleeps looks again after a slice.
    pub slices: bool,
    /// What is done wrong.
    pub mutant: Option<Mutant>,
}

/// What they wait for, and where.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Things {
    /// How many there are to take.
    things: u8,
    /// Who has brought one that is still in its processor's store buffer, a bit for each process.
    buffered: u16,
    waiters: Waiters,
}

/// What a process is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// To take a thing.
    Waiter,
    /// To bring a thing.
    Waker,
    /// The store buffer of the waker with this number.
    Buffer(u8),
}

type Mem<'a> = Memory<'a, Waiting>;

fn waiters(things: &mut Things) -> &mut Waiters {
    &mut things.waiters
}

impl Waiting {
    /// Whether this is the buffer of a waker that died before it stored anything.
    fn is_unused(&self, (_, role): &(usize, &Role)) -> bool {
        matches!(role, Role::Buffer(_))
    }

    fn attempt(&self, m: &mut Mem<'_>, label: &'static str) -> Step<bool> {
        let (me, all) = (m.me(), self.all);
        m.step(label, |w| {
            let there = w.things != 0;
            if there {
                w.things -= u8::from(!all);
                w.waiters.woken &= !bit(me);
            }
            there
        })
    }

    /// One round of a waiter; whether it took a thing.
    fn wait(&self, m: &mut Mem<'_>) -> Step<bool> {
        // What is on its way when the waiter arrives is there when it has settled.
        let under_way = if self.wake == Wake::Settled && self.mutant != Some(Mutant::SettlesTooShort) {
            let ticket = m.step("takes a ticket: the epoch", |w| w.waiters.epoch)?;
            let buffered = m.step("adds itself to the arrivals", |w| {
                arrive(&mut w.waiters.arrivals);
                w.buffered as u8
            })?;
            m.step_when("has settled", |w| w.buffered & u16::from(buffered) == 0, |_| ())?;
            ticket
        } else {
            prepare(m, waiters, self.mutant)?
        };
        if self.mutant != Some(Mutant::NoSecondLook) && self.attempt(m, "looks again")? {
            return Ok(true);
        }
        sleep(m, waiters, under_way, self.slices)?;
        self.attempt(m, "looks after its sleep")
    }

    fn bring(&self, m: &mut Mem<'_>) -> Step<()> {
        let me = m.me();
        let late = self.mutant == Some(Mutant::LookBeforeChange);
        let mut sleepers = false;
        if late {
            sleepers = m.step("looks whether somebody may sleep", |w| w.waiters.arrivals() != 0)?;
        }
        match self.wake {
            Wake::AfterSeqCst => m.step("brings a thing", |w| {
                w.things += 1;
                w.waiters.waking |= bit(me);
            })?,
            Wake::Fenced | Wake::Settled => {
                m.step("brings a thing, into its store buffer", |w| {
                    w.buffered |= bit(me);
                    w.waiters.waking |= bit(me);
                })?;
                if self.wake == Wake::Fenced && self.mutant != Some(Mutant::NoBarrier) {
                    m.step_when("passes the barrier", |w| w.buffered & bit(me) == 0, |_| ())?;
                }
            }
        }
        if !late {
            sleepers = m.step("looks whether somebody may sleep", |w| w.waiters.arrivals() != 0)?;
        }
        if sleepers {
            // An addition to a shared word empties the buffer.
            m.step_when("its store buffer is empty", |w| w.buffered & bit(me) == 0, |_| ())?;
            wake_sleepers(m, waiters, self.mutant, self.all)?;
        }
        m.step("has woken whom it had to", |w| w.waiters.waking &= !bit(me))
    }
}

impl Protocol for Waiting {
    type Words = Things;
    type Local = Role;

    fn start(&self) -> (Words<Things>, Vec<Role>) {
        let mut roles = vec![Role::Waiter; self.waiters];
        roles.resize(self.waiters + self.wakers, Role::Waker);
        if self.wake != Wake::AfterSeqCst {
            roles.extend(
                (self.waiters..self.waiters + self.wakers).map(|waker| Role::Buffer(waker as u8 + 1)),
            );
        }
        let things = Things { things: 0, buffered: 0, waiters: Waiters::default() };
        (Words::new(roles.len(), things), roles)
    }

    fn name(&self, process: usize) -> String {
        match process {
            _ if process < self.waiters => format!("waiter {}", process + 1),
            _ if process < self.waiters + self.wakers => format!("waker {}", process - self.waiters + 1),
            _ => format!("store buffer {}", process - self.waiters - self.wakers + 1),
        }
    }

    fn may_die(&self, process: usize) -> bool {
        process < self.waiters + self.wakers
    }

    fn run(&self, role: &Role, m: &mut Mem<'_>) -> Step<Option<Role>> {
        match role {
            Role::Waiter => {
                if self.wait(m)? {
                    return Ok(None);
                }
                Ok(Some(Role::Waiter))
            }
            Role::Waker => self.bring(m).map(|()| None),
            Role::Buffer(of) => {
                m.step_when(
                    "lets a store through",
                    |w| w.buffered & bit(*of) != 0,
                    |w| {
                        w.buffered &= !bit(*of);
                        w.things += 1;
                    },
                )?;
                Ok(None)
            }
        }
    }

    fn may_stay(&self, w: &Words<Things>, running: &[(usize, &Role)]) -> bool {
        let waits = |(_, role): &(usize, &Role)| **role == Role::Waiter;
        w.things == 0
            && w.buffered == 0
            && running.iter().all(|process| waits(process) || self.is_unused(process))
    }

    fn wrong_at_the_end(&self, w: &Words<Things>, stuck: &[(usize, &Role)]) -> Option<&'static str> {
        let waiting = stuck.iter().filter(|(_, role)| **role == Role::Waiter).count();
        if stuck.iter().any(|(_, role)| **role == Role::Waker) {
            return Some("a waker hangs");
        }
        let left = if self.all && w.things > 0 { waiting } else { waiting.min(w.things.into()) };
        let excused = if self.slices { 0 } else { w.waiters.lost_with_the_dead(|id| w.is_alive(id)) };
        // One waker that wakes all may leave all of them.
        let excused = if self.all && excused > 0 { waiting } else { excused as usize };
        (left > excused).then_some("a wake-up was lost")
    }
}
