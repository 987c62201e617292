//! Memory orders: that whoever reads one word sees what was stored before it, on every processor that the language allows.
//!
//! The other models take steps one after the other, as if all memory were sequentially consistent. Here loom explores what each
//! load may see, and tells of two accesses of plain memory of which neither happens before the other. What runs is, where that is
//! possible, the library's own source, compiled here with loom's words:
//!
//! | checked | in `procession-core/src` | how |
//! | --- | --- | --- |
//! | `WaitQueue`: `wake`, `wake_after_seqcst` | `sync/wait.rs` | the file itself |
//! | the internal lock, recovery | `sync/robust.rs` | the file itself |
//! | `Lock`, `RLock`, recovery | `objects/owned.rs`, `objects/wait_for.rs` | the files themselves |
//! | records, tail, head and the producers' caches | `ring/put.rs`: `may_hold_one_more`, `publish`; `ring/get.rs`: `next`, `publish` | `protocols::Ring`, under the library's own lock |
//! | a block's contents, its descriptor's state | `ring/layout.rs`: `Descriptor::state`, `set_state`; `ring/blocks.rs`: `carve`, `fill`, `free` | `protocols::Blocks` |
//! | a condition's places and turns | `objects/condition.rs`: `register`, `notify_one`, `take_over`, and the end of `wait` | `protocols::Places` |
//!
//! Every access with an order above `Relaxed` in these files is weakened in turn, and an exploration must fail. Those for which
//! none does are [`NOT_FELT`], each with the reason.
//!
//! Assumed: the death of a process becomes known through the kernel, and with it all that the process did before it; a system call
//! orders as a mutex does. [`Check::needs_the_kernel`] shows what would come of the first if it were not so.
//!
//! What loom does not see: loads that take their value from a store later in the order of execution (but for plain memory it
//! finds the race), and SeqCst: it takes such an access for AcqRel. `crate::sync::atomic` puts a fence between two SeqCst accesses of
//! a thread that follow each other, which is what their total order says of them; with another access in between it does not, so
//! what is found here to hold relies on no more than that. `wake_settled` has no order to check: it relies on time (`crate::wait`).

mod protocols;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Once, mpsc};
use std::time::{Duration, Instant};

use crate::sync::atomic::{self, Site, Weakening};

/// What is done wrong on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Weakness {
    /// An order is weaker.
    Order(Site, Weakening),
    /// Who sees a death sees nothing of what the dead did before.
    Deaths,
}

/// A check, in which loom tries every order.
pub struct Check {
    /// What is checked.
    pub name: &'static str,
    run: fn(),
    /// Every sleep ends by itself.
    slices: bool,
    /// So many times a thread is interrupted, at most; `None` for always.
    preemptions: Option<usize>,
}

/// What came of a [`Check`].
#[derive(Debug)]
pub struct Outcome {
    /// How many different executions there are.
    pub executions: usize,
    /// How long it took.
    pub time: Duration,
    /// What went wrong.
    pub failure: Option<String>,
}

/// An order of the code, and whether it is needed.
#[derive(Debug)]
pub struct Order {
    /// The file and the line's text.
    pub place: String,
    /// To what it was weakened.
    pub weakened: &'static str,
    /// Whether a check failed.
    pub found: bool,
    /// Why none need fail.
    pub reason: Option<&'static str>,
}

/// What an exploration ends with: how many executions there were, what went wrong, and the sites that were passed.
type Report = (usize, Option<String>, BTreeMap<Site, bool>);

thread_local! {
    static EXECUTIONS: Cell<usize> = const { Cell::new(0) };
    static REPORT: RefCell<Option<mpsc::Sender<Report>>> = const { RefCell::new(None) };
}

/// Ends an exploration that failed, before it unwinds: loom's words cannot be dropped then.
fn stop_at_the_first_panic() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let Some(report) = REPORT.take() else { return usual(panic) };
            // Nobody listens any more when this fails.
            let _ = report.send((EXECUTIONS.get(), Some(panic.to_string()), BTreeMap::new()));
            loop {
                std::thread::park();
            }
        }));
    });
}

impl Check {
    /// Looks at all executions.
    pub fn explore(&self) -> Outcome {
        self.explore_with(None).0
    }

    fn explore_with(&self, weakness: Option<Weakness>) -> (Outcome, BTreeMap<Site, bool>) {
        stop_at_the_first_panic();
        let (run, slices, preemptions) = (self.run, self.slices, self.preemptions);
        let start = Instant::now();
        let (sender, report) = mpsc::channel();
        std::thread::spawn(move || {
            REPORT.set(Some(sender));
            let (order, deaths) = match weakness {
                Some(Weakness::Order(site, weakening)) => (Some((site, weakening)), false),
                Some(Weakness::Deaths) => (None, true),
                None => (None, false),
            };
            atomic::weaken(order);
            let mut builder = loom::model::Builder::new();
            builder.preemption_bound = preemptions;
            builder.max_branches = 5_000;
            builder.check(move || {
                EXECUTIONS.set(EXECUTIONS.get() + 1);
                crate::os::boot(slices, deaths);
                run();
                crate::os::shut_down();
            });
            if let Some(report) = REPORT.take() {
                // The other end waits for this.
                let _ = report.send((EXECUTIONS.get(), None, atomic::sites()));
            }
        });
        let (executions, failure, sites) = report.recv().expect("a report of each exploration");
        (Outcome { executions, time: start.elapsed(), failure }, sites)
    }

