//! The barrier: parties that arrive and are released together, or told that it is broken, whoever dies.
//!
//! | here | in `procession-core/src/objects/barrier.rs` |
//! | --- | --- |
//! | `lock` | `Barrier::lock`: the internal lock, one step (`crate::lock` takes it apart), and `break_all` after a death |
//! | `At::Arrive` | `Barrier::enter`: one round of its loop; `free_place`, `somebody_died` |
//! | `At::TooEarly` | the sleep in `enter`, one step that may happen when there is something to find |
//! | `At::Act` | the action in `Barrier::wait`, and `EndOfAction` |
//! | `At::Wait` | `wait_for_verdict`: the verdict, the look after a slice with `was_left_half_changed`, the deadline |
//! | `end_round` | `release_all`, `break_all`, `end_round`: store by store |
//! | `At::Abort`, `At::Reset` | `Barrier::abort` and `reset` |
//!
//! Whether a round lasted long enough for the last party to look for the dead is left open. Checked: nobody is released before as many
//! have arrived as there are parties; who waits with a party that died in the round, or for one that died as it changed the
//! barrier, is told that it is broken; nobody hangs but for parties that do not come; after a reset the barrier is as new.
//!
//! Left out: waking (`crate::wait`), an interrupted wait, a deadline before a place was found.

use crate::machine::{Memory, Protocol, Step, Words};

/// What is done wrong on purpose, to see that it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// Nobody takes the internal lock from the dead.
    NoOwnerRecovery,
    /// Who does so does not break the barrier.
    NotBroken,
    /// Who waits does not look for parties that died.
    DeadNotLookedFor,
    /// Who waits does not look for somebody that died with the internal lock.
    HolderNotLookedFor,
    /// The end of the action releases the round, also when that was broken or the barrier reset meanwhile.
    ActionNotJudged,
    /// A dead party's place is never used again.
    PlaceKept,
    /// At the deadline a party breaks the barrier without a look whether it was just released.
    BrokenAtDeadline,
}

/// Parties, and who aborts and resets.
#[derive(Clone, Debug)]
pub struct Barriers {
    /// For each party in how many rounds it takes part.
    pub rounds: Vec<u8>,
    /// How many parties the barrier is for.
    pub parties: u8,
    /// The last to arrive runs an action.
    pub acts: bool,
    /// The first party has a deadline.
    pub deadline: bool,
    /// Somebody aborts at some time.
    pub aborter: bool,
    /// Somebody resets the barrier whenever it is broken; parties then come again.
    pub resetter: bool,
    /// What is done wrong.
    pub mutant: Option<Mutant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    Filling,
    Acting,
    Broken,
}

const WAITING: u8 = 1;
const RELEASED: u8 = 2;
const BROKEN: u8 = 3;

/// The words of a barrier.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Barrier {
    mutex: u8,
    phase: Phase,
    arrived: u8,
    /// Whose and in which state; two for each party.
    places: Vec<(u8, u8)>,
    /// Noted: how many have arrived in this round.
    in_round: u8,
    /// Noted: the verdict that each process was given last.
    verdicts: Vec<u8>,
    /// Noted: how many rounds each process has come through.
    through: Vec<u8>,
}

/// Where a process is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum At {
    /// Before a wait; how many rounds are left.
    Arrive(u8),
    /// No place was free, or the action ran.
    TooEarly(u8),
    /// The last to arrive, at this place, before its action.
    Act(u8, u8),
    /// Waits at this place.
    Wait(u8, u8),
    /// Was told that the barrier is broken.
    Broken(u8),
    /// About to abort.
    Abort,
    /// Waits for the barrier to be broken.
    Reset,
}

type Mem<'a> = Memory<'a, Barriers>;

impl Barrier {
    fn is_free(&self, place: &(u8, u8), is_dead: impl Fn(u8) -> bool, keep: bool) -> bool {
        place.0 == 0 || !keep && place.1 != WAITING && is_dead(place.0)
    }
}

impl Words<Barrier> {
    fn somebody_died(&self) -> bool {
        self.places.iter().any(|(owner, state)| *state == WAITING && !self.is_alive(*owner))
    }

    fn is_abandoned(&self) -> bool {
        self.mutex != 0 && !self.is_alive(self.mutex)
    }

    fn free_place(&self, keep: bool) -> Option<usize> {
        let dead = |owner| !self.is_alive(owner);
        let free = self.places.iter().position(|place| place.0 == 0);
        free.or_else(|| self.places.iter().position(|place| self.is_free(place, dead, keep)))
    }
}

impl Barriers {
    fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    fn lock(&self, m: &mut Mem<'_>) -> Step<()> {
        let (me, stays) = (m.me(), self.is(Mutant::NoOwnerRecovery));
        let recovered = m.step_when(
            "takes the internal lock",
            |w| w.mutex == 0 || !stays && w.is_abandoned(),
            |w| std::mem::replace(&mut w.mutex, me) != 0,
        )?;
        if recovered && !self.is(Mutant::NotBroken) { self.break_all(m) } else { Ok(()) }
    }

