//! What a pool of worker processes has in shared memory: tasks that are acknowledged, reports, and words to the workers.
//!
//! A worker takes a task, does it, reports and acknowledges. One that dies leaves the task in its hands unacknowledged: the task is
//! begun again, by whoever takes it next, as often as it may; after that whoever finds it (the next worker, or the pool)
//! has it reported as lost. Reports come in one queue, so that what a worker has said before its death lies before
//! what is said of the death.
//!
//! The pool is one process; who uses a `WorkQueue` in it as the pool lets one thread at a time cancel.

mod board;
mod message;

use std::io;
use std::time::Duration;

use procession_sys::clock::Deadline;
use procession_sys::identity::Identity;

use self::board::Board;
pub use self::message::{Outcome, Report, Task, TaskId, who_lost};
use crate::objects::Handle;
use crate::queue::{Delivery, GetError, HANDLE_LEN, PutError, Queue, QueueOptions, RingError};
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
pub enum Condemned {
    /// It has this task in its hands, and takes no other.
    Yes(TaskId),
    /// It has no such task. Nothing has changed.
    NotRunning,
    /// Too many are condemned and not yet pardoned. Nothing has changed.
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
            if self.board.is_condemned() || self.board.may_leave() {
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
        while !self.try_put_report(message)? {
            attempts += 1;
            if attempts.is_multiple_of(ATTEMPTS) && !self.pool.is_alive() {
                // As after a shutdown.
                return Ok(());
            }
            std::thread::sleep(UNTIL_COLLECTED);
        }
        Ok(())
    }

    /// As [`WorkQueue::report`], but false while reports take all memory that they may.
    ///
    /// # Errors
    /// As [`WorkQueue::report`].
    pub fn try_report(&self, report: Report, payload: &[u8]) -> Result<bool, RingError> {
        self.try_put_report(&[&report.to_bytes()[..], payload].concat())
    }

    fn try_put_report(&self, message: &[u8]) -> Result<bool, RingError> {
        match self.reports.put(message, Deadline::Never) {
            // After a shutdown nobody reads it any more.
            Ok(()) | Err(PutError::ShutDown) => Ok(true),
            Err(PutError::Full) => Ok(false),
            Err(PutError::Memory(error)) if self.may_be_freed(&error) => Ok(false),
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
    /// # Errors
    /// As [`Queue::get_left`].
    pub fn lost(&self) -> Result<Vec<Lost>, GetError> {
        if self.reports.memory_in_use() > MUCH {
            // Some of it may be of reports that dead workers had begun. Nobody else may look for that soon.
            self.reports.trim()?;
        }
        let mut lost = Vec::new();
        let hopeless = |task: &[u8], attempts| {
            Task::read(task).is_ok_and(|task| {
                task.id.job != 0 && (attempts > task.retries || self.board.is_cancelled(task.id.job))
            })
        };
        while let Some(delivery) = self.tasks.get_left(Deadline::Never, hopeless)? {
            lost.push(Lost { id: Task::read(&delivery)?.id, worker: delivery.left_by() });
            delivery.done()?;
        }
        Ok(lost)
    }

    /// Which workers have a task in their hands, as of an instant during the call.
    ///
    /// # Errors
    /// As [`Queue::with_deliveries`].
    pub fn running(&self) -> Result<Vec<(Identity, TaskId)>, RingError> {
        self.while_running(|running| running)
    }

    /// Calls `then` with what [`WorkQueue::running`] has, while it is so: no worker takes or acknowledges a task meanwhile. Who takes
    /// one afterwards finds on the board what `then` has written there, as does who acknowledges.
    fn while_running<R>(&self, then: impl FnOnce(Vec<(Identity, TaskId)>) -> R) -> Result<R, RingError> {
        let read = |worker, task: &[u8]| Some((worker, Task::read(task).ok()?.id));
        self.tasks.with_deliveries(Deadline::Never, read, then)
    }

    /// If a worker has a task of a job in its hands, or the one of that index, forbids it to take another one. The worker may be killed
    /// then without any other task's being hurt; with [`WorkQueue::pardon`] when it is gone.
    ///
    /// # Errors
    /// As [`WorkQueue::running`].
    pub fn condemn_if_running(&self, pid: i32, job: u64, index: Option<u32>) -> Result<Condemned, RingError> {
        self.while_running(|running| {
            let found = running.into_iter().find(|(worker, id)| {
                worker.pid().as_raw_nonzero().get() == pid
                    && id.job == job
                    && index.is_none_or(|index| index == id.index)
            });
            match found {
                None => Condemned::NotRunning,
                Some((worker, id)) if self.board.condemn(worker) => Condemned::Yes(id),
                Some(_) => Condemned::NoRoom,
            }
        })
    }

    /// Lets a worker of this pid take tasks again.
    pub fn pardon(&self, pid: i32) {
        self.board.pardon(pid);
    }

    /// Cancels what has not begun of a job, unless a task of it runs.
    ///
    /// # Errors
    /// As [`WorkQueue::running`].
    pub fn cancel_unless_running(&self, job: u64) -> Result<Cancelled, RingError> {
        self.while_running(|running| match running.iter().find(|(_, id)| id.job == job) {
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
        self.while_running(|mut running| {
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

    /// Lets so many workers end, each after the task that it has.
    ///
    /// # Errors
    /// As [`Queue::put`].
    pub fn release(&self, workers: u32) -> Result<(), PutError> {
        self.board.release(workers.into());
        let wake = Task { id: TaskId { job: 0, index: 0 }, retries: u32::MAX };
        (0..workers).try_for_each(|_| self.tasks.put(&wake.to_bytes(), Deadline::Never))
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
