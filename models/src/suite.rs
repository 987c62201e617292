//! Which models are explored, with which bounds, and which mistakes must be found in them.

use crate::barrier::{self, Barriers};
use crate::check::{Outcome, check, check_that_all_ends};
use crate::condition::{self, Conditions};
use crate::delivery::{self, Tasks, Use};
use crate::lock::{self, Kind, Locks};
use crate::machine::{Machine, Protocol};
use crate::ring::{self, Ring};
use crate::semaphore::{self, Semaphores};
use crate::wait::{self, Waiting, Wake};
use crate::watch::{self, Watches};

/// Looks at all states, with so many threads.
pub type Explore = Box<dyn Fn(usize) -> Outcome>;

/// A model with its bounds.
pub struct Entry {
    /// The module.
    pub model: &'static str,
    /// The processes, what they do and how many of them die.
    pub bounds: String,
    /// Small enough for every test run.
    pub small: bool,
    explore: Explore,
}

impl Entry {
    fn new<P: Protocol + Clone>(
        model: &'static str,
        bounds: &str,
        small: bool,
        deaths: u8,
        protocol: P,
    ) -> Self {
        let explore = move |threads| check(Machine { protocol: protocol.clone(), deaths }, threads);
        Entry { model, bounds: with_deaths(bounds, deaths), small, explore: Box::new(explore) }
    }

    /// For a protocol with loops, where it is not enough that nobody is stuck: see [`check_that_all_ends`].
    fn with_loops<P: Protocol + Clone>(
        model: &'static str,
        bounds: &str,
        small: bool,
        deaths: u8,
        protocol: P,
    ) -> Self {
        let explore = move |_threads| check_that_all_ends(&Machine { protocol: protocol.clone(), deaths });
        Entry { model, bounds: with_deaths(bounds, deaths), small, explore: Box::new(explore) }
    }

    /// Looks at all states.
    pub fn explore(&self, threads: usize) -> Outcome {
        (self.explore)(threads)
    }
}

fn with_deaths(bounds: &str, deaths: u8) -> String {
    match deaths {
        1 => format!("{bounds}; 1 death"),
        _ => format!("{bounds}; {deaths} deaths"),
    }
}

/// All models that are to hold.
pub fn entries() -> Vec<Entry> {
    let mut entries = rings();
    entries.extend(tasks());
    entries.extend(waits());
    entries.extend(locks());
    entries.extend(conditions());
    entries.extend(barriers());
    entries.extend(semaphores());
    entries.extend(watches());
    entries
}

/// A ring whose producers put batches of messages of one or two units.
fn ring(producers: &[&[&[u8]]], consumers: usize, bound: u8) -> Ring {
    let producers = producers.iter().map(|puts| puts.iter().map(|batch| batch.to_vec()).collect()).collect();
    Ring { producers, consumers, bound, mutant: None }
}

fn rings() -> Vec<Entry> {
    let entry = |bounds, small, deaths, ring| match small {
        true => Entry::with_loops("ring", bounds, small, deaths, ring),
        false => Entry::new("ring", bounds, small, deaths, ring),
    };
    vec![
        entry(
            "2 producers, batch and single, 2 consumers, ring grows",
            false,
            1,
            ring(&[&[&[2, 2]], &[&[1]]], 2, 0),
        ),
        entry("2 producers, 1 consumer, ring grows", true, 1, ring(&[&[&[1, 2]], &[&[1]]], 1, 0)),
        entry("2 producers, 2 consumers", false, 2, ring(&[&[&[2]], &[&[1]]], 2, 0)),
        entry("1 producer, 2 consumers, ring grows", false, 2, ring(&[&[&[2, 2], &[1]]], 2, 0)),
        entry(
            "1 producer, 1 consumer, grows, shrinks, grows again",
            true,
            1,
            ring(&[&[&[2, 2], &[2, 2, 2]]], 1, 0),
        ),
        entry("2 producers, 1 consumer, bound of 1", true, 2, ring(&[&[&[1], &[1]], &[&[2]]], 1, 1)),
        entry("2 producers, 2 consumers, bound of 2", false, 1, ring(&[&[&[1, 2]], &[&[1]]], 2, 2)),
    ]
}

