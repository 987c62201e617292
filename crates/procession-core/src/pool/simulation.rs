//! The dispatcher without processes: a simulated pool whose workers die at every step, whose reports and ends are noticed late
//! and in any order that a system allows, compared with what is known to have happened.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::dispatcher::{Dispatcher, Effect, Failure, Front, Phase, Reason};
use super::{Lost, Outcome, Report, TaskId};
use procession_sys::identity::Identity;

const KILLED: i32 = -9;
const GAVE_UP: i32 = 1;
const LEFT: i32 = 0;
const LIMIT: Duration = Duration::from_millis(100);
/// Tasks of this job have the limit.
const TIMED: u64 = 2;

struct Simulated;

impl Front for Simulated {
    type Status = i32;
    type Cause = &'static str;

    fn ended_by_itself(status: &i32) -> bool {
        *status >= 0
    }
}

/// Where a worker is. It dies at each of these places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Start,
    Idle,
    /// It has a task in its hands, and has not reported.
    Task(usize),
    /// It has reported, and not acknowledged.
    Reported(usize),
    /// It has said that it cannot get ready.
    Unready,
    Dead(i32),
}

#[derive(Debug)]
struct Worker {
    pid: u32,
    at: At,
    /// The front has noticed its end.
    is_noticed: bool,
    was_ready: bool,
}

#[derive(Debug)]
struct SimulatedTask {
    id: TaskId,
    retries: u32,
    /// Workers that died with it, or have it.
    begun: u32,
    /// The dead worker that left it.
    left_by: Option<u32>,
    is_over: bool,
    is_reported: bool,
    /// The pids that the pool killed for it, and why.
    kills: Vec<(u32, Reason)>,
    /// What came of it, in order.
    outcomes: Vec<Option<Failure<i32>>>,
}

struct Pool {
    dispatcher: Dispatcher<Simulated>,
    now: Instant,
    workers: Vec<Worker>,
    tasks: Vec<SimulatedTask>,
    reports: VecDeque<(Report, Vec<u8>)>,
    fences: Vec<u32>,
    leaves: u32,
    next_pid: u32,
    gave_up: bool,
    /// What the system does with starts: refuse them.
    refuses: bool,
    /// Whether all other workers are too busy to meet lost tasks, so that the pool alone finds them.
    is_busy: bool,
    /// Whether reports take no more.
    is_full: bool,
    /// Whether a stopped process has the lock of the reports: none is put.
    is_silent: bool,
    /// Whether a stopped process has the lock of the tasks: none is taken, and the lost ones are only seen.
    is_stuck: bool,
}

fn identity(pid: u32) -> Identity {
    Identity::from_bits(pid.into()).expect("an identity")
}

impl Pool {
    fn new(target: usize, tasks: &[(u64, u32)]) -> Self {
        let mut pool = Pool {
            dispatcher: Dispatcher::new(target),
            now: Instant::now(),
            workers: Vec::new(),
            tasks: Vec::new(),
            reports: VecDeque::new(),
            fences: Vec::new(),
            leaves: 0,
            next_pid: 1,
            gave_up: false,
            refuses: false,
            is_busy: false,
            is_full: false,
            is_stuck: false,
            is_silent: false,
        };
        for (index, (job, retries)) in (0..).zip(tasks) {
            let id = TaskId { job: *job, index };
            pool.tasks.push(SimulatedTask {
                id,
                retries: *retries,
                begun: 0,
                left_by: None,
                is_over: false,
                is_reported: false,
                kills: Vec::new(),
                outcomes: Vec::new(),
            });
            if *job == TIMED {
                pool.dispatcher.limit(*job, LIMIT);
            }
        }
        for _ in 0..target {
            pool.start();
        }
        pool
    }

    fn start(&mut self) {
        let pid = self.next_pid;
        self.next_pid += 1;
        self.workers.push(Worker { pid, at: At::Start, is_noticed: false, was_ready: false });
        self.dispatcher.started(pid);
    }

    fn alive(&self) -> impl Iterator<Item = &Worker> {
        self.workers.iter().filter(|worker| !matches!(worker.at, At::Dead(_)))
    }

