//! What the processes of a turn do, one file a role.
//!
//! A new role is a struct with what it works on, a variant of [`Role`], a name in [`NAMES`], and a kind in `kinds.rs` that
//! gives it a seat.

mod barrier;
mod boss;
mod closer;
mod condition;
mod consumer;
mod event;
mod locker;
mod permits;
mod pipes;
mod pool;
mod producer;
mod tree;
mod worker;

pub(crate) use barrier::Party;
pub(crate) use boss::Boss;
pub(crate) use closer::Closer;
pub(crate) use condition::{Notifier, Waiter};
pub(crate) use consumer::Consumer;
pub(crate) use event::{Setter, Watcher};
pub(crate) use locker::{Guarded, Locker};
pub(crate) use permits::PermitUser;
pub(crate) use pipes::{End, Pair};
pub(crate) use pool::PoolOwner;
pub(crate) use producer::Producer;
pub(crate) use tree::Tree;
pub(crate) use worker::Worker;

use std::path::PathBuf;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::time::Duration;

use procession::process::StartError;
use procession::{Barrier, JoinableQueue, Process, Queue, StartMethod};
use procession_sys::identity::Identity;
use serde::{Deserialize, Serialize};

use crate::board::{Board, Log, Slot, now};
use crate::parcel::Parcel;

/// What a process that was started is to do.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Role {
    Producer(Producer),
    Consumer(Consumer),
    Boss(Boss),
    Worker(Worker),
    Locker(Locker),
    PermitUser(PermitUser),
    Notifier(Notifier),
    Waiter(Waiter),
    Setter(Setter),
    Watcher(Watcher),
    Party(Party),
    Pair(Pair),
    End(End),
    Tree(Tree),
    Closer(Closer),
    PoolOwner(PoolOwner),
}

/// The roles' names, in the order of [`Role`].
pub(crate) const NAMES: [&str; 16] = [
    "producer",
    "consumer",
    "boss",
    "worker",
    "locker",
    "permit user",
    "notifier",
    "waiter",
    "setter",
    "watcher",
    "party",
    "pair",
    "pipe end",
    "tree",
    "closer",
    "pool owner",
];

impl Role {
    /// Its place in [`NAMES`].
    pub(crate) fn number(&self) -> usize {
        match self {
            Role::Producer(_) => 0,
            Role::Consumer(_) => 1,
            Role::Boss(_) => 2,
            Role::Worker(_) => 3,
            Role::Locker(_) => 4,
            Role::PermitUser(_) => 5,
            Role::Notifier(_) => 6,
            Role::Waiter(_) => 7,
            Role::Setter(_) => 8,
            Role::Watcher(_) => 9,
            Role::Party(_) => 10,
            Role::Pair(_) => 11,
            Role::End(_) => 12,
            Role::Tree(_) => 13,
            Role::Closer(_) => 14,
            Role::PoolOwner(_) => 15,
        }
    }

    fn run(self, station: &mut Station) -> Outcome {
        match self {
            Role::Producer(role) => role.run(station),
            Role::Consumer(role) => role.run(station),
            Role::Boss(role) => role.run(station),
            Role::Worker(role) => role.run(station),
            Role::Locker(role) => role.run(station),
            Role::PermitUser(role) => role.run(station),
            Role::Notifier(role) => role.run(station),
            Role::Waiter(role) => role.run(station),
            Role::Setter(role) => role.run(station),
            Role::Watcher(role) => role.run(station),
            Role::Party(role) => role.run(station),
            Role::Pair(role) => role.run(station),
            Role::End(role) => role.run(station),
            Role::Tree(role) => role.run(station),
            Role::Closer(role) => role.run(station),
            Role::PoolOwner(role) => role.run(station),
        }
    }
}

/// Whether a role ended as it should, or what it found wrong.
pub(crate) type Outcome = Result<(), String>;

/// What a process is in the middle of: the call that it does not come back from if it hangs.
#[derive(Clone, Copy, Debug)]
#[repr(u64)]
pub(crate) enum Doing {
    Beginning,
    Working,
    Putting,
    Getting,
    Finishing,
    Joining,
    Acquiring,
    Inside,
    Releasing,
    Waiting,
    Notifying,
    Sending,
    Receiving,
    Starting,
    Closing,
}

/// The names of what a process can be doing, in the order of [`Doing`].
pub(crate) const DOINGS: [&str; 15] = [
    "beginning",
    "working",
    "in put",
    "in get",
    "in done",
    "in join",
    "in acquire",
    "inside the section",
    "in release",
    "in wait",
    "in notify",
    "in send",
    "in recv",
    "starting a child",
    "closing",
];

/// A fault that is made on purpose, to see that it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
pub(crate) enum Fault {
    /// A consumer drops a message without a word.
    Lose,
    /// A consumer has one message twice.
    Repeat,
    /// A consumer has a message that nobody put.
    Invent,
    /// A message is changed after it was put.
    Tear,
    /// A process waits for ever.
    Hang,
    /// A process enters a section without its lock.
    Intrude,
}

/// A process that is to be started.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) folder: PathBuf,
    pub(crate) slot: u64,
    pub(crate) seed: u64,
    pub(crate) fault: Option<Fault>,
    pub(crate) role: Role,
}

