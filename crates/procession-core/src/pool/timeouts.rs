//! The time limits of tasks.
//!
//! A worker takes a task without telling the pool. So while a job has a limit the pool looks at what runs, and a task's
//! time counts from when it was first seen running.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::TaskId;
use procession_sys::identity::Identity;

/// The shortest and the longest time between two looks at what runs.
const SHORTEST_LOOK: Duration = Duration::from_millis(5);
const LONGEST_LOOK: Duration = Duration::from_millis(250);
/// How many looks fall into the shortest limit: a task may run for so much longer than its limit.
const LOOKS_PER_LIMIT: u32 = 8;

/// A task that has run for longer than it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Overdue {
    pub(super) worker: Identity,
    pub(super) id: TaskId,
    pub(super) limit: Duration,
}

#[derive(Debug, Default)]
pub(super) struct Timeouts {
    /// By job.
    limits: HashMap<u64, Duration>,
    /// When each task with a limit was first seen running.
    since: HashMap<(Identity, TaskId), Instant>,
    looked: Option<Instant>,
}

impl Timeouts {
    pub(super) fn limit(&mut self, job: u64, limit: Duration) {
        self.limits.insert(job, limit);
        // It may be shorter than the others.
        self.looked = None;
    }

    /// The job is over.
    pub(super) fn forget(&mut self, job: u64) {
        if self.limits.remove(&job).is_some() {
            self.since.retain(|(_, id), _| id.job != job);
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Timeouts::default();
    }

    /// When to look at what runs.
    pub(super) fn next_look(&self, now: Instant) -> Option<Instant> {
        let shortest = self.limits.values().min()?;
        let Some(looked) = self.looked else { return Some(now) };
        let next = looked + (*shortest / LOOKS_PER_LIMIT).clamp(SHORTEST_LOOK, LONGEST_LOOK);
        let due = self.since.iter().filter_map(|((_, id), since)| Some(*since + *self.limits.get(&id.job)?));
        // One that is overdue was noticed at the last look.
        Some(due.filter(|due| *due > looked).fold(next, Instant::min))
    }

    /// Compares what runs now with what ran before; what has run for too long.
    pub(super) fn look(&mut self, now: Instant, running: &[(Identity, TaskId)]) -> Vec<Overdue> {
        self.looked = Some(now);
        let before = std::mem::take(&mut self.since);
        let mut overdue = Vec::new();
        for &(worker, id) in running {
            let Some(&limit) = self.limits.get(&id.job) else { continue };
            let since = before.get(&(worker, id)).copied().unwrap_or(now);
            if now.saturating_duration_since(since) >= limit {
                overdue.push(Overdue { worker, id, limit });
            }
            self.since.insert((worker, id), since);
        }
        overdue
    }
}
