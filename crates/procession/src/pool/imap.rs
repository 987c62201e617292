//! Results one by one.

use std::collections::VecDeque;
use std::fmt;
use std::iter::Fuse;
use std::sync::Arc;

use procession_sys::clock::Deadline;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::TaskError;
use super::job::{AnyJob, Job};
use super::progress::Progress;
use super::shared::Shared;
use super::submit::Spec;

/// An iterator over the results of a function over items, from [`Pool::imap`](super::Pool::imap) or
/// [`Pool::imap_unordered`](super::Pool::imap_unordered).
///
/// The items are read by [`Iterator::next`], in the thread that calls it, and never further ahead of what it has returned than
/// [`Call::buffersize`](super::Call::buffersize): so they may be without end. An item whose task fails is an `Err` in its place.
///
/// Dropped, it cancels what has not begun; what runs ends by itself. It may outlive its pool, whose end is an error, and the last
/// item then.
pub struct Imap<I, R>
where
    R: DeserializeOwned + Send + 'static,
{
    shared: Arc<Shared>,
    job: Held<R>,
    spec: Spec,
    items: Option<Fuse<I>>,
    /// Results that were taken from the job, of the same task.
    results: VecDeque<Result<R, TaskError>>,
    buffersize: u64,
    /// Why no more items are read.
    refusal: Option<TaskError>,
    /// That this is a fork.
    told: bool,
    progress: Option<Progress>,
}

/// A job that is cancelled when nobody waits for it any more.
pub(super) struct Held<R: DeserializeOwned + Send + 'static> {
    shared: Arc<Shared>,
    pub(super) job: Arc<Job<R>>,
    is_let_go: bool,
}

impl<R: DeserializeOwned + Send + 'static> Held<R> {
    pub(super) fn new(shared: &Arc<Shared>, job: Arc<Job<R>>) -> Self {
        Held { shared: Arc::clone(shared), job, is_let_go: false }
    }

    /// From here on it is done whether or not anybody waits for it.
    pub(super) fn let_go(mut self) -> Arc<Job<R>> {
        self.is_let_go = true;
        Arc::clone(&self.job)
    }
}

impl<R: DeserializeOwned + Send + 'static> Drop for Held<R> {
    fn drop(&mut self) {
        // A fork of the pool's process has a copy of it.
        if !self.is_let_go && self.shared.is_ours() && !self.job.is_over() {
            let settled = self.job.abandon();
            self.shared.settled(self.job.id, settled);
            if !settled.over {
                self.shared.cancel_unwanted(self.job.id);
            }
        }
    }
}

impl<I, A, R> Imap<I, R>
where
    I: Iterator<Item = A>,
    A: Serialize,
    R: DeserializeOwned + Send + 'static,
{
    pub(super) fn new(
        shared: Arc<Shared>,
        job: Arc<Job<R>>,
        spec: Spec,
        items: I,
        buffersize: u64,
        progress: Option<Progress>,
    ) -> Self {
        let job = Held::new(&shared, job);
        let mut imap = Imap {
            shared,
            job,
            spec,
            items: Some(items.fuse()),
            results: VecDeque::new(),
            buffersize,
            refusal: None,
            told: false,
            progress,
        };
        imap.fill();
        imap
    }

    /// Puts tasks for as many items as may be ahead.
    fn fill(&mut self) {
        let job = &self.job.job;
        while let Some(items) = &mut self.items {
            let free = self.buffersize.saturating_sub(job.untaken() + self.results.len() as u64);
            // Several at a time are put faster.
            if free == 0 || free < self.buffersize / 4 {
                return;
            }
            let wanted = free.min(u64::from(self.spec.chunk) * 256);
            match self.shared.put_items(job, &self.spec, items, wanted) {
                Ok(0) => {
                    self.items = None;
                    self.shared.settled(job.id, job.complete());
                }
                Ok(_) => {}
                Err(error) => {
                    self.refusal = Some(error);
                    self.items = None;
                    self.shared.settled(job.id, job.complete());
                }
            }
        }
    }
}

impl<I, A, R> Iterator for Imap<I, R>
where
    I: Iterator<Item = A>,
    A: Serialize,
    R: DeserializeOwned + Send + 'static,
{
    type Item = Result<R, TaskError>;

    fn next(&mut self) -> Option<Self::Item> {
        if !self.shared.is_ours() {
            let told = std::mem::replace(&mut self.told, true);
            return (!told).then(|| Err(TaskError::Forked { owner: self.shared.owner() }));
        }
        self.fill();
        let job = &self.job.job;
        if self.results.is_empty() {
            // Or nothing is out, and nothing more comes.
            self.shared.wait_until(job.id, Deadline::Never, || {
                job.has_next() || job.is_over() && job.untaken() == 0
            });
            self.results.extend(job.take_next());
        }
        match self.results.pop_front() {
            Some(result) => {
                if let Some(progress) = &mut self.progress {
                    progress.one_more();
                }
                Some(result)
            }
            None => self.refusal.take().map(Err),
        }
    }
}

impl<I, R> fmt::Debug for Imap<I, R>
where
    R: DeserializeOwned + Send + 'static,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Imap").field("buffersize", &self.buffersize).finish_non_exhaustive()
    }
}