/// Producers' messages (L for a large one, S for a small one), and consumers.
fn queue(joinable: bool, joiner: bool, producers: &[&str], consumers: &[Use]) -> Tasks {
    let producers =
        producers.iter().map(|messages| messages.chars().map(|size| size == 'L').collect()).collect();
    Tasks { joinable, producers, consumers: consumers.to_vec(), joiner, mutant: None }
}

fn tasks() -> Vec<Entry> {
    use Use::{Done, GiveBack, Own, Plain};
    let blocks = |bounds, small, deaths, tasks| Entry::new("blocks", bounds, small, deaths, tasks);
    let entry = |bounds, small, deaths, tasks| match small {
        true => Entry::with_loops("delivery", bounds, small, deaths, tasks),
        false => Entry::new("delivery", bounds, small, deaths, tasks),
    };
    vec![
        blocks("1 producer of 2 large, 2 consumers", true, 1, queue(false, false, &["LL"], &[Plain, Plain])),
        blocks(
            "2 producers of large, 2 consumers",
            false,
            1,
            queue(false, false, &["L", "L"], &[Plain, Plain]),
        ),
        entry(
            "1 large task, 2 consumers, one gives it back",
            true,
            2,
            queue(true, false, &["L"], &[GiveBack, Done]),
        ),
        entry("1 small task, 3 consumers", false, 2, queue(true, false, &["S"], &[Done, Done, Done])),
        entry("a small and a large task, 1 consumer, join", true, 1, queue(true, true, &["SL"], &[Done])),
        entry(
            "1 small task taken for good, 2 consumers, join",
            false,
            2,
            queue(true, true, &["S"], &[Plain, Plain]),
        ),
        entry(
            "1 small task, 2 consumers that take deliveries for good, join",
            false,
            2,
            queue(true, true, &["S"], &[Own, Own]),
        ),
        entry(
            "1 small task, one consumer of each kind, join",
            true,
            1,
            queue(true, true, &["S"], &[Own, Plain]),
        ),
        entry(
            "2 producers of small tasks, 1 consumer, join",
            true,
            1,
            queue(true, true, &["S", "S"], &[Done]),
        ),
    ]
}

fn waiting(wake: Wake, all: bool, slices: bool, wakers: usize) -> Waiting {
    Waiting { waiters: 2, wakers, wake, all, slices, mutant: None }
}

fn waits() -> Vec<Entry> {
    let mut entries = Vec::new();
    for (wake, name) in
        [(Wake::Fenced, "wake"), (Wake::AfterSeqCst, "wake_after_seqcst"), (Wake::Settled, "wake_settled")]
    {
        for (all, whom) in [(false, "one"), (true, "all")] {
            let bounds = format!("{name} of {whom}, 2 waiters, 2 wakers, no slices");
            entries.push(Entry::new("wait", &bounds, true, 2, waiting(wake, all, false, 2)));
            let bounds = format!("{name} of {whom}, 2 waiters, 1 waker, slices");
            entries.push(Entry::with_loops("wait", &bounds, true, 2, waiting(wake, all, true, 1)));
        }
    }
    entries
}

fn locked(kind: Kind, rounds: &[u8], slices: bool) -> Locks {
    Locks { kind, rounds: rounds.to_vec(), release_by_other: false, slices, timed: false, mutant: None }
}

fn by_other() -> Locks {
    Locks { release_by_other: true, ..locked(Kind::Plain, &[1, 0, 2, 1], false) }
}

fn locks() -> Vec<Entry> {
    let mut entries = Vec::new();
    for (kind, name) in [(Kind::Internal, "Robust"), (Kind::Plain, "Lock"), (Kind::Recursive, "RLock")] {
        let bounds = format!("{name}, 3 processes, no slices");
        entries.push(Entry::new("lock", &bounds, true, 1, locked(kind, &[1, 1, 1], false)));
        let bounds = format!("{name}, 2 processes, one twice, slices");
        entries.push(Entry::with_loops("lock", &bounds, true, 1, locked(kind, &[2, 1], true)));
    }
    let timed = |rounds: &[u8]| Locks { timed: true, ..locked(Kind::Internal, rounds, false) };
    let bounds = "Robust, 3 processes, one with a deadline, no slices";
    entries.push(Entry::new("lock", bounds, true, 0, timed(&[1, 1, 1])));
    let by_other = by_other();
    entries.push(Entry::new(
        "lock",
        "Lock released by another process, 4 processes, no slices",
        true,
        1,
        by_other,
    ));
    entries
}

