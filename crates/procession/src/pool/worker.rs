//! A worker process: takes tasks, does them, reports, until there is nothing more to do.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use procession_core::pool::{Assignment, Next, Outcome, Report, WorkQueue};
use procession_core::queue::{GetError, RingError};
use procession_core::shm::tally::Tally;
use procession_core::shm::transfer;
use procession_sys::clock::Deadline;
use procession_sys::identity::Identity;
use procession_sys::memory;
use procession_sys::signals::{self, Disposition};
use rustix::process::Signal;
use serde::de::{self, DeserializeOwned, Deserializer};
use serde::ser::{self, Serializer};
use serde::{Deserialize, Serialize};

use super::task::{Caller, Failure, REPORT_HEAD, WITH_HANDLES};
use crate::codec::{append, take};
use crate::handle::{self, with_reason};
use crate::process::{self, Panic, StartError, TaskRef, caught, function, getpid};

/// How often a worker that does not end with the pool's process looks whether that is gone.
const LOOK: Duration = Duration::from_secs(1);
/// How long a worker goes on trying to take a task for which there is no memory.
const PATIENCE: Duration = Duration::from_secs(10);
/// A buffer larger than this is not kept.
const KEPT: usize = 1 << 20;

/// What a worker is to be.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Order {
    pub(super) work: Work,
    pub(super) initializer: Option<Initializer>,
    /// After how many tasks it ends.
    pub(super) tasks: Option<u64>,
    /// At how many bytes of resident memory it ends after its task.
    pub(super) memory: Option<u64>,
    pub(super) daemon: bool,
}

/// The pool's tasks and reports.
#[derive(Clone)]
pub(super) struct Work(pub(super) WorkQueue);

impl Serialize for Work {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        handle::serialize(self.0.to_handle(), serializer)
    }
}

impl<'de> Deserialize<'de> for Work {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        handle::deserialize(deserializer, WorkQueue::from_handle).map(Work)
    }
}

/// What each worker does first.
#[derive(Clone)]
pub(super) enum Initializer {
    /// In the pool's process, and in its forks.
    Given(Arc<dyn Initial>),
    /// In a worker: its arguments have been read.
    Ready(Arc<Mutex<Option<Prepared>>>),
}

type Prepared = Box<dyn FnOnce() + Send>;

/// A function with arguments, to be called in each worker.
pub(super) trait Initial: Send + Sync {
    /// Its place, and the arguments.
    fn order(&self) -> Result<(TaskRef, Vec<u8>), String>;
    /// The same in this process.
    fn prepare(&self) -> Result<Prepared, String>;
}

struct Function<A> {
    place: TaskRef,
    function: fn(A),
    arguments: A,
}

impl Initializer {
    /// # Errors
    /// It is no function for another process.
    pub(super) fn new<A>(function: fn(A), arguments: A) -> Result<Self, StartError>
    where
        A: Serialize + DeserializeOwned + Send + Sync + 'static,
    {
        let entry: Entry = prepare::<A>;
        let place = TaskRef::called_by(function, entry as *const ())?;
        Ok(Initializer::Given(Arc::new(Function { place, function, arguments })))
    }

    fn run(self) -> Result<(), String> {
        let prepared = match self {
            Initializer::Given(function) => {
                let function = caught(|| function.prepare());
                function.unwrap_or_else(|panic| Err(describe(panic)))?
            }
            Initializer::Ready(prepared) => {
                let mut prepared = prepared.lock().unwrap_or_else(PoisonError::into_inner);
                prepared.take().ok_or("it has run before")?
            }
        };
        caught(prepared).map_err(describe)
    }
}

fn describe(panic: Panic) -> String {
    let at = panic.location.map_or_else(String::new, |location| format!(" at {location}"));
    format!("the initializer panicked{at}: {}", panic.message)
}

impl<A> Initial for Function<A>
where
    A: Serialize + DeserializeOwned + Send + Sync + 'static,
{
    fn order(&self) -> Result<(TaskRef, Vec<u8>), String> {
        let mut bytes = Vec::new();
        with_reason(|| append(&self.arguments, &mut bytes))?;
        Ok((self.place, bytes))
    }

    fn prepare(&self) -> Result<Prepared, String> {
        // Through bytes, as in a worker that was not forked.
        let (order, descriptors) = transfer::collect(|| self.order());
        let (_, bytes) = order?;
        let (arguments, _): (A, _) = transfer::deliver(descriptors, || with_reason(|| take(&bytes)))?;
        let function = self.function;
        Ok(Box::new(move || function(arguments)))
    }
}

/// [`prepare`] for some types.
type Entry = fn(*const (), u64, &[u8]) -> Result<Prepared, String>;

/// Reads the arguments of the function.
fn prepare<A>(place: *const (), types: u64, arguments: &[u8]) -> Result<Prepared, String>
where
    A: Serialize + DeserializeOwned + Send + Sync + 'static,
{
    // SAFETY: called with what was found.
    let function = unsafe { function::<A, ()>(place, types) };
    let function = function.ok_or("the initializer at this place of the program has other types")?;
    let (arguments, _): (A, _) = with_reason(|| take(arguments))?;
    Ok(Box::new(move || function(arguments)))
}

impl Serialize for Initializer {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Initializer::Given(function) => {
                function.order().map_err(ser::Error::custom)?.serialize(serializer)
            }
            Initializer::Ready(_) => Err(ser::Error::custom("it is in its worker already")),
        }
    }
}