    /// Whether it fails where a death tells nothing of what was before it. Only for those in which somebody dies.
    pub fn needs_the_kernel(&self) -> bool {
        self.explore_with(Some(Weakness::Deaths)).0.failure.is_some()
    }
}

/// All checks.
pub fn checks() -> Vec<Check> {
    let check = |name, run, slices, preemptions| Check { name, run, slices, preemptions };
    vec![
        check("WaitQueue: wake", protocols::wake, false, None),
        check("WaitQueue: wake_after_seqcst", protocols::wake_after_seqcst, false, None),
        check("WaitQueue: two wakers, one sleeper", protocols::two_wakers, false, Some(2)),
        check("Robust: two holders", protocols::robust, true, None),
        check("Robust: a holder dies", protocols::robust_recovery, true, Some(3)),
        check("Lock: two owners", protocols::lock, false, Some(3)),
        check("Lock: an owner dies", protocols::lock_recovery, true, Some(2)),
        check("RLock: two owners", protocols::rlock, false, Some(2)),
        check("RLock: an owner dies", protocols::rlock_recovery, true, Some(2)),
        check("ring: records, tail, head, caches", protocols::ring, true, Some(2)),
        check("blocks: contents and states", protocols::blocks, true, Some(2)),
        check("condition: places and turns", protocols::places, true, Some(2)),
    ]
}

/// Weakens each order in turn, in each check that passes it.
pub fn orders() -> Vec<Order> {
    let checks = checks();
    let mut sites: BTreeMap<(Site, Weakening), BTreeSet<usize>> = BTreeMap::new();
    for (index, check) in checks.iter().enumerate() {
        for (site, seqcst) in check.explore_with(None).1 {
            sites.entry((site, Weakening::ToRelaxed)).or_default().insert(index);
            if seqcst {
                sites.entry((site, Weakening::ToAcqRel)).or_default().insert(index);
            }
        }
    }
    let order = |((site, weakening), passed): ((Site, Weakening), BTreeSet<usize>)| {
        let weakness = Some(Weakness::Order(site, weakening));
        let found = passed.into_iter().any(|index| checks[index].explore_with(weakness).0.failure.is_some());
        let (file, line) = source(site);
        let weakened = match weakening {
            Weakening::ToRelaxed => "Relaxed",
            Weakening::ToAcqRel => "AcqRel",
        };
        let excused = |(at, text, _): &&(&str, &str, &str)| *at == file && line.contains(text);
        let reason = NOT_FELT.iter().find(excused).map(|excuse| excuse.2);
        Order { place: format!("{file}: {line}"), weakened, found, reason }
    };
    sites.into_iter().map(order).collect()
}

/// The file's name and the line's text.
fn source(site: Site) -> (&'static str, &'static str) {
    let files = [
        ("wait.rs", include_str!("../../../crates/procession-core/src/sync/wait.rs")),
        ("robust.rs", include_str!("../../../crates/procession-core/src/sync/robust.rs")),
        ("owned.rs", include_str!("../../../crates/procession-core/src/objects/owned.rs")),
        ("protocols.rs", include_str!("protocols.rs")),
    ];
    let found = files.into_iter().find(|(name, _)| site.0.ends_with(&format!("/{name}")));
    let (name, text) = found.unwrap_or(("an unknown file", ""));
    (name, text.lines().nth(site.1 as usize - 1).unwrap_or("").trim())
}

/// Orders without which no check fails: the file, a part of the line, and why that is right.
pub const NOT_FELT: &[(&str, &str, &str)] = &[
    (
        "owned.rs",
        "self.owner.store(claim, Ordering::Release)",
        "only its own process looks for this word, and another thread of that finds another number in `thread`",
    ),
    (
        "wait.rs",
        "let ticket = Ticket(",
        "an old epoch ends the sleep at once; a new one was stored after its waker's barrier or SeqCst change, which the sleeper's barrier comes after then",
    ),
    ("wait.rs", "self.arrivals.fetch_update(Ordering::SeqCst", "the barrier after it orders as much"),
    (
        "wait.rs",
        "let arrivals = self.arrivals.load(Ordering::SeqCst)",
        "an old count makes the exchange fail",
    ),
    ("wait.rs", "self.epoch.fetch_add(1, Ordering::SeqCst)", "the system call after it orders as much"),
    (
        "wait.rs",
        "let _ = self.arrivals.compare_exchange(",
        "nobody who sees the count gone relies on what was before",
    ),
    ("protocols.rs", "self.state.store(WRITING, Release)", "nobody looks into a block that is being written"),
    ("protocols.rs", "if self.descriptors.load(Acquire) == 0", "under the lock with which it is stored"),
    ("protocols.rs", "let free = self.state.load(Acquire) == FREE", "under the lock with which it is stored"),
    (
        "protocols.rs",
        "assert!(self.descriptors.load(Acquire) != 0, \"a message's",
        "the tail was loaded before it",
    ),
    ("protocols.rs", "let queued = self.state.load(Acquire)", "the tail was loaded before it"),
    ("protocols.rs", "self.state.store(TAKEN, Release)", "nothing was stored before it"),
    ("protocols.rs", "self.state.store(FREE, Release)", "under the lock with which it is looked at"),
    (
        "protocols.rs",
        "self.place.compare_exchange(0, CLAIMED, Acquire",
        "nothing is loaded after it but by who stores it",
    ),
    (
        "protocols.rs",
        "self.place.compare_exchange(NOTIFIED, NOTIFIED | 3, AcqRel",
        "the load before it had Acquire, and nothing was stored in between",
    ),
    ("protocols.rs", "self.place.store(0, Release)", "who claims the place stores over all that was there"),
];