fn condition(waiters: &[bool], notifiers: &[u8], places: u8) -> Conditions {
    let (waiters, notifiers) = (waiters.to_vec(), notifiers.to_vec());
    Conditions { waiters, notifiers, waiting: 0, places, mutant: None }
}

fn conditions() -> Vec<Entry> {
    let entry =
        |bounds, small, deaths, protocol| Entry::with_loops("condition", bounds, small, deaths, protocol);
    vec![
        entry("2 waiters, 1 notified", true, 1, condition(&[false, false], &[1], 2)),
        entry("2 waiters, both notified", false, 1, condition(&[false, false], &[2], 2)),
        entry("2 waiters, one with a deadline, 1 notified", false, 1, condition(&[true, false], &[1], 2)),
        entry("2 waiters, 1 place, 1 notified", true, 1, condition(&[false, true], &[1], 1)),
    ]
}

fn barrier(rounds: &[u8], acts: bool, aborter: bool, resetter: bool) -> Barriers {
    let parties = rounds.len() as u8;
    Barriers { rounds: rounds.to_vec(), parties, acts, deadline: false, aborter, resetter, mutant: None }
}

fn barriers() -> Vec<Entry> {
    let entry = |bounds, small, deaths, protocol| Entry::new("barrier", bounds, small, deaths, protocol);
    let late = Barriers { deadline: true, ..barrier(&[1, 1], true, false, false) };
    vec![
        entry("2 parties, 2 rounds", true, 1, barrier(&[2, 2], false, false, false)),
        entry("2 parties, 2 rounds, action", true, 1, barrier(&[2, 2], true, false, false)),
        entry("2 parties, action, one with a deadline", true, 2, late),
        entry("2 parties, abort, resets", true, 1, barrier(&[1, 1], false, true, true)),
        entry("2 parties, action, abort, resets", false, 1, barrier(&[1, 1], true, true, true)),
        entry("3 parties", false, 2, barrier(&[1, 1, 1], false, false, false)),
    ]
}

fn semaphore(permits: u8, processes: &[(u8, u8)]) -> Semaphores {
    Semaphores { permits, processes: processes.to_vec(), mutant: None }
}

fn semaphores() -> Vec<Entry> {
    let entry = |bounds, small, deaths, protocol| Entry::new("semaphore", bounds, small, deaths, protocol);
    vec![
        entry("1 permit, 3 processes", true, 2, semaphore(1, &[(1, 1), (1, 1), (1, 1)])),
        entry("2 permits, 3 processes", true, 1, semaphore(2, &[(1, 1), (1, 1), (1, 1)])),
        entry("3 permits, 2 processes, one takes two", true, 1, semaphore(3, &[(2, 1), (1, 2)])),
    ]
}

fn watching(producers: &[u8], watchers: u8, others: u8) -> Watches {
    Watches { producers: producers.to_vec(), watchers, others, mutant: None }
}

fn watches() -> Vec<Entry> {
    let entry = |bounds, small, deaths, protocol| Entry::with_loops("watch", bounds, small, deaths, protocol);
    vec![
        entry("1 producer, 3 messages, 1 watcher", true, 1, watching(&[3], 1, 0)),
        entry("2 producers, 2 watchers", true, 2, watching(&[2, 1], 2, 0)),
        entry("2 producers, 1 watcher, another consumer", true, 2, watching(&[2, 1], 1, 2)),
        entry("3 producers, 2 watchers, another consumer", false, 2, watching(&[2, 1, 1], 2, 1)),
    ]
}

