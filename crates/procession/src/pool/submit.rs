//! Putting tasks.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use procession_core::pool::{Task, TaskId};
use procession_core::queue::PutError;
use procession_core::shm::tally::Tally;
use procession_sys::clock::Deadline;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::TaskError;
use super::error::TaskName;
use super::job::{AnyJob, Ending, Job};
use super::shared::{AHEAD, NO_JOB, Shared};
use super::task::HEAD;
use crate::codec::append;
use crate::handle::with_reason;
use crate::process::TaskRef;
use crate::queue::with_buffer;

/// Tasks that are encoded before they are put.
const GROUP: usize = 256;
/// As many bytes of them.
const FULL: usize = 256 << 10;
/// So many reports are worth reading before more tasks are put.
const CROWD: u64 = 4096;
/// Between two looks at what workers have taken, while too much waits for them.
const LOOK: Duration = Duration::from_millis(10);

/// What all tasks of a job have in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spec {
    pub(super) place: TaskRef,
    pub(super) retries: u32,
    /// Items of a task.
    pub(super) chunk: u32,
}

/// A task in the buffer.
struct Encoded {
    start: usize,
    end: usize,
    items: u32,
    /// The handles up to its end.
    mark: usize,
}

impl Spec {
    /// Appends what comes before the arguments.
    fn begin(&self, id: TaskId, items: u32, buffer: &mut Vec<u8>) {
        buffer.extend_from_slice(&Task { id, retries: self.retries }.to_bytes());
        buffer.extend_from_slice(&self.place.to_bytes());
        buffer.extend_from_slice(&items.to_le_bytes());
    }
}

fn arguments(task: TaskName, message: String) -> TaskError {
    TaskError::Arguments { task, message }
}