    fn unlock(&self, m: &mut Mem<'_>) -> Step<()> {
        m.step("releases the internal lock", |w| w.mutex = 0)
    }

    fn break_all(&self, m: &mut Mem<'_>) -> Step<()> {
        m.step("stores that it is broken", |w| w.phase = Phase::Broken)?;
        self.end_round(m, BROKEN)
    }

    fn release_all(&self, m: &mut Mem<'_>) -> Step<()> {
        let parties = self.parties;
        m.step("stores that the next round fills", |w| {
            let all = w.in_round == parties;
            w.must(all, "a round is released before all have arrived");
            w.phase = Phase::Filling;
        })?;
        self.end_round(m, RELEASED)
    }

    fn end_round(&self, m: &mut Mem<'_>, verdict: u8) -> Step<()> {
        m.step("stores that nobody has arrived", |w| {
            w.arrived = 0;
            w.in_round = 0;
        })?;
        for place in 0..usize::from(self.parties) * 2 {
            // Only with the lock does a place become one at which somebody waits, or cease to be one.
            let (owner, state) = m.guarded(|w| w.places[place]);
            if state == WAITING {
                m.step("stores a verdict", |w| {
                    w.places[place] = (owner, verdict);
                    w.verdicts[usize::from(owner) - 1] = verdict;
                })?;
            }
        }
        Ok(())
    }

    fn arrive(&self, m: &mut Mem<'_>, rounds: u8) -> Step<At> {
        let (me, keep) = (m.me(), self.is(Mutant::PlaceKept));
        self.lock(m)?;
        let phase = m.guarded(|w| w.phase as u8);
        if phase == Phase::Broken as u8 {
            self.unlock(m)?;
            return Ok(At::Broken(rounds));
        }
        let mut place = 0;
        if phase == Phase::Filling as u8 {
            place =
                m.step("looks for a free place", |w| w.free_place(keep).map_or(0, |place| place as u8 + 1))?;
        }
        let Some(place) = place.checked_sub(1) else {
            if m.step("looks whether a party died", |w| w.somebody_died())? {
                self.break_all(m)?;
            }
            self.unlock(m)?;
            return Ok(At::TooEarly(rounds));
        };
        m.step("takes the place", |w| {
            w.places[usize::from(place)] = (me, WAITING);
            w.in_round += 1;
        })?;
        let index = m.guarded(|w| w.arrived);
        m.step("counts itself", |w| w.arrived = index + 1)?;
        let mut acts = false;
        if index + 1 >= self.parties {
            let dead = m.options(
                &["finds that no party died", "finds that a party died", "does not look for the dead"],
                |w| if w.somebody_died() { 0b110 } else { 0b101 },
                |_, option| option == 1,
            )?;
            if dead {
                self.break_all(m)?;
            } else if self.acts {
                m.step("stores that the action runs", |w| w.phase = Phase::Acting)?;
                acts = true;
            } else {
                self.release_all(m)?;
            }
        }
        self.unlock(m)?;
        Ok(if acts { At::Act(place, rounds) } else { At::Wait(place, rounds) })
    }

    fn waits(&self, m: &mut Mem<'_>, place: u8) -> Step<bool> {
        let me = m.me();
        m.step("looks whether it waits", |w| w.places[usize::from(place)] == (me, WAITING))
    }

    fn act(&self, m: &mut Mem<'_>, place: u8) -> Step<()> {
        if !self.waits(m, place)? {
            return Ok(());
        }
        m.step("runs the action", |_| ())?;
        self.lock(m)?;
        if self.is(Mutant::ActionNotJudged) || self.waits(m, place)? {
            self.release_all(m)?;
        }
        self.unlock(m)
    }

