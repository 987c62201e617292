//! Which models are explored, with which bounds, and which mistakes must be found in them.

use crate::check::{Outcome, check, check_that_all_ends};
use crate::delivery::{self, Tasks, Use};
use crate::lock::{self, Kind, Locks};
use crate::machine::{Machine, Protocol};
use crate::ring::{self, Ring};
use crate::wait::{self, Waiting, Wake};

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

    /// For a protocol with loops: [`check`], and that all comes to an end.
    fn with_loops<P: Protocol + Clone>(
        model: &'static str,
        bounds: &str,
        small: bool,
        deaths: u8,
        protocol: P,
    ) -> Self {
        let explore = move |threads| {
            let ends = check_that_all_ends(&Machine { protocol: protocol.clone(), deaths });
            if ends.counterexample.is_some() {
                return ends;
            }
            let outcome = check(Machine { protocol: protocol.clone(), deaths }, threads);
            Outcome { time: outcome.time + ends.time, ..outcome }
        };
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
    entries
}

/// A ring whose producers put batches of messages of one or two units.
fn ring(producers: &[&[&[u8]]], consumers: usize, bound: u8) -> Ring {
    let producers = producers.iter().map(|puts| puts.iter().map(|batch| batch.to_vec()).collect()).collect();
    Ring { producers, consumers, bound, mutant: None }
}

fn rings() -> Vec<Entry> {
    let entry = |bounds, small, deaths, ring| Entry::new("ring", bounds, small, deaths, ring);
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
    let entry = |bounds, small, deaths, tasks| Entry::new("delivery", bounds, small, deaths, tasks);
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
    Locks { kind, rounds: rounds.to_vec(), release_by_other: false, slices, mutant: None }
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
    found
}
