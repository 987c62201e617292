//! What stands before the bytes of a task and of a report.

use procession_sys::identity::Identity;

use crate::ring::Damaged;

/// A task's number: the job that it is a part of, and which part. Job 0 is nobody's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TaskId {
    /// The job.
    pub job: u64,
    /// The part, from 0.
    pub index: u32,
}

/// The first [`Task::LEN`] bytes of a task; what the worker is to do follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Task {
    /// Which one it is.
    pub id: TaskId,
    /// How often it is to be begun again after a worker died with it.
    pub retries: u32,
}

/// What a report says of a task, or of the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Outcome {
    /// The task ended; its result follows.
    Returned = 0,
    /// The task failed; how, follows.
    Raised = 1,
    /// A worker died with the task, which is not to be begun again. The worker's [`Identity`] follows, as its bits in eight bytes,
    /// or 0 if it gave the task up.
    Lost = 2,
    /// The task was cancelled before it began.
    Cancelled = 3,
    /// The worker that is named in the [`Report`]'s index by its pid is ready for tasks.
    Ready = 4,
    /// The worker of that pid could not become ready; why, follows.
    Unready = 5,
    /// From the pool itself: the worker of that pid has ended, and all its reports lie before this one.
    Ended = 6,
    /// From the pool itself: whoever collects reports is to look around.
    Wake = 7,
}

/// The first [`Report::LEN`] bytes of a message to the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// The task that it is about. Of a worker, job 0 and the pid.
    pub id: TaskId,
    /// What it says.
    pub outcome: Outcome,
}

impl Task {
    /// How many bytes it takes.
    pub const LEN: usize = 16;

    /// As bytes.
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        to_bytes(self.id, self.retries)
    }

    /// The task whose message this is.
    ///
    /// # Errors
    /// [`Damaged`]: it is too short.
    pub fn read(message: &[u8]) -> Result<Self, Damaged> {
        let (id, retries) = read(message)?;
        Ok(Task { id, retries })
    }
}

impl Report {
    /// How many bytes it takes.
    pub const LEN: usize = 16;

    /// A report about a worker.
    pub fn of_worker(pid: u32, outcome: Outcome) -> Self {
        Report { id: TaskId { job: 0, index: pid }, outcome }
    }

    /// As bytes.
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        to_bytes(self.id, self.outcome as u32)
    }

    /// The report in a message.
    ///
    /// # Errors
    /// [`Damaged`]: it is too short, or says what no report says.
    pub fn read(message: &[u8]) -> Result<Self, Damaged> {
        use Outcome::{Cancelled, Ended, Lost, Raised, Ready, Returned, Unready, Wake};
        let (id, number) = read(message)?;
        let outcome = [Returned, Raised, Lost, Cancelled, Ready, Unready, Ended, Wake]
            .into_iter()
            .find(|outcome| *outcome as u32 == number)
            .ok_or(Damaged("a report"))?;
        Ok(Report { id, outcome })
    }
}

/// Who died with a task, as the bytes of an [`Outcome::Lost`] say.
pub fn who_lost(payload: &[u8]) -> Option<Identity> {
    Identity::from_bits(u64::from_le_bytes(payload.get(..8)?.try_into().ok()?))
}

fn to_bytes(id: TaskId, last: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&id.job.to_le_bytes());
    bytes[8..12].copy_from_slice(&id.index.to_le_bytes());
    bytes[12..].copy_from_slice(&last.to_le_bytes());
    bytes
}

fn read(message: &[u8]) -> Result<(TaskId, u32), Damaged> {
    let head: &[u8; 16] = message.first_chunk().ok_or(Damaged("a message of a pool"))?;
    let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let job = u64::from(word(0)) | u64::from(word(4)) << 32;
    Ok((TaskId { job, index: word(8) }, word(12)))
}