    /// One step of a worker, as `WorkQueue::take` and its caller make it.
    fn step(&mut self, which: usize) {
        let Some(worker) = self.workers.get_mut(which) else { return };
        match worker.at {
            At::Start | At::Task(_) if self.is_silent => {}
            // Its next task may be a lost one.
            At::Idle if self.is_silent => {}
            At::Start => {
                worker.at = At::Idle;
                worker.was_ready = true;
                self.reports.push_back((Report::of_worker(worker.pid, Outcome::Ready), Vec::new()));
            }
            At::Unready => worker.at = At::Dead(GAVE_UP),
            At::Idle if self.fences.contains(&worker.pid) => worker.at = At::Dead(LEFT),
            At::Idle if self.leaves > 0 => {
                self.leaves -= 1;
                worker.at = At::Dead(LEFT);
            }
            At::Idle if self.is_stuck => {}
            At::Idle => {
                let is_held = |index: usize, workers: &[Worker]| {
                    workers.iter().any(|other| other.at == At::Task(index) || other.at == At::Reported(index))
                };
                let free = (0..self.tasks.len()).find(|index| {
                    let task = &self.tasks[*index];
                    let is_met = !self.is_busy || task.begun <= task.retries;
                    !task.is_over && is_met && !is_held(*index, &self.workers)
                });
                let Some(index) = free else { return };
                let task = &mut self.tasks[index];
                if task.begun > task.retries {
                    let dead = identity(task.left_by.expect("a worker died with it"));
                    let report = Report { id: task.id, outcome: Outcome::Lost };
                    self.reports.push_back((report, dead.to_bits().to_le_bytes().to_vec()));
                    task.is_over = true;
                } else {
                    task.begun += 1;
                    self.workers[which].at = At::Task(index);
                }
            }
            At::Task(index) => {
                let id = self.tasks[index].id;
                self.reports.push_back((Report { id, outcome: Outcome::Returned }, Vec::new()));
                self.tasks[index].is_reported = true;
                worker.at = At::Reported(index);
            }
            At::Reported(index) => {
                self.tasks[index].is_over = true;
                worker.at = At::Idle;
            }
            At::Dead(_) => {}
        }
    }

    fn die(&mut self, which: usize, status: i32) {
        let Some(worker) = self.workers.get_mut(which) else { return };
        let at = std::mem::replace(&mut worker.at, At::Dead(status));
        match at {
            At::Task(index) | At::Reported(index) => self.tasks[index].left_by = Some(worker.pid),
            At::Dead(before) => worker.at = At::Dead(before),
            _ => {}
        }
    }

    fn refuse_to_begin(&mut self, which: usize) {
        let Some(worker) = self.workers.get_mut(which) else { return };
        if worker.at == At::Start && !self.is_silent {
            worker.at = At::Unready;
            self.reports.push_back((Report::of_worker(worker.pid, Outcome::Unready), Vec::new()));
        }
    }

    fn notice(&mut self, which: usize) {
        let Some(worker) = self.workers.get_mut(which) else { return };
        if let At::Dead(status) = worker.at
            && !std::mem::replace(&mut worker.is_noticed, true)
        {
            self.dispatcher.exited(worker.pid, status);
        }
    }

    fn read(&mut self) {
        let Some((report, payload)) = self.reports.pop_front() else { return };
        if report.outcome == Outcome::Returned {
            self.outcome(report.id, None);
        } else {
            self.dispatcher.report(report, &payload, || "it cannot begin");
        }
    }

    fn outcome(&mut self, id: TaskId, failure: Option<Failure<i32>>) {
        let task = self.tasks.iter_mut().find(|task| task.id == id).expect("a task");
        task.outcomes.push(failure);
    }

    fn kill(&mut self, pid: u32, job: u64, index: Option<u32>, reason: Reason) {
        let held = self.workers.iter().enumerate().find_map(|(which, worker)| match worker.at {
            At::Task(task) | At::Reported(task) if worker.pid == pid => Some((which, task)),
            _ => None,
        });
        let Some((which, task)) = held else { return };
        let id = self.tasks[task].id;
        if id.job != job || index.is_some_and(|index| index != id.index) {
            return;
        }
        self.fences.push(pid);
        if self.dispatcher.fenced(pid, id, reason) {
            self.tasks[task].kills.push((pid, reason));
            self.die(which, KILLED);
        } else {
            self.unfence(pid);
        }
    }

    fn unfence(&mut self, pid: u32) {
        if let Some(place) = self.fences.iter().position(|fenced| *fenced == pid) {
            self.fences.remove(place);
        }
    }

