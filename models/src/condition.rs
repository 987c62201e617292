//! The condition: places, turns, notifications, and who inherits one that a dead waiter had.
//!
//! | here | in `procession-core/src/objects/condition.rs` |
//! | --- | --- |
//! | `At::Come` | `Condition::wait` up to `release_all`: `register`, with `free_dead` where no place is free |
//! | `At::Sleep` | `Occupied::sleep`: the exchange to `ASLEEP`, the look, the futex wait, `take_over` after a slice, `give_up` at the deadline |
//! | `take_over` | `Occupied::take_over`, and `free_dead`, by everybody and not only by who has the turn |
//! | `may_inherit`, `has_heir`, `free_dead` | the methods of `Condition` of these names |
//! | `At::Back` | the rest of `Condition::wait`: `acquire_again`, the stores of 0 |
//! | `notify_oldest`, `notify_one` | the methods of `Condition` of these names |
//!
//! The lock that the condition goes with is one step (`crate::lock` takes it apart). A futex wake finds a sleeper that was killed, or
//! does not find it any more. Checked: nobody returns with a notification that was made before it began to wait, nor two with one;
//! while a notification was made for which somebody lives who waited before it, and waits, it reaches somebody; all who are
//! notified or have a deadline return; whoever finds no place finds all of them with the living; no place is left with
//! somebody who has returned.
//!
//! Left out: unwinding; interruption, which ends a wait as a deadline does; the spinning before the sleep.

use crate::machine::{Memory, Protocol, Step, Words};

/// What is done wrong on purpose, to see that it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// Nobody takes over what a dead waiter was notified of.
    NotTakenOver,
    /// Everybody takes it over, also who began to wait later.
    AnyInherits,
    /// The places of the dead are freed, heirs or not.
    FreedWithHeirs,
    /// A waiter frees its place before it has the lock again.
    FreedBeforeLock,
    /// A waiter whose time is up stores 0.
    GivenUpByStore,
    /// A waiter that goes to sleep stores that.
    AsleepByStore,
}

/// Waiters and notifiers.
#[derive(Clone, Debug)]
pub struct Conditions {
    /// For each waiter, whether it has a deadline.
    pub waiters: Vec<bool>,
    /// For each notifier, how many it notifies.
    pub notifiers: Vec<u8>,
    /// How many of the first waiters wait already.
    pub waiting: u8,
    /// How many places there are.
    pub places: u8,
    /// What is done wrong.
    pub mutant: Option<Mutant>,
}

const FREE: u8 = 0;
const CLAIMED: u8 = 1;
const WAITING: u8 = 2;
const ASLEEP: u8 = 3;
const NOTIFIED: u8 = 4;

/// Whose a place is and its state; the waiter's turn, and the turn that came next when it was notified.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Place {
    word: (u8, u8),
    turn: (u8, u8),
}

/// The words of a condition, the kernel's sleepers, and what was notified.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Condition {
    lock: u8,
    next: u8,
    places: Vec<Place>,
    /// The place on which each process sleeps, plus 1.
    asleep: Vec<u8>,
    /// Noted: each waiter's turn.
    turns: Vec<u8>,
    /// Noted: for each notification that was begun, and that was made, the turn that came next.
    begun: Vec<u8>,
    made: Vec<u8>,
    /// Noted: the turns of those who returned notified.
    returned: Vec<u8>,
}

/// Where a process is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum At {
    /// Before its wait.
    Come,
    /// Waits at this place.
    Sleep(u8),
    /// On its way to return: its own place if it was notified there, and the one whose notification it inherited, each plus 1 or 0.
    Back(u8, u8),
    /// Before its notification.
    Notify,
}

type Mem<'a> = Memory<'a, Conditions>;

fn is_waiting(state: u8) -> bool {
    state == WAITING || state == ASLEEP
}

impl Conditions {
    fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    fn lock(&self, m: &mut Mem<'_>) -> Step<()> {
        let me = m.me();
        m.step_when("takes the lock", |w| w.lock == 0 || !w.is_alive(w.lock), |w| w.lock = me)
    }

    fn exchange(
        &self,
        m: &mut Mem<'_>,
        label: &'static str,
        place: u8,
        from: (u8, u8),
        to: (u8, u8),
    ) -> Step<bool> {
        m.step(label, |w| {
            let word = &mut w.places[usize::from(place)].word;
            let same = *word == from;
            if same {
                *word = to;
            }
            same
        })
    }