    fn wait(&self, m: &mut Mem<'_>, place: u8, rounds: u8) -> Step<At> {
        let me = m.me();
        let at = usize::from(place);
        let blind = self.is(Mutant::DeadNotLookedFor);
        let half_blind = self.is(Mutant::HolderNotLookedFor);
        let deadline = self.deadline && me == 1;
        let how = m.options(
            &["finds a verdict", "finds that somebody died", "reaches its deadline"],
            |w| {
                let died = !blind && w.somebody_died() || !half_blind && w.is_abandoned();
                let waits = w.places[at] == (me, WAITING);
                u8::from(!waits) | u8::from(waits && died) << 1 | u8::from(waits && deadline) << 2
            },
            |_, option| option,
        )?;
        if how == 1 {
            self.lock(m)?;
            self.break_all(m)?;
            self.unlock(m)?;
            return Ok(At::Wait(place, rounds));
        }
        if how == 2 {
            self.lock(m)?;
            let late = self.is(Mutant::BrokenAtDeadline);
            if self.waits(m, place)? {
                self.break_all(m)?;
            } else if late {
                m.step("takes it for broken", |w| w.places[at] = (me, BROKEN))?;
            }
        }
        let released = m.step("reads its verdict", |w| {
            let (owner, state) = w.places[at];
            w.must(owner == me, "a party's place was given to another");
            let given = w.verdicts[usize::from(me) - 1];
            w.must(state == given, "a party is told another verdict than the rest of its round");
            state == RELEASED
        })?;
        if how == 2 {
            self.unlock(m)?;
        }
        m.step("leaves its place", |w| {
            w.places[at] = (0, 0);
            w.through[usize::from(me) - 1] += u8::from(released);
        })?;
        Ok(if released { At::Arrive(rounds - 1) } else { At::Broken(rounds) })
    }

    fn resetter(&self) -> u8 {
        (self.rounds.len() + usize::from(self.aborter)) as u8 + 1
    }
}

impl Protocol for Barriers {
    type Words = Barrier;
    type Local = At;

    fn start(&self) -> (Words<Barrier>, Vec<At>) {
        let mut locals: Vec<At> = self.rounds.iter().map(|rounds| At::Arrive(*rounds)).collect();
        if self.aborter {
            locals.push(At::Abort);
        }
        if self.resetter {
            locals.push(At::Reset);
        }
        let barrier = Barrier {
            mutex: 0,
            phase: Phase::Filling,
            arrived: 0,
            places: vec![(0, 0); usize::from(self.parties) * 2],
            in_round: 0,
            verdicts: vec![0; locals.len()],
            through: vec![0; locals.len()],
        };
        (Words::new(locals.len(), barrier), locals)
    }

    fn name(&self, process: usize) -> String {
        match process {
            _ if process < self.rounds.len() => format!("party {}", process + 1),
            _ if process + 1 == usize::from(self.resetter()) => "the resetter".to_owned(),
            _ => "the aborter".to_owned(),
        }
    }

    fn run(&self, at: &At, m: &mut Mem<'_>) -> Step<Option<At>> {
        Ok(Some(match *at {
            At::Arrive(0) => return Ok(None),
            At::Arrive(rounds) => self.arrive(m, rounds)?,
            At::TooEarly(rounds) => {
                let keep = self.is(Mutant::PlaceKept);
                m.step_when(
                    "looks again",
                    |w| match w.phase {
                        Phase::Filling => w.free_place(keep).is_some() || w.somebody_died(),
                        Phase::Acting => w.somebody_died() || w.is_abandoned(),
                        Phase::Broken => true,
                    },
                    |_| (),
                )?;
                At::Arrive(rounds)
            }
            At::Act(place, rounds) => {
                self.act(m, place)?;
                At::Wait(place, rounds)
            }
            At::Wait(place, rounds) => self.wait(m, place, rounds)?,
            At::Broken(_) if !self.resetter => return Ok(None),
            At::Broken(rounds) => {
                let resetter = self.resetter();
                let again = m.options(
                    &["comes again", "comes no more"],
                    |w| u8::from(w.phase != Phase::Broken) | u8::from(!w.is_alive(resetter)) << 1,
                    |_, option| option == 0,
                )?;
                if !again {
                    return Ok(None);
                }
                At::Arrive(rounds)
            }
            At::Abort => {
                self.lock(m)?;
                self.break_all(m)?;
                self.unlock(m)?;
                return Ok(None);
            }
            At::Reset => {
                m.step_when("finds it broken", |w| w.phase == Phase::Broken || w.is_abandoned(), |_| ())?;
                self.lock(m)?;
                self.break_all(m)?;
                m.step("stores that a round fills", |w| w.phase = Phase::Filling)?;
                self.unlock(m)?;
                At::Reset
            }
        }))
    }

    fn wrong_at_the_end(&self, w: &Words<Barrier>, stuck: &[(usize, &At)]) -> Option<&'static str> {
        let parties: Vec<&At> = stuck.iter().map(|(_, at)| *at).filter(|at| **at != At::Reset).collect();
        if !parties.iter().all(|at| matches!(at, At::Wait(..))) {
            return Some("a party hangs");
        }
        if !parties.is_empty() && (w.phase != Phase::Filling || w.somebody_died() || w.is_abandoned()) {
            return Some("a party waits for the dead, or at a broken barrier");
        }
        if parties.len() >= self.parties.into() {
            return Some("all parties wait");
        }
        let came = |(process, rounds): (usize, &u8)| w.through[process] == *rounds;
        if self.resetter && w.deaths() == 0 && !self.rounds.iter().enumerate().all(came) {
            return Some("a party did not come through though nobody died");
        }
        None
    }
}
