//! What a pool of worker processes has in shared memory: tasks that are acknowledged, reports, and words to the workers.
//!
//! A worker takes a task, does it, reports and acknowledges. One that dies leaves the task in its hands unacknowledged: the task is
//! begun again, by whoever takes it next, as often as it may; after that whoever finds it (the next worker, or the pool)
//! has it reported as lost. Reports come in one queue, so that what a worker has said before its death lies before
//! what is said of the death.
//!
//! The pool is one process; who uses a `WorkQueue` in it as the pool lets one thread at a time cancel.

mod board;
mod dispatcher;
mod in_flight;
mod message;
#[cfg(test)]
mod simulation;
mod timeouts;
mod workers;

use std::io;
use std::time::Duration;

use procession_sys::clock::Deadline;
use procession_sys::identity::Identity;

use self::board::Board;
pub use self::dispatcher::{Dispatcher, Effect, Failure, Front, Phase, Reason};
pub use self::in_flight::{InFlight, Order};
pub use self::message::{Outcome, Report, Task, TaskId, who_lost};
pub use self::workers::Hopeless;
use crate::objects::Handle;
use crate::queue::{Delivery, GetError, HANDLE_LEN, Peeked, PutError, Queue, QueueOptions, RingError};
use crate::shm::{CreateError, OpenError};

/// Reports take more bytes than this where a dead worker may have left a large one.
const MUCH: u64 = 1 << 20;
/// How long who reports waits before the next attempt, when reports take all memory that they may.
pub const UNTIL_COLLECTED: Duration = Duration::from_millis(5);
/// After so many attempts, about a second, it looks whether there is still somebody to collect.
const ATTEMPTS: u32 = 200;

/// A pool's tasks and reports. Clones are the same ones.
#[derive(Clone, Debug)]
pub struct WorkQueue {
    tasks: Queue,
    reports: Queue,
    board: Board,
    /// The pool's process.
    pool: Identity,
    /// How much memory the reports' queue has in use without reports.
    least: u64,
}

/// A task that this worker has to do. Dereferences to the whole message, [`Task::LEN`] bytes of which are the [`Task`].
///
/// Dropped without [`Assignment::done`] it counts as left, as by a death.
#[derive(Debug)]
pub struct Assignment {
    /// Which task it is.
    pub task: Task,
    /// What it is about.
    pub delivery: Delivery,
}

/// What a worker is to do next.
#[derive(Debug)]
pub enum Next {
    /// This task.
    Task(Assignment),
    /// End: the pool has become smaller, or is about to kill this worker.
    Leave,
}

/// A task that nobody will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    /// Which one.
    pub id: TaskId,
    /// Who died with it.
    pub worker: Option<Identity>,
}

/// What became of an attempt to put a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// It lies behind all others.
    Done,
    /// Reports take all memory that they may.
    Full,
    /// A stopped process has a lock: no process can put a report.
    Stuck,
}

/// What became of an attempt to cancel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancelled {
    /// No task of the job begins from now on. For each that has not come back there will be a report.
    Yes,
    /// A task of it runs, in this worker. Nothing has changed.
    Running(Identity),
    /// Too many are cancelled already. Nothing has changed.
    NoRoom,
}

/// What became of an attempt to keep a worker from taking another task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fenced {
    /// It has this task in its hands, and takes no other.
    Yes(TaskId),
    /// It has no such task. Nothing has changed.
    NotRunning,
    /// Too many are fenced and not yet unfenced. Nothing has changed.
    NoRoom,
}

impl WorkQueue {
    /// How many bytes a handle has.
    pub const HANDLE_LEN: usize = 2 * HANDLE_LEN + Handle::LEN + 2 * size_of::<u64>();

    /// Makes one without tasks. This process is the pool's.
    ///
    /// # Errors
    /// [`CreateError`]: the system refused.
    pub fn new() -> Result<Self, CreateError> {
        let options = QueueOptions::new();
        let reports = Queue::create(&options)?;
        Ok(WorkQueue {
            tasks: Queue::create(&options.joinable(true))?,
            least: reports.memory_in_use(),
            reports,
            board: Board::new()?,
            pool: Identity::current(),
        })
    }