    fn look(&self, m: &mut Mem<'_>, place: u8) -> Step<(u8, u8)> {
        m.step("looks at a place", |w| w.places[usize::from(place)].word)
    }

    fn claim(&self, m: &mut Mem<'_>) -> Step<Option<u8>> {
        let me = m.me();
        for place in 0..self.places {
            if self.exchange(m, "claims a place if it is free", place, (0, FREE), (me, CLAIMED))? {
                return Ok(Some(place));
            }
        }
        Ok(None)
    }

    /// Under the lock.
    fn register(&self, m: &mut Mem<'_>) -> Step<Option<u8>> {
        let me = m.me();
        let mut claimed = self.claim(m)?;
        let mut deaths = 0;
        if claimed.is_none() {
            deaths = m.step("looks for the dead", |w| w.deaths())?;
            self.free_dead(m)?;
            claimed = self.claim(m)?;
        }
        let Some(place) = claimed else {
            m.step("finds no place", |w| {
                let kept = |place: &Place| {
                    let heirs = || w.places.iter().any(|heir| is_waiting(heir.word.1));
                    // Somebody may have given up a place since the look at it.
                    place.word.1 == FREE || w.is_alive(place.word.0) || place.word.1 == NOTIFIED && heirs()
                };
                let full = w.places.iter().all(kept) || w.deaths() != deaths;
                w.must(full, "there is no place though the dead have one");
            })?;
            return Ok(None);
        };
        let at = usize::from(place);
        let turn = m.step("takes a turn", |w| {
            w.next += 1;
            w.turns[usize::from(me) - 1] = w.next - 1;
            w.next - 1
        })?;
        m.step("stores its turn", |w| w.places[at].turn = (turn, 0))?;
        m.step("begins to wait", |w| w.places[at].word = (me, WAITING))?;
        Ok(Some(place))
    }

    fn may_inherit(&self, w: &Condition, heir: u8, place: u8) -> bool {
        let made = w.places[usize::from(place)].turn.1;
        self.is(Mutant::AnyInherits) || made > w.places[usize::from(heir)].turn.0
    }

    fn free_dead(&self, m: &mut Mem<'_>) -> Step<()> {
        for place in 0..self.places {
            let word = m.step("looks whether a place is a dead one's", |w| {
                let word = w.places[usize::from(place)].word;
                if w.is_alive(word.0) { (0, FREE) } else { word }
            })?;
            let heirs = !self.is(Mutant::FreedWithHeirs)
                && word.1 == NOTIFIED
                && m.step("looks for heirs", |w| {
                    let waits = |heir: &u8| is_waiting(w.places[usize::from(*heir)].word.1);
                    (0..self.places).any(|heir| waits(&heir) && self.may_inherit(w, heir, place))
                })?;
            if word.0 != 0 && !heirs {
                self.exchange(m, "frees a dead one's place", place, word, (0, FREE))?;
            }
        }
        Ok(())
    }

    /// Notifies up to so many who began to wait before `made`.
    fn notify_oldest(&self, m: &mut Mem<'_>, count: u8, made: u8) -> Step<()> {
        let mut waiting = Vec::new();
        for place in 0..self.places {
            if is_waiting(self.look(m, place)?.1) {
                let turn = m.step("looks at its turn", |w| w.places[usize::from(place)].turn.0)?;
                waiting.push((turn, place));
            }
        }
        waiting.sort_unstable();
        let mut left = count;
        for (turn, place) in waiting {
            if left > 0 && turn < made && self.notify_one(m, place, made)? {
                left -= 1;
            }
        }
        Ok(())
    }

