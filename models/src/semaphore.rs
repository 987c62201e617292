//! The robust semaphore: permits that know their holders.
//!
//! | here | in `procession-core/src/objects/semaphore.rs` |
//! | --- | --- |
//! | `take` | `Semaphore::take_word`: the look at each permit, the exchange |
//! | `release` | `release_word` |
//! | `free_dead` | the method of that name |
//! | `At::Wait` | the sleep in `wait_for`: one step, which may happen when a permit is free or a dead process's |
//!
//! Checked: no more have a permit than there are; who releases one had one; who waits gets one as soon as one is free or its holder
//! dead; in the end all permits of the living are free. Left out: waking (`crate::wait`); that a process may have several threads.

use crate::machine::{Memory, Protocol, Step, Words};

/// What is done wrong on purpose, to see that it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// A permit is taken by a store.
    TakenByStore,
    /// A dead process's permit is freed by a store.
    FreedByStore,
    /// Nobody frees the permits of the dead.
    DeadKeep,
    /// Who frees the permits of the dead takes everybody for dead.
    LivingFreed,
}

/// Processes that take permits and give them back.
#[derive(Clone, Debug)]
pub struct Semaphores {
    /// How many permits there are.
    pub permits: u8,
    /// For each process, how many it takes, one after the other, before it gives all back; and how often.
    pub processes: Vec<(u8, u8)>,
    /// What is done wrong.
    pub mutant: Option<Mutant>,
}

/// The permits.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Permits {
    holders: Vec<u8>,
    /// Noted: how many each process has.
    has: Vec<u8>,
}

/// Where a process is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum At {
    /// Before it takes one; how many it has, and how many rounds are left.
    Take(u8, u8),
    /// None was free.
    Wait(u8, u8),
    /// Before it gives one back.
    Give(u8, u8),
}

type Mem<'a> = Memory<'a, Semaphores>;

impl Semaphores {
    fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    fn take(&self, m: &mut Mem<'_>) -> Step<bool> {
        let (me, permits) = (m.me(), self.permits);
        let by_store = self.is(Mutant::TakenByStore);
        for permit in 0..usize::from(permits) {
            if m.step("looks whether a permit is free", |w| w.holders[permit])? != 0 {
                continue;
            }
            let taken = m.step("takes it if it is free", |w| {
                let taken = w.holders[permit] == 0 || by_store;
                if taken {
                    w.holders[permit] = me;
                    w.has[usize::from(me) - 1] += 1;
                    let living = (1..).zip(&w.has).filter(|(id, _)| w.is_alive(*id)).map(|(_, has)| has);
                    let right = living.sum::<u8>() <= permits;
                    w.must(right, "more have a permit than there are");
                }
                taken
            })?;
            if taken {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn free_dead(&self, m: &mut Mem<'_>) -> Step<()> {
        for permit in 0..usize::from(self.permits) {
            let holder = m.step("looks whose a permit is", |w| w.holders[permit])?;
            let any = self.is(Mutant::LivingFreed);
            if holder == 0 || !m.step("looks whether its holder is dead", |w| any || !w.is_alive(holder))? {
                continue;
            }
            let by_store = self.is(Mutant::FreedByStore);
            m.step("frees it if it is still that one's", |w| {
                if w.holders[permit] == holder || by_store {
                    w.holders[permit] = 0;
                }
            })?;
        }
        Ok(())
    }

    fn release(&self, m: &mut Mem<'_>) -> Step<()> {
        let me = m.me();
        for permit in 0..usize::from(self.permits) {
            if m.step("looks whether a permit is its own", |w| w.holders[permit])? == me {
                return m.step("gives it back", |w| {
                    let mine = w.holders[permit] == me;
                    w.must(mine, "a living process's permit was taken from it");
                    w.holders[permit] = 0;
                    w.has[usize::from(me) - 1] -= 1;
                });
            }
        }
        m.step("finds none to give back", |w| w.must(false, "a living process's permit was taken from it"))
    }
}

impl Protocol for Semaphores {
    type Words = Permits;
    type Local = At;

    fn start(&self) -> (Words<Permits>, Vec<At>) {
        let locals: Vec<At> = self.processes.iter().map(|(_, rounds)| At::Take(0, *rounds)).collect();
        let permits = Permits { holders: vec![0; self.permits.into()], has: vec![0; locals.len()] };
        (Words::new(locals.len(), permits), locals)
    }

    fn name(&self, process: usize) -> String {
        format!("process {}", process + 1)
    }

    fn run(&self, at: &At, m: &mut Mem<'_>) -> Step<Option<At>> {
        let wants = self.processes[usize::from(m.me()) - 1].0;
        let next = |has: u8, rounds| if has < wants { At::Take(has, rounds) } else { At::Give(has, rounds) };
        Ok(Some(match *at {
            At::Take(_, 0) => return Ok(None),
            At::Take(has, rounds) => match self.take(m)? {
                true => next(has + 1, rounds),
                false => At::Wait(has, rounds),
            },
            At::Wait(has, rounds) => {
                let deaf = self.is(Mutant::DeadKeep);
                let free = m.options(
                    &["finds one free", "finds that a holder is dead"],
                    |w| {
                        let free = w.holders.contains(&0);
                        let dead = |holder: &u8| *holder != 0 && (!w.is_alive(*holder));
                        let died = !deaf && w.holders.iter().any(dead) || self.is(Mutant::LivingFreed);
                        u8::from(free) | u8::from(died) << 1
                    },
                    |_, option| option == 0,
                )?;
                if !free {
                    self.free_dead(m)?;
                }
                At::Take(has, rounds)
            }
            At::Give(0, rounds) => At::Take(0, rounds - 1),
            At::Give(has, rounds) => {
                self.release(m)?;
                At::Give(has - 1, rounds)
            }
        }))
    }

    fn wrong_at_the_end(&self, w: &Words<Permits>, stuck: &[(usize, &At)]) -> Option<&'static str> {
        if !stuck.is_empty() {
            return Some("somebody waits for a permit that is free, or a dead process's");
        }
        let kept = w.holders.iter().any(|holder| w.is_alive(*holder));
        kept.then_some("a permit is with somebody who has given it back")
    }
}