    /// The bytes by which a worker can open it.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn to_handle(&self) -> io::Result<Vec<u8>> {
        let parts = [
            &self.tasks.to_handle()?[..],
            &self.reports.to_handle()?,
            &self.board.send()?.to_bytes(),
            &self.pool.to_bits().to_le_bytes(),
            &self.least.to_le_bytes(),
        ];
        Ok(parts.concat())
    }

    /// Opens what a handle leads to.
    ///
    /// # Errors
    /// [`OpenError`]: no living process has it open, or it leads to something else.
    pub fn from_handle(handle: &[u8]) -> Result<Self, OpenError> {
        if handle.len() != Self::HANDLE_LEN {
            return Err(OpenError::Malformed("wrong length"));
        }
        let (tasks, rest) = handle.split_at(HANDLE_LEN);
        let (reports, rest) = rest.split_at(HANDLE_LEN);
        let (board, rest) = rest.split_at(Handle::LEN);
        let word = |at: usize| {
            let bytes = rest.get(at..at + size_of::<u64>()).and_then(|bytes| bytes.try_into().ok());
            bytes.map(u64::from_le_bytes).ok_or(OpenError::Malformed("wrong length"))
        };
        Ok(WorkQueue {
            tasks: Queue::from_handle(tasks)?,
            reports: Queue::from_handle(reports)?,
            board: Board::open(Handle::from_bytes(board)?)?,
            pool: Identity::from_bits(word(0)?).ok_or(OpenError::Malformed("impossible process"))?,
            least: word(size_of::<u64>())?,
        })
    }

    /// Where tasks are put: messages that begin with a [`Task`].
    pub fn tasks(&self) -> &Queue {
        &self.tasks
    }

    /// Where reports come: messages that begin with a [`Report`].
    pub fn reports(&self) -> &Queue {
        &self.reports
    }

    /// Takes the next task that is to be done, waiting for one until `deadline`. What was cancelled or lost on the way is
    /// reported. Tasks that a dead worker left come first.
    ///
    /// # Errors
    /// As [`Queue::get_delivery`]; [`GetError::ShutDown`] when there is nothing more to do.
    pub fn take(&self, deadline: Deadline) -> Result<Next, GetError> {
        loop {
            if self.board.is_fenced() || self.board.may_leave() {
                return Ok(Next::Leave);
            }
            let delivery = self.tasks.get_delivery(deadline)?;
            let task = Task::read(&delivery)?;
            let id = task.id;
            if id.job == 0 {
                // It woke this worker, for it to look whether it is to leave.
                delivery.done()?;
            } else if self.board.is_cancelled(id.job) {
                self.report(Report { id, outcome: Outcome::Cancelled }, &[])?;
                delivery.done()?;
            } else if delivery.earlier_attempts() > task.retries {
                let worker = delivery.left_by().map_or(0, Identity::to_bits);
                self.report(Report { id, outcome: Outcome::Lost }, &worker.to_le_bytes())?;
                delivery.done()?;
            } else {
                return Ok(Next::Task(Assignment { task, delivery }));
            }
        }
    }

    /// Puts a report of a few bytes. While reports take all memory that they may, waits until some are collected.
    ///
    /// # Errors
    /// [`RingError`]: without memory, or damaged.
    pub fn report(&self, report: Report, payload: &[u8]) -> Result<(), RingError> {
        self.put_report(&[&report.to_bytes()[..], payload].concat())
    }

    /// Puts a report that begins the message, as [`WorkQueue::report`] does.
    ///
    /// # Errors
    /// As there.
    pub fn put_report(&self, message: &[u8]) -> Result<(), RingError> {
        let mut attempts = 0u32;
        while self.try_put_report(message, Deadline::Never)? != Put::Done {
            attempts += 1;
            if attempts.is_multiple_of(ATTEMPTS) && !self.pool.is_alive() {
                // As after a shutdown.
                return Ok(());
            }
            std::thread::sleep(UNTIL_COLLECTED);
        }
        Ok(())
    }

    /// Puts a report as [`WorkQueue::report`] does, but does not wait for room, nor for a stopped process.
    ///
    /// # Errors
    /// As [`WorkQueue::report`].
    pub fn try_report(&self, report: Report, payload: &[u8]) -> Result<Put, RingError> {
        self.try_put_report(&[&report.to_bytes()[..], payload].concat(), Deadline::Now)
    }

    fn try_put_report(&self, message: &[u8], deadline: Deadline) -> Result<Put, RingError> {
        match self.reports.put(message, deadline) {
            // After a shutdown no process reads it any more.
            Ok(()) | Err(PutError::ShutDown) => Ok(Put::Done),
            // There is no bound on how many there are.
            Err(PutError::Full) => Ok(Put::Stuck),
            Err(PutError::Memory(error)) if self.may_be_freed(&error) => Ok(Put::Full),
            Err(PutError::Memory(error)) => Err(error),
        }
    }

    /// Whether a report that could not be put for this reason may be put once others are collected: it would fit if it were the
    /// only one, and there are others.
    pub fn may_be_collected(&self, error: &RingError) -> bool {
        self.may_fit(error) && !self.reports.is_empty()
    }

    /// As [`WorkQueue::may_be_collected`], also when others are just put, or were taken and are not dropped: for a pool that does not
    /// keep reports where they lie.
    pub fn may_be_freed(&self, error: &RingError) -> bool {
        self.may_fit(error)
            && (!self.reports.is_empty() || self.reports.memory_in_use() > self.memory_without_reports())
    }

    fn may_fit(&self, error: &RingError) -> bool {
        matches!(error, RingError::Limit { needed, max_bytes, .. }
            if needed.saturating_add(self.memory_without_reports()) <= *max_bytes)
    }

    /// How much memory at most the queue of reports has in use when it is empty.
    fn memory_without_reports(&self) -> u64 {
        self.least.saturating_add(MUCH)
    }

    /// Finds the tasks that dead workers left and that are not to be begun again, or were cancelled, and acknowledges them; also the
    /// memory of large reports that they had begun. To be called when a worker has ended.
    ///
    /// False if a stopped process has a lock. Then it finds what it can without, and acknowledges nothing: it is to be called
    /// again, and finds the same tasks once more.
    ///
    /// # Errors
    /// As [`Queue::get_left`].
    pub fn find_lost(&self) -> Result<(Vec<Lost>, bool), GetError> {
        let mut lost = Vec::new();
        let mut complete = true;
        if self.reports.memory_in_use() > MUCH {
            // Some of it may be of reports that dead workers had begun. No other process may look for that soon.
            complete = self.reports.try_trim()?;
        }
        while let Some(result) = self.next_lost(Deadline::Now).transpose() {
            match result {
                Ok(next) => lost.push(next),
                Err(GetError::Empty) => {
                    let peek = |peeked: Peeked<'_>| self.peek_lost(peeked);
                    lost.extend(self.tasks.peek_deliveries(peek).map_err(GetError::from)?);
                    return Ok((lost, false));
                }
                Err(error) => return Err(error),
            }
        }
        Ok((lost, complete))
    }

    /// Finds tasks as [`WorkQueue::find_lost`] does, but waits for locks.
    ///
    /// # Errors
    /// As [`Queue::get_left`].
    pub fn lost(&self) -> Result<Vec<Lost>, GetError> {
        std::iter::from_fn(|| self.next_lost(Deadline::Never).transpose()).collect()
    }

    fn next_lost(&self, deadline: Deadline) -> Result<Option<Lost>, GetError> {
        let hopeless =
            |task: &[u8], attempts| Task::read(task).is_ok_and(|task| self.is_hopeless(task, attempts));
        let Some(delivery) = self.tasks.get_left(deadline, hopeless)? else { return Ok(None) };
        let lost = Lost { id: Task::read(&delivery)?.id, worker: delivery.left_by() };
        delivery.done()?;
        Ok(Some(lost))
    }

    fn peek_lost(&self, Peeked { holder, is_left, attempts, beginning }: Peeked<'_>) -> Option<Lost> {
        let task = Task::read(beginning).ok()?;
        let attempts = if is_left {
            attempts
        } else if holder?.is_alive() {
            return None;
        } else {
            attempts + 1
        };
        self.is_hopeless(task, attempts).then_some(Lost { id: task.id, worker: holder })
    }

    /// Whether a task that was left so often is not to be begun again.
    fn is_hopeless(&self, task: Task, attempts: u32) -> bool {
        task.id.job != 0 && (attempts > task.retries || self.board.is_cancelled(task.id.job))
    }

    /// Which workers have a task in their hands. As of an instant during the call, unless a stopped process has a lock: then as of
    /// an instant each.
    ///
    /// # Errors
    /// As [`Queue::with_deliveries`].
    pub fn running(&self) -> Result<Vec<(Identity, TaskId)>, RingError> {
        match self.while_running(Deadline::Now, |running| running) {
            Err(RingError::Busy) => self.peek_running(),
            running => running,
        }
    }

    fn peek_running(&self) -> Result<Vec<(Identity, TaskId)>, RingError> {
        self.tasks.peek_deliveries(|Peeked { holder, is_left, beginning, .. }| {
            Some((holder.filter(|_| !is_left)?, Task::read(beginning).ok()?.id))
        })
    }

    /// Calls `then` with what [`WorkQueue::running`] has, while it is so: no worker takes or acknowledges a task meanwhile. Who takes
    /// one afterwards finds on the board what `then` has written there, as does who acknowledges.
    fn while_running<R>(
        &self,
        deadline: Deadline,
        then: impl FnOnce(Vec<(Identity, TaskId)>) -> R,
    ) -> Result<R, RingError> {
        let read = |worker, task: &[u8]| Some((worker, Task::read(task).ok()?.id));
        self.tasks.with_deliveries(deadline, read, then)
    }

    /// If a worker has a task of a job in its hands, or the one of that index, forbids it to take another one. The worker may be killed
    /// then without any other task's being hurt; with [`WorkQueue::unfence`] when it is gone.
    ///
    /// # Errors
    /// As [`WorkQueue::running`].
    pub fn fence_if_running(&self, pid: u32, job: u64, index: Option<u32>) -> Result<Fenced, RingError> {
        let find = |running: Vec<(Identity, TaskId)>| {
            running.into_iter().find(|(worker, id)| {
                worker.pid_number() == pid && id.job == job && index.is_none_or(|index| index == id.index)
            })
        };
        let fence = |found| match found {
            None => Fenced::NotRunning,
            Some((worker, id)) if self.board.fence(worker) => Fenced::Yes(id),
            Some(_) => Fenced::NoRoom,
        };
        match self.while_running(Deadline::Now, |running| fence(find(running))) {
            Err(RingError::Busy) => {}
            fenced => return fenced,
        }
        // A stopped process has the lock. A worker that has the task still after it was fenced, takes no other.
        let found = find(self.peek_running()?);
        let fenced = fence(found);
        if matches!(fenced, Fenced::Yes(_)) && find(self.peek_running()?) != found {
            self.board.unfence(pid);
            return Ok(Fenced::NotRunning);
        }
        Ok(fenced)
    }

    /// Lets a worker of this pid take tasks again.
    pub fn unfence(&self, pid: u32) {
        self.board.unfence(pid);
    }

    /// Cancels what has not begun of a job, unless a task of it runs.
    ///
    /// # Errors
    /// As [`WorkQueue::running`].
    pub fn cancel_unless_running(&self, job: u64) -> Result<Cancelled, RingError> {
        self.while_running(Deadline::Never, |running| match running.iter().find(|(_, id)| id.job == job) {
            Some((worker, _)) => Cancelled::Running(*worker),
            None if self.board.cancel(job) => Cancelled::Yes,
            None => Cancelled::NoRoom,
        })
    }

    /// Cancels what has not begun of a job; which of its tasks run, and where. False when too many are cancelled already.
    ///
    /// # Errors
    /// As [`WorkQueue::running`].
    pub fn cancel(&self, job: u64) -> Result<(bool, Vec<(Identity, TaskId)>), RingError> {
        self.while_running(Deadline::Never, |mut running| {
            running.retain(|(_, id)| id.job == job);
            (self.board.cancel(job), running)
        })
    }

    /// Forgets that a job was cancelled, all of whose tasks have come back.
    pub fn forget_cancelled(&self, job: u64) {
        self.board.forget(job);
    }

    /// Takes back a task that nobody has begun, if there is one.
    ///
    /// # Errors
    /// As [`Queue::get_delivery`].
    pub fn take_back(&self) -> Result<Option<TaskId>, GetError> {
        loop {
            let delivery = match self.tasks.get_delivery(Deadline::Now) {
                Ok(delivery) => delivery,
                Err(GetError::Empty | GetError::ShutDown) => return Ok(None),
                Err(error) => return Err(error),
            };
            let id = Task::read(&delivery)?.id;
            delivery.done()?;
            if id.job != 0 {
                return Ok(Some(id));
            }
        }
    }

    /// Lets so many workers end, each after the task that it has. Those that wait are woken, unless a stopped process has a lock:
    /// then it fails with [`PutError::Full`], and is to be called again.
    ///
    /// # Errors
    /// As [`Queue::put`].
    pub fn release(&self, workers: u32) -> Result<(), PutError> {
        self.board.release(workers.into());
        let wake = Task { id: TaskId { job: 0, index: 0 }, retries: u32::MAX };
        (0..workers).try_for_each(|_| self.tasks.put(&wake.to_bytes(), Deadline::Now))
    }

    /// Lets the workers stay that [`WorkQueue::release`] let go and that have not gone yet; how many those are.
    pub fn recall(&self) -> u64 {
        self.board.recall()
    }

    /// Lets the workers end when all tasks are done.
    ///
    /// # Errors
    /// As [`Queue::shutdown`].
    pub fn close(&self) -> Result<(), RingError> {
        self.tasks.shutdown(false)
    }

    /// Declares that all workers have ended: one that was killed at its start may not have opened the handle that it was sent.
    pub fn disown_handles(&self) {
        self.tasks.disown_handles();
        self.reports.disown_handles();
    }

    /// Discards all tasks that have not begun, and lets the workers end.
    ///
    /// # Errors
    /// As [`Queue::shutdown`].
    pub fn terminate(&self) -> Result<(), RingError> {
        self.tasks.shutdown(true)
    }
}

impl std::ops::Deref for Assignment {
    type Target = [u8];

    #[track_caller]
    fn deref(&self) -> &[u8] {
        &self.delivery
    }
}

impl Assignment {
    /// What follows the [`Task`].
    pub fn payload(&self) -> &[u8] {
        self.delivery.get(Task::LEN..).unwrap_or_default()
    }

    /// Acknowledges: the task was done, and reported.
    ///
    /// # Errors
    /// As [`Delivery::done`].
    pub fn done(self) -> Result<(), RingError> {
        self.delivery.done()
    }
}