    fn notify_one(&self, m: &mut Mem<'_>, place: u8, made: u8) -> Step<bool> {
        let at = usize::from(place);
        let turn = m.step("looks at a turn", |w| w.places[at].turn.0)?;
        m.step("stores when the notification is made", |w| w.places[at].turn = (turn, made))?;
        loop {
            let word = self.look(m, place)?;
            if !is_waiting(word.1) {
                return Ok(false);
            }
            let notified = (word.0, NOTIFIED);
            if !self.exchange(m, "notifies", place, word, notified)? {
                continue;
            }
            if word.1 != ASLEEP {
                return Ok(true);
            }
            let woken = m.options(
                &["wakes", "wakes nobody"],
                |w| {
                    let sleepers = (0..w.asleep.len()).filter(|&process| w.asleep[process] == place + 1);
                    let found = sleepers.clone().next().is_some();
                    let living = sleepers.clone().any(|process| w.is_alive(process as u8 + 1));
                    u8::from(found) | u8::from(!living) << 1
                },
                |w, option| {
                    for sleeper in &mut w.asleep {
                        if *sleeper == place + 1 && option == 0 {
                            *sleeper = 0;
                        }
                    }
                    option == 0
                },
            )?;
            if woken || !m.step("looks whether it is a dead one's", |w| !w.is_alive(word.0))? {
                return Ok(true);
            }
            return Ok(!self.exchange(m, "takes the notification back", place, notified, (0, FREE))?);
        }
    }

    /// Whether the waiter has stopped waiting; if not it is notified.
    fn give_up(&self, m: &mut Mem<'_>, place: u8) -> Step<bool> {
        let me = m.me();
        if self.is(Mutant::GivenUpByStore) {
            m.step("gives up", |w| w.places[usize::from(place)].word = (0, FREE))?;
            return Ok(true);
        }
        Ok(self.exchange(m, "gives up, asleep", place, (me, ASLEEP), (0, FREE))?
            || self.exchange(m, "gives up, awake", place, (me, WAITING), (0, FREE))?)
    }

    fn take_over(&self, m: &mut Mem<'_>, mine: u8) -> Step<Option<At>> {
        let me = m.me();
        if self.is(Mutant::NotTakenOver) {
            return Ok(None);
        }
        self.free_dead(m)?;
        for place in (0..self.places).filter(|place| *place != mine) {
            let word = self.look(m, place)?;
            if word.1 != NOTIFIED {
                continue;
            }
            let may = m.step("looks whether it may take a dead one's notification", |w| {
                self.may_inherit(w, mine, place) && !w.is_alive(word.0)
            })?;
            if !may || !self.exchange(m, "takes it over", place, word, (me, NOTIFIED))? {
                continue;
            }
            if self.give_up(m, mine)? {
                return Ok(Some(At::Back(0, place + 1)));
            }
            m.step("leaves it to the dead one again", |w| w.places[usize::from(place)].word = word)?;
            return Ok(Some(At::Back(mine + 1, 0)));
        }
        Ok(None)
    }

    fn sleep(&self, m: &mut Mem<'_>, place: u8) -> Step<At> {
        let (me, at) = (m.me(), usize::from(place));
        if self.is(Mutant::AsleepByStore) {
            m.step("falls asleep", |w| w.places[at].word = (me, ASLEEP))?;
        } else {
            self.exchange(m, "notes that it sleeps", place, (me, WAITING), (me, ASLEEP))?;
        }
        if self.look(m, place)?.1 == NOTIFIED {
            return Ok(At::Back(place + 1, 0));
        }
        let slept = m.step("asks the kernel to sleep if it is not notified", |w| {
            let sleeps = w.places[at].word == (me, ASLEEP);
            if sleeps {
                w.asleep[usize::from(me) - 1] = place + 1;
            }
            sleeps
        })?;
        if !slept {
            return Ok(At::Sleep(place));
        }
        let deadline = self.waiters[usize::from(me) - 1];
        let how = m.options(
            &["wakes", "wakes after a slice", "wakes at its deadline"],
            |w| if w.asleep[usize::from(me) - 1] == 0 { 1 } else { 2 | u8::from(deadline) << 2 },
            |w, option| {
                w.asleep[usize::from(me) - 1] = 0;
                option
            },
        )?;
        match how {
            1 => Ok(self.take_over(m, place)?.unwrap_or(At::Sleep(place))),
            2 if self.give_up(m, place)? => Ok(At::Back(0, 0)),
            2 => Ok(At::Back(place + 1, 0)),
            _ => Ok(At::Sleep(place)),
        }
    }

    fn back(&self, m: &mut Mem<'_>, mine: u8, inherited: u8) -> Step<()> {
        let early = self.is(Mutant::FreedBeforeLock);
        if !early {
            self.lock(m)?;
        }
        for place in [inherited, mine] {
            if let Some(place) = place.checked_sub(1) {
                self.use_up(m, place)?;
            }
        }
        if early {
            self.lock(m)?;
        }
        m.step("returns and releases the lock", |w| w.lock = 0)
    }

