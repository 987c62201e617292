//! A call with options.

use std::fmt;
use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

use procession_core::pool::Order;
use procession_sys::clock::Deadline;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::Label;
use super::imap::{Held, Imap};
use super::job::{AnyJob, Job};
use super::progress::Progress;
use super::result::{All, AsyncResult, One};
use super::shared::Shared;
use super::submit::Spec;
use super::task::place;
use super::{Pool, TaskError};

/// Items of one task at most, so that its number of items is a 32-bit number.
const MOST_ITEMS: usize = 1 << 30;
/// Tasks for each worker of a map, if not told otherwise: few enough to cost little, enough to share the work.
const SHARES: usize = 4;
/// Tasks for each worker that [`Pool::imap`] reads ahead, if not told otherwise.
const TASKS_AHEAD: usize = 8;

/// A function for a pool with options, from [`Pool::task`].
///
/// ```
/// use std::time::Duration;
/// use procession::Pool;
///
/// fn fetch(page: u32) -> String {
///     format!("page {page}")
/// }
///
/// let pool = Pool::new(2)?;
/// let pages = pool.task(fetch).retries(2).timeout(Duration::from_secs(60)).chunksize(1).map(0..10)?;
/// assert_eq!(pages[9], "page 9");
/// # Ok::<(), procession::Error>(())
/// ```
#[must_use = "nothing is done before apply, map or another of these is called"]
pub struct Call<'p, A, R> {
    shared: &'p Arc<Shared>,
    function: fn(A) -> R,
    label: Label,
    retries: u32,
    timeout: Option<Duration>,
    chunksize: Option<usize>,
    buffersize: Option<usize>,
    progress: bool,
}

impl Pool {
    /// Options for calling `function`, a plain `fn` or a closure that captures nothing, in the workers.
    #[track_caller]
    pub fn task<A, R>(&self, function: fn(A) -> R) -> Call<'_, A, R> {
        Call {
            shared: self.shared(),
            function,
            label: Label::Caller(Location::caller()),
            retries: 0,
            timeout: None,
            chunksize: None,
            buffersize: None,
            progress: false,
        }
    }
}