    /// Carries one effect out; whether there was one.
    fn supervise(&mut self) -> bool {
        let Some(effect) = self.dispatcher.poll(self.now) else { return false };
        match effect {
            Effect::Start if self.refuses => self.dispatcher.start_refused(self.now, "no memory"),
            Effect::Start => self.start(),
            Effect::Announce(pid) if self.is_full => self.dispatcher.not_announced(self.now, pid, false),
            Effect::Announce(pid) if self.is_silent => {
                while !self.reports.is_empty() {
                    self.read();
                }
                self.dispatcher.not_announced(self.now, pid, true);
            }
            Effect::Announce(pid) => {
                self.reports.push_back((Report::of_worker(pid, Outcome::Ended), Vec::new()));
            }
            Effect::Look => {
                let held = self.workers.iter().filter_map(|worker| match worker.at {
                    At::Task(task) | At::Reported(task) => Some((identity(worker.pid), self.tasks[task].id)),
                    _ => None,
                });
                let running: Vec<_> = held.collect();
                self.dispatcher.look(self.now, &running);
            }
            Effect::Kill(pid, id, reason) => self.kill(pid, id.job, Some(id.index), reason),
            Effect::Unfence(pid) => self.unfence(pid),
            Effect::FindLost => {
                let workers = &self.workers;
                let is_held = |index| {
                    workers
                        .iter()
                        .any(|worker| worker.at == At::Task(index) || worker.at == At::Reported(index))
                };
                let mut lost = Vec::new();
                for (index, task) in self.tasks.iter_mut().enumerate() {
                    if !task.is_over && !is_held(index) && task.begun > task.retries {
                        task.is_over = !self.is_stuck;
                        lost.push(Lost { id: task.id, worker: task.left_by.map(identity) });
                    }
                }
                self.dispatcher.found_lost(self.now, lost, !self.is_stuck);
            }
            Effect::Fail(id, failure) => self.outcome(id, Some(failure)),
            Effect::Resize(surplus) => self.leaves = surplus,
            Effect::GiveUp(hopeless) => {
                assert!(hopeless.failed_starts >= 3, "{hopeless:?}");
                let ready = self.alive().filter(|worker| worker.was_ready);
                let reports = &self.reports;
                let is_unread = |worker: &&Worker| {
                    reports.contains(&(Report::of_worker(worker.pid, Outcome::Ready), Vec::new()))
                };
                assert!(ready.filter(|worker| !is_unread(worker)).count() == 0, "a worker is ready");
                self.gave_up = true;
                self.dispatcher.end(Phase::Broken);
            }
            Effect::CannotGoOn(..) => panic!("no worker that was ready says that it is not"),
        }
        true
    }

    fn act(&mut self, (kind, which): (u8, u8)) {
        let worker = usize::from(which);
        match kind {
            0 | 1 => self.step(worker),
            2 => drop(self.supervise()),
            3 => self.read(),
            4 => self.notice(worker),
            5 => self.die(worker, KILLED),
            6 => self.refuse_to_begin(worker),
            7 => self.now += Duration::from_millis(u64::from(which) * 40),
            8 => {
                if let Some(pid) = self.workers.get(worker).map(|worker| worker.pid) {
                    self.kill(pid, u64::from(which % 3), None, Reason::Cancelled);
                }
            }
            9 => self.dispatcher.resize(usize::from(which % 4) + 1),
            10 => self.refuses = !self.refuses,
            11 => self.is_full = !self.is_full,
            12 => self.is_stuck = !self.is_stuck,
            13 => self.is_silent = !self.is_silent,
            _ => while self.supervise() {},
        }
    }

    /// From here on no worker dies, and all is noticed.
    fn settle(&mut self) {
        self.refuses = false;
        self.is_full = false;
        self.is_stuck = false;
        self.is_silent = false;
        for round in 0.. {
            assert!(round < 1000, "the pool does not come to rest: {:?} {:?}", self.workers, self.tasks);
            (0..self.workers.len()).for_each(|which| {
                self.step(which);
                self.notice(which);
            });
            while !self.reports.is_empty() {
                self.read();
            }
            while self.supervise() {}
            let workers = self.alive().count();
            let is_done = self.tasks.iter().all(|task| task.is_over)
                && workers == self.dispatcher.target()
                && self.reports.is_empty()
                && !self.dispatcher.must_collect();
            if is_done || self.gave_up {
                return;
            }
            if let Some(at) = self.dispatcher.next_poll(self.now) {
                self.now = self.now.max(at);
            }
        }
    }

    fn check(&self) {
        let statuses: HashMap<u32, i32> = self
            .workers
            .iter()
            .filter_map(|worker| match worker.at {
                At::Dead(status) => Some((worker.pid, status)),
                _ => None,
            })
            .collect();
        for task in &self.tasks {
            assert!(task.begun <= task.retries + 1, "{task:?}");
            if self.gave_up {
                continue;
            }
            let first = task.outcomes.first().unwrap_or_else(|| panic!("nothing came of {task:?}"));
            if task.is_reported {
                assert!(first.is_none(), "a result was reported: {task:?}");
                continue;
            }
            let Some(failure) = first else { panic!("no result was reported: {task:?}") };
            let pid = task.left_by.expect("a worker died with it");
            assert_eq!(task.outcomes.len(), 1, "{task:?}");
            assert_eq!((failure.pid, failure.status), (Some(pid), statuses.get(&pid).copied()), "{task:?}");
            let kill = task.kills.iter().find(|(killed, _)| *killed == pid).map(|(_, reason)| *reason);
            assert_eq!(failure.reason, kill, "{task:?}");
        }
        if !self.gave_up {
            let alive: Vec<u32> = self.alive().map(|worker| worker.pid).collect();
            assert_eq!(self.dispatcher.workers().collect::<Vec<_>>(), alive);
            assert!(self.fences.is_empty(), "{:?} of {:?}", self.fences, self.workers);
        }
    }
}