impl<'de> Deserialize<'de> for Initializer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (place, arguments) = <(TaskRef, Vec<u8>)>::deserialize(deserializer)?;
        let found = place.find().map_err(de::Error::custom)?;
        // SAFETY: `Initializer::new` has recorded the offset of a `prepare`, and the program is the same build.
        let entry: Entry = unsafe { std::mem::transmute(found.entry) };
        let prepared = entry(found.function, found.types, &arguments).map_err(de::Error::custom)?;
        Ok(Initializer::Ready(Arc::new(Mutex::new(Some(prepared)))))
    }
}

impl fmt::Debug for Initializer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Initializer")
    }
}

/// What a worker process runs.
pub(super) fn work(order: Order) {
    // Ctrl-C is for the pool's process, with which the worker ends; the programs that a task runs get it too.
    let passed = signals::set_disposition(Signal::INT, Disposition::Pass);
    // It was started with this one blocked, or all.
    signals::unblock_all();
    let Order { work: Work(work), initializer, tasks, memory, daemon } = order;
    let pid = getpid();
    let begun = passed
        .map_err(|error| format!("SIGINT cannot be passed over: {error}"))
        .and_then(|_| initializer.map_or(Ok(()), Initializer::run));
    let worker = Worker {
        work,
        me: Identity::current(),
        tasks,
        memory,
        daemon,
        input: Vec::new(),
        output: Vec::new(),
        caller: Caller::default(),
    };
    let ended = match begun {
        Ok(()) => match worker.work.report(Report::of_worker(pid, Outcome::Ready), &[]) {
            Ok(()) => worker.serve(),
            Err(error) => Err((worker.work, error.to_string())),
        },
        Err(problem) => Err((worker.work, problem)),
    };
    if let Err((work, problem)) = ended {
        // Whoever cannot be told finds out by the worker's end.
        let _ = work.report(Report::of_worker(pid, Outcome::Unready), problem.as_bytes());
        process::exit(1);
    }
}

struct Worker {
    work: WorkQueue,
    me: Identity,
    tasks: Option<u64>,
    memory: Option<u64>,
    daemon: bool,
    input: Vec<u8>,
    output: Vec<u8>,
    caller: Caller,
}

impl Worker {
    /// Does tasks until there are no more, or enough.
    fn serve(mut self) -> Result<(), (WorkQueue, String)> {
        let mut done = 0;
        let mut failing: Option<Instant> = None;
        let mut looked = Instant::now();
        loop {
            // Who is no daemon ends by itself when the pool's process is gone, whatever waits to be done.
            if !self.daemon && looked.elapsed() >= LOOK {
                if !process::parent().is_some_and(|pool| pool.is_alive()) {
                    break;
                }
                looked = Instant::now();
            }
            let deadline = if self.daemon { Deadline::Never } else { Deadline::after(LOOK) };
            match self.work.take(deadline) {
                Ok(Next::Task(assignment)) => {
                    failing = None;
                    if let Err(problem) = self.perform(assignment) {
                        return Err((self.work, problem));
                    }
                    done += 1;
                    if self.tasks.is_some_and(|tasks| done >= tasks) || self.is_too_large() {
                        break;
                    }
                }
                Ok(Next::Leave) | Err(GetError::ShutDown) => break,
                Err(GetError::Empty) => {}
                // Others may free some.
                Err(GetError::Memory(RingError::Limit { .. } | RingError::System(_)))
                    if failing.get_or_insert_with(Instant::now).elapsed() < PATIENCE =>
                {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(error) => return Err((self.work, error.to_string())),
            }
        }
        Ok(())
    }

    fn perform(&mut self, mut assignment: Assignment) -> Result<(), String> {
        let id = assignment.task.id;
        // What lies in shared memory a faulty process may change while it is read.
        self.input.clear();
        self.input.extend_from_slice(assignment.payload());
        // The function may fork.
        assignment.delivery.release_bytes();
        self.output.clear();
        self.output.resize(REPORT_HEAD, 0);
        let handles = Tally::begin();
        let mark = handles.mark();
        let (outcome, opened) = self.caller.call(&self.input, &mut self.output);
        if Identity::current() != self.me {
            // A fork that the task made and that returned from it: the task is its parent's.
            std::mem::forget(assignment);
            process::exit(0);
        }
        if handles.mark() != mark {
            self.output[Report::LEN] = WITH_HANDLES;
        }
        self.output[..Report::LEN].copy_from_slice(&Report { id, outcome }.to_bytes());
        match self.work.put_report(&self.output) {
            Ok(()) => handles.keep(self.work.reports().id()),
            Err(error @ RingError::Damaged(_)) => return Err(error.to_string()),
            Err(error) => {
                drop(handles);
                let mut short = Report { id, outcome: Outcome::Raised }.to_bytes().to_vec();
                short.resize(REPORT_HEAD, 0);
                let len = self.output.len() - REPORT_HEAD;
                Failure::Result(format!("{len} bytes: {error}")).write(&mut short);
                self.work.put_report(&short).map_err(|error| error.to_string())?;
            }
        }
        assignment.done().map_err(|error| error.to_string())?;
        opened.into_iter().for_each(transfer::Opened::settle);
        for buffer in [&mut self.input, &mut self.output] {
            if buffer.capacity() > KEPT {
                *buffer = Vec::new();
            }
        }
        Ok(())
    }

    fn is_too_large(&self) -> bool {
        // Where it cannot be read there is nothing to compare.
        self.memory.is_some_and(|most| memory::resident().is_ok_and(|now| now > most))
    }
}
