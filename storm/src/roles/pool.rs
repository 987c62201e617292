//! Has a pool, kills its workers, and looks at what comes of every task.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Relaxed, Release};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use procession::pool::TaskError;
use procession::process::{ExitStatus, getpid};
use procession::{Pool, RawArray, StartMethod};
use procession_sys::identity::Identity;
use rustix::process::{Pid, Signal, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use super::{Doing, Outcome, Station};

/// Tasks that one pool is given at most, and those of one batch.
const TASKS: u32 = 2_000;
const BATCH: u32 = 40;
/// The longest time between two kills of its workers (µs), and the longest for which one is stopped.
const GAP: u64 = 40_000;
const STOP: u64 = 20_000;

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct PoolOwner {
    /// Whether it stops workers as well. Not one that may be killed: nobody would let them go on, and so end.
    pub(crate) stops: bool,
}

/// A task's number and bytes.
type Item = (u32, Vec<u8>);

/// In a worker: how often each task was begun.
static BEGUN: OnceLock<RawArray<u32>> = OnceLock::new();

fn begin(begun: RawArray<u32>) {
    BEGUN.get_or_init(|| begun);
}

/// Gives back what it gets, and says who did.
fn echo((number, bytes): Item) -> (u32, u32, Vec<u8>) {
    if let Some(begun) = BEGUN.get() {
        // A task is in one worker's hands at a time.
        begun.set(number as usize, begun.get(number as usize) + 1);
    }
    (number, getpid(), bytes)
}

/// What is known of a pool's workers.
#[derive(Default)]
struct Workers {
    /// Those that have done a task. Only they are killed: a pool whose workers do not get ready gives up.
    seen: HashMap<u32, Option<Identity>>,
    killed: HashSet<u32>,
}

impl PoolOwner {
    pub(super) fn run(self, station: &mut Station) -> Outcome {
        while !station.is_over() {
            self.have_a_pool(station)?;
        }
        Ok(())
    }

    fn have_a_pool(self, station: &mut Station) -> Outcome {
        let begun = RawArray::new(TASKS as usize).map_err(|error| format!("counters: {error}"))?;
        let mut builder = Pool::builder()
            .workers(station.random.usize(1..=3))
            .start_method(StartMethod::ALL[station.random.usize(0..3)])
            .initializer(begin, begun.clone());
        if station.random.u8(..) < 60 {
            builder = builder.tasks_per_child(station.random.u64(1..50));
        }
        station.doing(Doing::Starting);
        let pool = builder.build().map_err(|error| format!("a pool: {error}"))?;
        station.beat();
        let (workers, over) = (Mutex::new(Workers::default()), AtomicBool::new(false));
        let seed = station.random.u64(..);
        let outcome = std::thread::scope(|scope| {
            scope.spawn(|| harass(&pool, &workers, &over, self.stops, seed));
            let outcome = use_up(&pool, &begun, &workers, station).and_then(|()| end(&pool, station));
            over.store(true, Relaxed);
            outcome
        });
        outcome?;
        drop(pool);
        let workers = lock(&workers);
        match workers.seen.iter().find(|(_, worker)| worker.is_some_and(Identity::is_alive)) {
            Some((pid, _)) => Err(format!("the worker {pid} outlives its pool")),
            None => Ok(()),
        }
    }
}

/// Gives a pool tasks until it has had enough, or the turn is over.
fn use_up(pool: &Pool, begun: &RawArray<u32>, workers: &Mutex<Workers>, station: &mut Station) -> Outcome {
    let most = station.random.u32(BATCH..=TASKS);
    let mut first = 0;
    while first + BATCH <= most && !station.is_over() {
        let end = first + station.random.u32(1..=BATCH);
        let items: Vec<Item> = (first..end)
            .map(|number| {
                let len = match station.random.u8(..) {
                    ..5 => station.random.usize(..1 << 20),
                    5..50 => station.random.usize(..20_000),
                    _ => station.random.usize(..100),
                };
                (number, vec![number as u8; len])
            })
            .collect();
        let retries = station.random.u32(0..=3);
        let call = pool.task(echo).retries(retries);
        let lens: Vec<usize> = items.iter().map(|(_, bytes)| bytes.len()).collect();
        let way = station.random.u8(0..3);
        station.doing(Doing::Getting);
        let mut come = HashSet::new();
        let mut judge = |number: Option<u32>, result: Result<(u32, u32, Vec<u8>), TaskError>| {
            let number = judge(number, result, &lens, first, workers)?;
            if !come.insert(number) {
                return Err(format!("task {number} has come twice"));
            }
            let times = begun.get(number as usize);
            if times > retries + 1 {
                return Err(format!("task {number} was begun {times} times with {retries} retries"));
            }
            station.beat();
            Ok(())
        };
        let handed_out = |error: TaskError| format!("handing out tasks {first} to {end}: {error}");
        if way == 0 {
            let results: Result<Vec<_>, _> =
                items.into_iter().map(|item| pool.task(echo).retries(retries).apply_async(item)).collect();
            for (number, result) in (first..).zip(results.map_err(handed_out)?) {
                judge(Some(number), result.get())?;
            }
        } else if way == 1 {
            for (number, result) in (first..).zip(call.imap(items).map_err(handed_out)?) {
                judge(Some(number), result)?;
            }
        } else {
            for result in call.imap_unordered(items).map_err(handed_out)? {
                judge(None, result)?;
            }
        }
        if come.len() as u32 != end - first {
            return Err(format!("{} of the tasks {first} to {end} have come", come.len()));
        }
        station.slot.put.fetch_add(u64::from(end - first) << 16, Release);
        first = end;
    }
    Ok(())
}

/// Looks at what has come of a task, of the one of that number if it is known: its number.
fn judge(
    number: Option<u32>,
    result: Result<(u32, u32, Vec<u8>), TaskError>,
    lens: &[usize],
    first: u32,
    workers: &Mutex<Workers>,
) -> Result<u32, String> {
    match result {
        Ok((found, pid, bytes)) => {
            let whole = (found.checked_sub(first))
                .and_then(|at| lens.get(at as usize))
                .is_some_and(|len| *len == bytes.len() && bytes.iter().all(|byte| *byte == found as u8));
            if number.is_some_and(|number| number != found) || !whole {
                return Err(format!("task {number:?} has the result of {found}, {} bytes", bytes.len()));
            }
            let identity = || Pid::from_raw(pid as i32).and_then(|pid| Identity::of_pid(pid).ok());
            lock(workers).seen.entry(pid).or_insert_with(identity);
            Ok(found)
        }
        Err(TaskError::WorkerDied {
            task,
            pid,
            status: ExitStatus::Signaled { signal: 9, .. } | ExitStatus::Unknown,
        }) => {
            if !lock(workers).killed.contains(&pid) {
                return Err(format!("{task}: the worker {pid} is said to have been killed, and was not"));
            }
            let found = task.items().map(|items| first + *items.start() as u32);
            number.or(found).ok_or_else(|| format!("{task} is no item of a map"))
        }
        Err(error) => Err(format!("task {number:?}: {error}")),
    }
}

/// Ends a pool in one of the ways that there are.
fn end(pool: &Pool, station: &mut Station) -> Outcome {
    station.doing(Doing::Closing);
    let ended = match station.random.u8(0..3) {
        0 => pool.close().and_then(|()| pool.join()),
        1 => pool.terminate(),
        _ => Ok(()),
    };
    station.beat();
    ended.map_err(|error| format!("ending a pool: {error}"))
}

/// Kills workers of a pool, and stops some for a moment, until the pool has ended.
fn harass(pool: &Pool, workers: &Mutex<Workers>, over: &AtomicBool, stops: bool, seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    while !over.load(Relaxed) {
        std::thread::sleep(Duration::from_micros(random.u64(1_000..GAP)));
        let pids = pool.worker_pids();
        let victim = {
            let mut workers = lock(workers);
            let ready = pids.iter().filter_map(|pid| Some((*pid, (*workers.seen.get(pid)?)?)));
            let victim = random.choice(ready.collect::<Vec<_>>());
            workers.killed.extend(victim.map(|(pid, _)| pid));
            victim
        };
        let Some(Ok(pidfd)) = victim.map(|(_, worker)| worker.open()) else { continue };
        // It may have ended: that is no matter.
        if stops && random.u8(..) < 60 {
            let _ = pidfd_send_signal(&pidfd, Signal::STOP);
            std::thread::sleep(Duration::from_micros(random.u64(..STOP)));
        }
        let _ = pidfd_send_signal(&pidfd, Signal::KILL);
    }
}

fn lock(workers: &Mutex<Workers>) -> MutexGuard<'_, Workers> {
    workers.lock().unwrap_or_else(PoisonError::into_inner)
}