/// Each mistake with a model in which it must be found.
pub fn mutants() -> Vec<(String, Explore)> {
    let mut found: Vec<(String, Explore)> = Vec::new();
    let mut add = |name: String, explore: Explore| found.push((name, explore));

    use ring::Mutant as R;
    for (mutant, deaths, base) in [
        (R::TailBeforeRecord, 0, ring(&[&[&[2]]], 1, 0)),
        (R::NoOwnerRecovery, 1, ring(&[&[&[1]], &[&[1]]], 1, 0)),
        (R::FreeBeforeLeaving, 0, ring(&[&[&[2], &[1], &[2]]], 1, 0)),
        (R::SegmentBeforeLink, 1, ring(&[&[&[1, 2], &[2]], &[&[1]]], 1, 0)),
        (R::NoRoomForLink, 0, ring(&[&[&[1, 1, 1, 1], &[1]]], 1, 0)),
        (R::GrowWithoutPublishing, 1, ring(&[&[&[2, 2]], &[&[1]]], 1, 0)),
        (R::HeadBeforeRead, 0, ring(&[&[&[2]]], 1, 0)),
        (R::MarkedTooLate, 1, ring(&[&[&[2], &[1], &[2]]], 1, 0)),
        (R::KnownGetsAhead, 0, ring(&[&[&[1], &[1]]], 1, 1)),
    ] {
        let explore = move |threads| {
            check(Machine { protocol: Ring { mutant: Some(mutant), ..base.clone() }, deaths }, threads)
        };
        add(format!("ring: {mutant:?}"), Box::new(explore));
    }

    use Use::{Done, GiveBack, Plain};
    use delivery::Mutant as D;
    for (mutant, deaths, base) in [
        (D::QueuedAfterTail, 0, queue(false, false, &["LL"], &[Plain])),
        (D::TakenAfterHead, 1, queue(true, false, &["L"], &[GiveBack, Done])),
        (D::FreedBeforeRead, 0, queue(false, false, &["L"], &[Plain])),
        (D::UnpublishedKept, 1, queue(false, false, &["L", "L"], &[Plain])),
        (D::NotRebuilt, 1, queue(false, false, &["LL", "L"], &[Plain])),
        (D::HeldAfterHead, 1, queue(true, false, &["S"], &[Done, Done])),
        (D::ChargedAfterHead, 0, queue(true, true, &["S"], &[Plain])),
        (D::ChargeNotUndone, 1, queue(true, true, &["S"], &[Plain, Plain])),
        (D::TakesNotUndone, 2, queue(true, false, &["S"], &[Done, Done])),
        (D::SweepNotAnnounced, 2, queue(true, false, &["S"], &[Done, Done, Done])),
        (D::ReturnedBeforeCounted, 1, queue(true, false, &["S"], &[GiveBack, Done])),
        (D::TailNotLookedAtAgain, 0, queue(true, true, &["SS"], &[Done])),
    ] {
        let explore = move |threads| {
            check(Machine { protocol: Tasks { mutant: Some(mutant), ..base.clone() }, deaths }, threads)
        };
        add(format!("delivery: {mutant:?}"), Box::new(explore));
    }

    use wait::Mutant as W;
    for (mutant, wake) in [
        (W::NoSecondLook, Wake::AfterSeqCst),
        (W::TicketAfterArrival, Wake::AfterSeqCst),
        (W::ArrivalsStored, Wake::AfterSeqCst),
        (W::NoEpoch, Wake::AfterSeqCst),
        (W::LookBeforeChange, Wake::AfterSeqCst),
        (W::NoBarrier, Wake::Fenced),
        (W::SettlesTooShort, Wake::Settled),
    ] {
        let protocol = Waiting { mutant: Some(mutant), ..waiting(wake, false, false, 2) };
        let explore = move |threads| check(Machine { protocol: protocol.clone(), deaths: 0 }, threads);
        add(format!("wait: {mutant:?}"), Box::new(explore));
    }

    use lock::Mutant as L;
    let protocol = Locks { mutant: Some(L::ResetsNotCounted), ..by_other() };
    add("wait: ResetsNotCounted".to_owned(), Entry::new("lock", "", true, 0, protocol).explore);
    let timed = Locks { timed: true, ..locked(Kind::Internal, &[1, 1, 1], false) };
    let protocol = Locks { mutant: Some(L::GoesWithoutLook), ..timed };
    add("lock: GoesWithoutLook".to_owned(), Entry::new("lock", "", true, 0, protocol).explore);
    for (mutant, slices) in [
        (L::NoOwnerRecovery, true),
        (L::OwnerNotLookedAt, true),
        (L::TakenByStore, true),
        (L::NotTold, true),
        (L::NoSecondLook, false),
        (L::LookBeforeRelease, false),
    ] {
        for kind in [Kind::Internal, Kind::Plain] {
            let protocol = Locks { mutant: Some(mutant), ..locked(kind, &[1, 1], slices) };
            let entry = match slices {
                true => Entry::with_loops("lock", "", true, 1, protocol),
                false => Entry::new("lock", "", true, 1, protocol),
            };
            add(format!("lock: {mutant:?} of {kind:?}"), entry.explore);
        }
    }
    add_mutants_of_objects(&mut add);
    found
}