fn run(target: usize, tasks: &[(u64, u32)], is_busy: bool, actions: impl IntoIterator<Item = (u8, u8)>) {
    let mut pool = Pool::new(target, tasks);
    pool.is_busy = is_busy;
    actions.into_iter().for_each(|action| pool.act(action));
    pool.settle();
    pool.check();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn whatever_dies_and_whenever_it_is_noticed_each_task_has_its_outcome(
        target in 1usize..4,
        tasks in prop::collection::vec((1u64..3, 0u32..3), 0..6),
        is_busy: bool,
        actions in prop::collection::vec((0u8..15, 0u8..6), 0..120),
    ) {
        run(target, &tasks, is_busy, actions);
    }
}

/// Every order of so many events of two workers with two tasks, one of which has a limit.
#[test]
fn every_short_order_of_events() {
    const EVENTS: [(u8, u8); 11] =
        [(0, 0), (0, 1), (5, 0), (5, 1), (4, 0), (4, 1), (3, 0), (14, 0), (7, 3), (6, 0), (12, 0)];
    const DEPTH: u32 = 5;
    for number in 0..EVENTS.len().pow(DEPTH) {
        let order = (0..DEPTH).map(|place| EVENTS[number / EVENTS.len().pow(place) % EVENTS.len()]);
        // Both workers are with a task, or have just been started.
        let begun = [(0, 0), (0, 1), (0, 0), (0, 1)];
        let skip = if number % 2 == 0 { 0 } else { begun.len() };
        run(2, &[(1, 1), (TIMED, 0)], number % 3 == 0, begun.into_iter().skip(skip).chain(order));
    }
}

#[test]
fn a_lost_task_fails_while_a_process_is_stopped_with_a_lock_and_fails_once() {
    for is_silent in [false, true] {
        let mut pool = Pool::new(1, &[(1, 0)]);
        pool.is_busy = true;
        pool.step(0);
        pool.step(0);
        pool.die(0, KILLED);
        pool.notice(0);
        (pool.is_stuck, pool.is_silent) = (!is_silent, is_silent);
        while pool.supervise() || !pool.reports.is_empty() {
            pool.read();
        }
        assert_eq!((pool.tasks[0].outcomes.len(), pool.tasks[0].is_over), (1, is_silent));
        pool.settle();
        pool.check();
    }
}

#[test]
fn what_is_known_of_a_process_is_not_held_against_the_next_of_its_number() {
    let now = Instant::now();
    let mut dispatcher = Dispatcher::<Simulated>::new(1);
    let id = TaskId { job: 1, index: 0 };
    let ended = Report::of_worker(7, Outcome::Ended);
    let lost = Lost { id, worker: Some(identity(7)) };
    for _ in 0..2 {
        dispatcher.started(7);
        assert!(dispatcher.fenced(7, id, Reason::Cancelled), "it was not killed yet");
        dispatcher.exited(7, KILLED);
        dispatcher.report(ended, &[], || "");
        while dispatcher.poll(now).is_some_and(|effect| !matches!(effect, Effect::FindLost)) {}
        dispatcher.found_lost(now, vec![lost], true);
        let failure = Failure { pid: Some(7), status: Some(KILLED), reason: Some(Reason::Cancelled) };
        let mut effects = std::iter::from_fn(|| dispatcher.poll(now));
        assert!(effects.any(|effect| matches!(effect, Effect::Fail(of, why) if of == id && why == failure)));
    }
    // A task that the next one dies with, of its own accord.
    dispatcher.started(7);
    dispatcher.exited(7, GAVE_UP);
    dispatcher.report(ended, &[], || "");
    dispatcher.found_lost(now, vec![lost], true);
    let failure = Failure { pid: Some(7), status: Some(GAVE_UP), reason: None };
    let mut effects = std::iter::from_fn(|| dispatcher.poll(now));
    assert!(effects.any(|effect| matches!(effect, Effect::Fail(of, why) if of == id && why == failure)));
}
