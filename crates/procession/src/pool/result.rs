//! What will come of a call.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::TaskError;
use super::job::{AnyJob, Job};
use super::shared::Shared;

/// The result of a call or a map, once it is there.
///
/// Dropped, it changes nothing: the tasks are done, and what comes of them is thrown away. It may outlive its
/// [`Pool`](super::Pool), whose end is an error of it.
///
/// Its methods can be called from several threads at once; one of them gets the result.
///
/// ```
/// use procession::Pool;
///
/// let pool = Pool::new(2)?;
/// let length = pool.apply_async(|text: String| text.len(), "hello".to_string())?;
/// assert_eq!(length.get()?, 5);
/// # Ok::<(), procession::Error>(())
/// ```
pub struct AsyncResult<T> {
    shared: Arc<Shared>,
    job: Arc<dyn Outcome<T>>,
}

/// A job whose results together are a `T`.
pub(super) trait Outcome<T>: Send + Sync {
    fn id(&self) -> u64;
    fn is_over(&self) -> bool;
    /// The results, once it is over. Reads them: not to be called with a lock, nor while reading reports.
    fn take(&self) -> Result<T, TaskError>;
}

/// The result of the only item.
pub(super) struct One<R>(pub(super) Arc<Job<R>>);

/// The results of all items.
pub(super) struct All<R>(pub(super) Arc<Job<R>>);

impl<R: DeserializeOwned + Send> Outcome<R> for One<R> {
    fn id(&self) -> u64 {
        self.0.id
    }

    fn is_over(&self) -> bool {
        self.0.is_over()
    }

    fn take(&self) -> Result<R, TaskError> {
        self.0.take_one()
    }
}

impl<R: DeserializeOwned + Send> Outcome<Vec<R>> for All<R> {
    fn id(&self) -> u64 {
        self.0.id
    }

    fn is_over(&self) -> bool {
        self.0.is_over()
    }

    fn take(&self) -> Result<Vec<R>, TaskError> {
        self.0.take_all()
    }
}

impl<T> AsyncResult<T> {
    pub(super) fn new(shared: Arc<Shared>, job: Arc<dyn Outcome<T>>) -> Self {
        AsyncResult { shared, job }
    }

    /// Waits for the result and takes it. Of a map it is that of all items in their order, or the error of the first
    /// item that has none; all are done either way.
    ///
    /// # Errors
    /// [`TaskError`]; [`TaskError::Taken`] from the second call on.
    pub fn get(&self) -> Result<T, TaskError> {
        self.wait(None)?;
        self.job.take()
    }

    /// As [`AsyncResult::get`], for `timeout` at most; `None` when the result is not there by then.
    ///
    /// # Errors
    /// As [`AsyncResult::get`].
    pub fn get_timeout(&self, timeout: Duration) -> Result<Option<T>, TaskError> {
        if self.wait(Some(timeout))? { self.job.take().map(Some) } else { Ok(None) }
    }

    /// Waits until the result is there, at most for `timeout`; whether it is.
    ///
    /// # Errors
    /// [`TaskError::Forked`].
    pub fn wait(&self, timeout: Option<Duration>) -> Result<bool, TaskError> {
        self.shared.check_ours()?;
        Ok(self.shared.wait_until(self.job.id(), timeout.into(), || self.job.is_over()))
    }

    /// Whether the result, or an error in its place, is there. Does not block. False in a fork of the pool's process.
    pub fn is_ready(&self) -> bool {
        if !self.shared.is_ours() {
            return false;
        }
        self.job.is_over() || {
            self.shared.collect_now();
            self.job.is_over()
        }
    }

    /// Cancels what has not begun, unless a task of it runs or too many calls (some 8,000) are cancelled and not yet passed over by
    /// the workers. Whether that is so: then its tasks have ended, or never begin, and [`AsyncResult::get`] has what came of them:
    /// [`TaskError::Cancelled`], or the result when all was done before.
    pub fn cancel(&self) -> bool {
        self.shared.cancel_unless_running(self.job.id())
    }

    /// Cancels what has not begun, as [`AsyncResult::cancel`] does, and kills the workers that run its tasks now. Others take their
    /// places. Whether anything was cancelled: where too many calls are cancelled already, only what ran.
    pub fn cancel_running(&self) -> bool {
        self.shared.cancel_running(self.job.id())
    }
}

impl<T> fmt::Debug for AsyncResult<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncResult").field("job", &self.job.id()).finish_non_exhaustive()
    }
}