impl<A, R> Call<'_, A, R> {
    /// Names the call in its errors, and in its progress; otherwise it is known by its place in the
    /// source.
    pub fn name(mut self, name: impl Into<Arc<str>>) -> Self {
        self.label = Label::Given(name.into());
        self
    }

    /// How often a task is begun again whose worker died with it, or was killed for its timeout; 0 unless told. It may
    /// have been done, or in part, before: give a number to what may be done twice.
    pub fn retries(mut self, retries: u32) -> Self {
        self.retries = retries;
        self
    }

    /// How long a worker may take for a task (all items of a chunk together), from when it begins. Its worker is killed then, and
    /// another takes its place. The pool looks eight times in the shortest timeout, every 5 to 250 ms, so a task may run for so much
    /// longer. No limit unless told.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// How many items of a map go to a worker at a time: more cost less each, but share a worker's death. Unless told, a `map` makes
    /// four tasks for each worker, and `imap` one for each item. 0 counts as 1.
    pub fn chunksize(mut self, items: usize) -> Self {
        self.chunksize = Some(items.clamp(1, MOST_ITEMS));
        self
    }

    /// How many items `imap` reads ahead of the results that it has returned, at most. Eight tasks for each worker unless told. 0
    /// counts as 1.
    pub fn buffersize(mut self, items: usize) -> Self {
        self.buffersize = Some(items.max(1));
        self
    }

    /// Whether a map shows how far it has come, by a bar on standard error while that is a terminal. `false` unless told. It has no
    /// effect on a single call, nor on `map_async`, which nobody waits for.
    #[cfg(feature = "progress")]
    pub fn progress(mut self, progress: bool) -> Self {
        self.progress = progress;
        self
    }

    /// Calls the function in a worker and waits for its result.
    ///
    /// # Errors
    /// [`TaskError`].
    pub fn apply(self, arguments: A) -> Result<R, TaskError>
    where
        A: Serialize + DeserializeOwned + 'static,
        R: Serialize + DeserializeOwned + Send + 'static,
    {
        let shared = self.shared;
        let job = self.put_call(&arguments)?;
        shared.wait_until(job.id, Deadline::Never, || job.is_over());
        job.take_one()
    }

    /// Has the function called in a worker; returns as soon as it is queued. While 64 MiB of arguments wait for workers, it waits for
    /// some to be taken.
    ///
    /// # Errors
    /// [`TaskError`]: the arguments cannot be handed over, or the pool takes no tasks.
    pub fn apply_async(self, arguments: A) -> Result<AsyncResult<R>, TaskError>
    where
        A: Serialize + DeserializeOwned + 'static,
        R: Serialize + DeserializeOwned + Send + 'static,
    {
        let job = self.put_call(&arguments)?;
        Ok(AsyncResult::new(Arc::clone(self.shared), Arc::new(One(job))))
    }

    /// Calls the function for each item and waits for all; the results are in the items' order.
    ///
    /// Items are read as they are queued, in this thread.
    ///
    /// # Errors
    /// That of the first item, in their order, that has no result. All others have been done as well by then.
    pub fn map(self, items: impl IntoIterator<Item = A>) -> Result<Vec<R>, TaskError>
    where
        A: Serialize + DeserializeOwned + 'static,
        R: Serialize + DeserializeOwned + Send + 'static,
    {
        let shared = Arc::clone(self.shared);
        let mut progress = None;
        let held = self.put_map(items, &mut progress)?;
        let job = &held.job;
        shared.wait_until(job.id, Deadline::Never, || {
            if let Some(progress) = &mut progress {
                progress.at(job.done());
            }
            job.is_over()
        });
        job.take_all()
    }

    /// Has the function called for each item; returns as soon as all are queued. While 64 MiB of arguments wait for workers, it
    /// waits for some to be taken.
    ///
    /// # Errors
    /// [`TaskError`]: the pool takes no tasks. What is wrong with an item is the result's error.
    pub fn map_async(mut self, items: impl IntoIterator<Item = A>) -> Result<AsyncResult<Vec<R>>, TaskError>
    where
        A: Serialize + DeserializeOwned + 'static,
        R: Serialize + DeserializeOwned + Send + 'static,
    {
        self.progress = false;
        let shared = Arc::clone(self.shared);
        let job = self.put_map(items, &mut None)?.let_go();
        Ok(AsyncResult::new(shared, Arc::new(All(job))))
    }

    /// The results of the function for each item, one by one in the items' order.
    ///
    /// # Errors
    /// [`TaskError`]: the pool takes no tasks. What is wrong with an item is an item of the iterator.
    pub fn imap<I>(self, items: I) -> Result<Imap<I::IntoIter, R>, TaskError>
    where
        I: IntoIterator<Item = A>,
        A: Serialize + DeserializeOwned + 'static,
        R: Serialize + DeserializeOwned + Send + 'static,
    {
        self.put_imap(items.into_iter(), Order::AsSubmitted)
    }

    /// As [`Call::imap`], but each result as soon as it is there.
    ///
    /// # Errors
    /// As [`Call::imap`].
    pub fn imap_unordered<I>(self, items: I) -> Result<Imap<I::IntoIter, R>, TaskError>
    where
        I: IntoIterator<Item = A>,
        A: Serialize + DeserializeOwned + 'static,
        R: Serialize + DeserializeOwned + Send + 'static,
    {
        self.put_imap(items.into_iter(), Order::AsDone)
    }

    fn spec(&self, chunk: usize) -> Result<Spec, TaskError>
    where
        A: DeserializeOwned + 'static,
        R: Serialize + 'static,
    {
        let place = place(self.function).map_err(|error| TaskError::Function(Arc::new(error)))?;
        Ok(Spec { place, retries: self.retries, chunk: chunk.clamp(1, MOST_ITEMS) as u32 })
    }

    fn enter(&self, many: bool, order: Order) -> Result<Arc<Job<R>>, TaskError>
    where
        R: DeserializeOwned + Send + 'static,
    {
        let id = self.shared.next_job();
        let job = Arc::new(Job::new(id, self.label.clone(), many, order, self.timeout));
        self.shared.enter(id, Arc::clone(&job) as Arc<dyn AnyJob>)?;
        Ok(job)
    }

    fn put_call(&self, arguments: &A) -> Result<Arc<Job<R>>, TaskError>
    where
        A: Serialize + DeserializeOwned + 'static,
        R: Serialize + DeserializeOwned + Send + 'static,
    {
        self.shared.check_ours()?;
        let spec = self.spec(1)?;
        let job = self.enter(false, Order::AsSubmitted)?;
        let held = Held::new(self.shared, job);
        self.shared.put_call(&held.job, &spec, arguments)?;
        Ok(held.let_go())
    }

    fn put_map(
        self,
        items: impl IntoIterator<Item = A>,
        progress: &mut Option<Progress>,
    ) -> Result<Held<R>, TaskError>
    where
        A: Serialize + DeserializeOwned + 'static,
        R: Serialize + DeserializeOwned + Send + 'static,
    {
        self.shared.check_ours()?;
        let items = items.into_iter();
        let (items, count): (Box<dyn Iterator<Item = A> + '_>, usize) =
            match (items.size_hint(), self.chunksize) {
                ((least, Some(most)), _) if least == most => (Box::new(items.fuse()), least),
                ((least, _), Some(_)) => (Box::new(items.fuse()), least),
                _ => {
                    // How many there are says how large a chunk is.
                    let items: Vec<A> = items.collect();
                    let count = items.len();
                    (Box::new(items.into_iter()), count)
                }
            };
        let mut items = items;
        let chunk = self.chunksize.unwrap_or_else(|| count.div_ceil(SHARES * self.shared.target()));
        let spec = self.spec(chunk)?;
        // Counted before it is taken, so that a pool that takes it knows.
        let _filling = self.shared.filling();
        let job = self.enter(true, Order::AsSubmitted)?;
        let held = Held::new(self.shared, job);
        let job = &held.job;
        *progress = self.start_progress(count);
        while self.shared.put_items(job, &spec, &mut items, u64::MAX)? != 0 {
            if let Some(progress) = progress {
                progress.at(job.done());
            }
        }
        self.shared.settled(job.id, job.complete());
        Ok(held)
    }

    fn put_imap<I>(self, items: I, order: Order) -> Result<Imap<I, R>, TaskError>
    where
        I: Iterator<Item = A>,
        A: Serialize + DeserializeOwned + 'static,
        R: Serialize + DeserializeOwned + Send + 'static,
    {
        self.shared.check_ours()?;
        let chunk = self.chunksize.unwrap_or(1);
        let default = chunk.saturating_mul(self.shared.target()).saturating_mul(TASKS_AHEAD);
        let buffersize = self.buffersize.unwrap_or(default);
        let spec = self.spec(chunk.min(buffersize))?;
        let job = self.enter(true, order)?;
        let count = match items.size_hint() {
            (least, Some(most)) if least == most => least,
            _ => 0,
        };
        let progress = self.start_progress(count);
        Ok(Imap::new(Arc::clone(self.shared), job, spec, items, buffersize as u64, progress))
    }

    /// `count` is 0 where it is not known.
    fn start_progress(&self, count: usize) -> Option<Progress> {
        if !self.progress {
            return None;
        }
        #[cfg(feature = "progress")]
        {
            Some(Progress::new(&self.label.to_string(), Some(count as u64).filter(|count| *count != 0)))
        }
        #[cfg(not(feature = "progress"))]
        {
            let _ = count;
            None
        }
    }
}

impl<A, R> fmt::Debug for Call<'_, A, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call")
            .field("label", &self.label)
            .field("retries", &self.retries)
            .field("timeout", &self.timeout)
            .field("chunksize", &self.chunksize)
            .field("buffersize", &self.buffersize)
            .finish_non_exhaustive()
    }
}