fn add_mutants_of_objects(add: &mut impl FnMut(String, Explore)) {
    use condition::Mutant as C;
    let two = condition(&[false, false], &[1], 2);
    for (mutant, deaths, base) in [
        (C::NotTakenOver, 1, two.clone()),
        (C::AnyInherits, 1, two.clone()),
        (C::FreedWithHeirs, 1, two.clone()),
        (C::FreedBeforeLock, 1, two),
        (C::GivenUpByStore, 0, condition(&[true, false], &[1], 2)),
        (C::AsleepByStore, 0, condition(&[false], &[1], 1)),
    ] {
        let protocol = Conditions { mutant: Some(mutant), ..base };
        add(
            format!("condition: {mutant:?}"),
            Entry::with_loops("condition", "", true, deaths, protocol).explore,
        );
    }

    use barrier::Mutant as B;
    for (mutant, deaths, base) in [
        (B::NoOwnerRecovery, 1, barrier(&[1, 1], false, false, false)),
        (B::NotBroken, 1, Barriers { parties: 2, ..barrier(&[2, 2, 1], false, false, false) }),
        (B::DeadNotLookedFor, 1, barrier(&[1, 1], true, false, false)),
        (B::HolderNotLookedFor, 1, barrier(&[1, 1], false, false, false)),
        (B::ActionNotJudged, 0, barrier(&[1, 1], true, true, true)),
        (B::PlaceKept, 2, Barriers { parties: 1, ..barrier(&[1, 1, 1], false, false, false) }),
        (B::BrokenAtDeadline, 0, Barriers { deadline: true, ..barrier(&[1, 1], false, false, false) }),
    ] {
        let protocol = Barriers { mutant: Some(mutant), ..base };
        add(format!("barrier: {mutant:?}"), Entry::new("barrier", "", true, deaths, protocol).explore);
    }

    use semaphore::Mutant as S;
    for (mutant, deaths, base) in [
        (S::TakenByStore, 0, semaphore(1, &[(1, 1), (1, 1)])),
        (S::FreedByStore, 1, semaphore(1, &[(1, 1), (1, 1), (1, 1)])),
        (S::DeadKeep, 1, semaphore(1, &[(1, 1), (1, 1)])),
        (S::LivingFreed, 0, semaphore(1, &[(1, 1), (1, 1)])),
    ] {
        let protocol = Semaphores { mutant: Some(mutant), ..base };
        add(format!("semaphore: {mutant:?}"), Entry::new("semaphore", "", true, deaths, protocol).explore);
    }

    use watch::Mutant as V;
    for (mutant, deaths) in [
        (V::ToldAfterwards, 1),
        (V::ClearedFirst, 1),
        (V::ArmedWithoutLock, 0),
        (V::BitsOfTheDeadKept, 2),
        (V::NeverDrained, 0),
    ] {
        let protocol = Watches { mutant: Some(mutant), ..watching(&[1, 1], 2, 0) };
        add(format!("watch: {mutant:?}"), Entry::with_loops("watch", "", true, deaths, protocol).explore);
    }
}