impl Order {
    pub(crate) fn start(self, method: StartMethod, daemon: bool) -> Result<Process<Outcome>, StartError> {
        Process::builder(begin, self).start_method(method).daemon(daemon).start()
    }
}

/// Where a role works: its slot and log.
pub(crate) struct Station<'a> {
    pub(crate) board: &'a Board,
    pub(crate) slot: &'a Slot,
    pub(crate) number: u64,
    pub(crate) random: fastrand::Rng,
    fault: Option<Fault>,
    log: Log,
}

impl Station<'_> {
    /// Says that the process got on.
    pub(crate) fn beat(&self) {
        self.slot.beat.store(now(), Release);
    }

    /// Says what the process does next.
    pub(crate) fn doing(&self, what: Doing) {
        self.slot.doing.store(what as u64, Relaxed);
    }

    pub(crate) fn log(&self, entry: u64) {
        self.log.add(self.slot, entry);
    }

    /// Whether the process is to end: the turn is over, or its log is full.
    pub(crate) fn is_over(&self) -> bool {
        self.board.head().stop.load(Acquire) != 0 || self.is_full()
    }

    /// Whether its log is full.
    pub(crate) fn is_full(&self) -> bool {
        Log::is_nearly_full(self.slot)
    }

    /// Whether this process is to make this fault, now and then.
    pub(crate) fn is_to(&mut self, fault: Fault) -> bool {
        self.fault == Some(fault) && self.random.u16(..) < 1000
    }

    /// Sleeps for up to so long, and gets on by that.
    pub(crate) fn pause(&mut self, most: Duration) {
        self.doing(Doing::Working);
        std::thread::sleep(Duration::from_micros(self.random.u64(0..=most.as_micros() as u64)));
        self.beat();
    }

    /// How long the pauses of this process are: none, short, or long.
    pub(crate) fn pace(&mut self) -> Duration {
        match self.random.u8(0..3) {
            0 => Duration::ZERO,
            1 => Duration::from_micros(200),
            _ => Duration::from_millis(2),
        }
    }

    /// Starts a daemon of this process.
    pub(crate) fn start_daemon(&mut self, role: Role) -> Result<Process<Outcome>, String> {
        self.start(role, true, None)
    }

    pub(crate) fn start(
        &mut self,
        role: Role,
        daemon: bool,
        method: Option<StartMethod>,
    ) -> Result<Process<Outcome>, String> {
        self.doing(Doing::Starting);
        let slot = self.board.take_slot(role.number(), Some(self.number), daemon).ok_or("no slot is left")?;
        let method = method.unwrap_or_else(|| StartMethod::ALL[self.random.usize(0..3)]);
        let (folder, seed) = (self.board.folder().to_owned(), self.random.u64(..));
        let order = Order { folder, slot, seed, fault: self.fault, role };
        let started = order.start(method, daemon).map_err(|error| format!("starting a child: {error}"));
        self.beat();
        started
    }
}

/// A queue of messages, or how to come by it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Source {
    Handle(Queue<Parcel>),
    Name(String),
}

impl Source {
    pub(crate) fn open(self) -> Result<Queue<Parcel>, String> {
        match self {
            Source::Handle(queue) => Ok(queue),
            Source::Name(name) => Queue::open(&name).map_err(|error| format!("opening {name}: {error}")),
        }
    }
}

/// What a closer ends.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Closed {
    Plain(Source),
    Tasks(JoinableQueue<Parcel>),
    Barrier(Barrier),
}

/// Where every process begins that the storm starts.
fn begin(order: Order) -> Outcome {
    let outcome = work(&order.folder.clone(), order.slot, order);
    if let Err((folder, slot, fault)) = &outcome {
        leave_fault(folder, *slot, fault);
    }
    outcome.map_err(|(_, _, fault)| fault)
}

fn work(folder: &std::path::Path, number: u64, order: Order) -> Result<(), (PathBuf, u64, String)> {
    let hook = (folder.to_owned(), number);
    std::panic::set_hook(Box::new(move |panic| leave_fault(&hook.0, hook.1, &format!("{panic}"))));
    let wrong = |fault: String| (folder.to_owned(), number, fault);
    let system = |error: std::io::Error| wrong(format!("its board or log: {error}"));
    // Should the storm end while this process is stopped, nobody else would let it go on, and so end.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::CONT))
        .map_err(|error| wrong(format!("prctl(PR_SET_PDEATHSIG): {error}")))?;
    let board = Board::open(folder).map_err(system)?;
    let slot = board.slot(number);
    let log = Log::open(&board, number).map_err(system)?;
    let random = fastrand::Rng::with_seed(order.seed);
    let mut station = Station { board: &board, slot, number, random, fault: order.fault, log };
    station.doing(Doing::Beginning);
    station.beat();
    slot.identity.store(Identity::current().to_bits(), Release);
    order.role.run(&mut station).map_err(wrong)?;
    slot.ended.store(1, Release);
    Ok(())
}

/// Leaves a file that says what was found wrong, for the supervisor.
fn leave_fault(folder: &std::path::Path, slot: u64, fault: &str) {
    if let Err(error) = std::fs::write(folder.join(format!("fault-{slot}")), fault) {
        eprintln!("process {slot}: {fault} (and it cannot be written down: {error})");
    }
}