    /// The notification has reached its waiter, which holds the lock: should it die now, the next owner is told.
    fn use_up(&self, m: &mut Mem<'_>, place: u8) -> Step<()> {
        let me = m.me();
        m.step("frees the place of its notification", |w| {
            w.places[usize::from(place)].word = (0, FREE);
            if w.lock != me {
                return;
            }
            let turn = w.turns[usize::from(me) - 1];
            w.returned.push(turn);
            w.returned.sort_unstable();
            let right = w.returned.iter().all(|turn| {
                let later = w.returned.iter().filter(|other| *other >= turn).count();
                later <= w.begun.iter().filter(|made| **made > *turn).count()
            });
            w.must(right, "more return notified than were notified after they began to wait");
        })
    }

    fn notify(&self, m: &mut Mem<'_>, count: u8) -> Step<()> {
        self.lock(m)?;
        let made = m.step("begins to notify", |w| {
            let (waiting, next) = (w.waiting(count), w.next);
            w.begun.extend(std::iter::repeat_n(next, waiting.into()));
            (next, waiting)
        })?;
        self.notify_oldest(m, count, made.0)?;
        m.step("has notified and releases the lock", |w| {
            w.made.extend(std::iter::repeat_n(made.0, made.1.into()));
            w.lock = 0;
        })
    }
}

impl Condition {
    fn waiting(&self, most: u8) -> u8 {
        (self.places.iter().filter(|place| is_waiting(place.word.1)).count() as u8).min(most)
    }

    /// Whether a waiter with this turn ought to have been notified.
    fn is_owed(&self, turn: u8) -> bool {
        self.made.iter().filter(|made| **made > turn).count() > self.returned.len()
    }
}

impl Protocol for Conditions {
    type Words = Condition;
    type Local = At;

    fn start(&self) -> (Words<Condition>, Vec<At>) {
        let mut locals = vec![At::Come; self.waiters.len()];
        locals.resize(self.waiters.len() + self.notifiers.len(), At::Notify);
        let mut places = vec![Place::default(); self.places.into()];
        let mut turns = vec![0; self.waiters.len()];
        for waiter in 0..self.waiting {
            let at = usize::from(waiter);
            locals[at] = At::Sleep(waiter);
            places[at] = Place { word: (waiter + 1, WAITING), turn: (waiter + 1, 0) };
            turns[at] = waiter + 1;
        }
        let condition = Condition {
            lock: 0,
            next: self.waiting + 1,
            places,
            asleep: vec![0; locals.len()],
            turns,
            begun: Vec::new(),
            made: Vec::new(),
            returned: Vec::new(),
        };
        (Words::new(locals.len(), condition), locals)
    }

    fn name(&self, process: usize) -> String {
        match process.checked_sub(self.waiters.len()) {
            None => format!("waiter {}", process + 1),
            Some(notifier) => format!("notifier {}", notifier + 1),
        }
    }

    fn run(&self, at: &At, m: &mut Mem<'_>) -> Step<Option<At>> {
        let me = usize::from(m.me()) - 1;
        match *at {
            At::Come => {
                self.lock(m)?;
                let place = self.register(m)?;
                m.step("releases the lock", |w| w.lock = 0)?;
                Ok(place.map(At::Sleep))
            }
            At::Sleep(place) => self.sleep(m, place).map(Some),
            At::Back(mine, inherited) => self.back(m, mine, inherited).map(|()| None),
            At::Notify => self.notify(m, self.notifiers[me - self.waiters.len()]).map(|()| None),
        }
    }

    fn may_stay(&self, w: &Words<Condition>, running: &[(usize, &At)]) -> bool {
        running.iter().all(|(process, at)| {
            matches!(at, At::Sleep(_)) && !self.waiters[*process] && !w.is_owed(w.turns[*process])
        })
    }

    fn wrong_at_the_end(&self, w: &Words<Condition>, stuck: &[(usize, &At)]) -> Option<&'static str> {
        if !stuck.is_empty() {
            return Some("somebody hangs");
        }
        let left = w.places.iter().any(|place| w.is_alive(place.word.0));
        left.then_some("somebody who has returned still has a place")
    }
}