impl Shared {
    /// Puts the only task of a job, which is complete then.
    ///
    /// # Errors
    /// It cannot be put; the job is over.
    pub(super) fn put_call<A: Serialize, R: DeserializeOwned + Send + 'static>(
        &self,
        job: &Arc<Job<R>>,
        spec: &Spec,
        argument: &A,
    ) -> Result<(), TaskError> {
        self.wait_for_room();
        let put = with_buffer(|buffer| {
            let handles = Tally::begin();
            spec.begin(TaskId { job: job.id, index: 0 }, 0, buffer);
            if let Err(problem) = with_reason(|| append(argument, buffer)) {
                job.enter_failed(|task| arguments(task, problem));
                return Ok(());
            }
            self.out.fetch_add(job.enter([(1, buffer.len())].into_iter()), Ordering::Relaxed);
            self.put_one(job, 0, buffer)?;
            handles.keep(self.work.tasks().id());
            Ok(())
        });
        self.settled(job.id, job.complete());
        put?;
        // What cannot be put is said at once.
        match job.take_refusal() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Puts tasks of a map for up to `most` items, a group of them; how many items were taken from `items`, of which there
    /// are no more if that is less.
    ///
    /// # Errors
    /// The pool takes none; those that had been entered have failed.
    pub(super) fn put_items<A: Serialize, R: DeserializeOwned + Send + 'static>(
        &self,
        job: &Arc<Job<R>>,
        spec: &Spec,
        items: &mut impl Iterator<Item = A>,
        most: u64,
    ) -> Result<u64, TaskError> {
        self.wait_for_room();
        if self.work.reports().len() > CROWD {
            self.collect_now();
        }
        with_buffer(|buffer| {
            let handles = Tally::begin();
            let mut tasks: Vec<Encoded> = Vec::new();
            let first = job.next_index();
            let mut taken = 0;
            let mut refused = None;
            while tasks.len() < GROUP && buffer.len() < FULL && taken < most && refused.is_none() {
                let Some(mut item) = items.next() else { break };
                let start = buffer.len();
                let index = first.wrapping_add(tasks.len() as u32);
                spec.begin(TaskId { job: job.id, index }, 0, buffer);
                let mut count = 0u32;
                loop {
                    taken += 1;
                    if let Err(problem) = with_reason(|| append(&item, buffer)) {
                        refused = Some(problem);
                        break;
                    }
                    count += 1;
                    if count >= spec.chunk || taken >= most {
                        break;
                    }
                    item = match items.next() {
                        Some(item) => item,
                        None => break,
                    };
                }
                if count == 0 {
                    buffer.truncate(start);
                    break;
                }
                buffer[start + HEAD - 4..start + HEAD].copy_from_slice(&count.to_le_bytes());
                tasks.push(Encoded { start, end: buffer.len(), items: count, mark: handles.mark() });
            }
            let bytes = job.enter(tasks.iter().map(|task| (task.items, task.end - task.start)));
            self.out.fetch_add(bytes, Ordering::Relaxed);
            let mut put = 0;
            let result = self.put_encoded(job, first, buffer, &tasks, &mut put);
            if let Some(last) = put.checked_sub(1) {
                handles.keep_until(tasks[last].mark, self.work.tasks().id());
            }
            result?;
            if let Some(problem) = refused {
                job.enter_failed(|task| arguments(task, problem));
            }
            Ok(taken)
        })
    }

    fn put_encoded<R: DeserializeOwned + Send + 'static>(
        &self,
        job: &Arc<Job<R>>,
        first: u32,
        buffer: &[u8],
        tasks: &[Encoded],
        put: &mut usize,
    ) -> Result<(), TaskError> {
        let message = |task: &Encoded| &buffer[task.start..task.end];
        while *put < tasks.len() {
            let result = self.work.tasks().put_many(tasks[*put..].iter().map(message), Deadline::Never);
            match result {
                Ok(count) => *put += count,
                Err((count, PutError::ShutDown)) => {
                    *put += count;
                    let refusal = self.lock().refusal().unwrap_or(TaskError::Terminated);
                    for index in *put..tasks.len() {
                        self.fail_put(job, first.wrapping_add(index as u32), |_| refusal.clone());
                    }
                    return Err(refusal);
                }
                Err((count, _)) => {
                    // It says by itself what is wrong with it.
                    *put += count;
                    self.put_one(job, first.wrapping_add(*put as u32), message(&tasks[*put]))?;
                    *put += 1;
                }
            }
        }
        Ok(())
    }

    /// Puts a task that was entered, once others have come back if there is no memory for it before. Where there is none at all the
    /// task has failed.
    fn put_one<R: DeserializeOwned + Send + 'static>(
        &self,
        job: &Arc<Job<R>>,
        index: u32,
        message: &[u8],
    ) -> Result<(), TaskError> {
        loop {
            let error = match self.work.tasks().put(message, Deadline::Never) {
                Ok(()) => return Ok(()),
                Err(PutError::ShutDown) => {
                    let refusal = self.lock().refusal().unwrap_or(TaskError::Terminated);
                    self.fail_put(job, index, |_| refusal.clone());
                    return Err(refusal);
                }
                Err(error) => error,
            };
            let out = self.out.load(Ordering::Relaxed);
            if out <= message.len() as u64 {
                self.fail_put(job, index, |task| arguments(task, error.to_string()));
                return Ok(());
            }
            self.wait_until(NO_JOB, Deadline::Never, || {
                self.out.load(Ordering::Relaxed) < out || self.lock().is_over()
            });
        }
    }

    fn fail_put<R: DeserializeOwned + Send + 'static>(
        &self,
        job: &Arc<Job<R>>,
        index: u32,
        why: impl Fn(TaskName) -> TaskError,
    ) {
        self.settled(job.id, job.settle(index, Ending::Failed(&why)));
    }

    /// Waits while as much waits for workers as should.
    fn wait_for_room(&self) {
        let full = || self.out.load(Ordering::Relaxed) >= AHEAD && !self.lock().is_over();
        while full() && self.waiting() >= AHEAD {
            // Nothing is reported when a worker takes a task.
            self.wait_until(NO_JOB, Deadline::after(LOOK), || !full());
        }
    }

    /// Bytes of tasks that are out and that no worker has taken.
    fn waiting(&self) -> u64 {
        let running = match self.work.running() {
            Ok(running) => running,
            Err(error) => {
                self.break_up(&format!("its tasks: {error}"));
                return 0;
            }
        };
        let taken: u64 = {
            let state = self.lock();
            let bytes = |id: TaskId| state.jobs.get(&id.job).map_or(0, |job| job.bytes(id.index));
            running.into_iter().map(|(_, id)| bytes(id)).sum()
        };
        self.out.load(Ordering::Relaxed).saturating_sub(taken)
    }
}
