//! Reading reports. Whoever waits for a result reads them: one thread at a time, which hands each to its job and wakes
//! those whose jobs went on. When it has what it waited for, another waiting thread goes on in its place.

use std::borrow::Cow;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, PoisonError};
use std::thread;
use std::time::Duration;

use procession_core::pool::{Outcome, Report, TaskId};
use procession_core::queue::{Batch, GetError, Part};
use procession_sys::clock::Deadline;

use super::job::AnyJob;
use super::shared::{AHEAD, NO_JOB, Shared};

/// Reports that are read at a time.
const BATCH: usize = 512;
/// No thread sleeps for longer without looking again.
const SLICE: Duration = Duration::from_millis(250);

/// A thread that waits while another reads reports.
pub(super) struct Follower {
    /// The job that it waits for.
    job: u64,
    /// Wakes it.
    signal: Arc<Condvar>,
}

thread_local! {
    static SIGNAL: Arc<Condvar> = Arc::new(Condvar::new());
}

/// The right to read reports. Dropped, it goes to another.
struct Reader<'a> {
    shared: &'a Shared,
    batch: Batch,
    /// The jobs that the batch was about.
    touched: Vec<u64>,
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.collector = None;
        if let Some(next) = state.followers.first() {
            next.signal.notify_one();
        }
    }
}

impl Shared {
    /// Waits until `check` says so, which is asked again whenever something came of the job; false at the deadline. Reads reports
    /// meanwhile, unless another thread does: `check` is called by who reads, and may not wait for others.
    pub(super) fn wait_until(&self, job: u64, deadline: Deadline, mut check: impl FnMut() -> bool) -> bool {
        if check() {
            return true;
        }
        loop {
            if let Some(mut reader) = self.reader() {
                loop {
                    // Another may have read it before.
                    if check() {
                        return true;
                    }
                    // In slices: a stopped worker may have a lock that this read waits for, and so keep a wake from coming.
                    let over = !reader.read(deadline.slice(SLICE).map_or(Deadline::Now, Deadline::after));
                    if over && self.lock().is_over() {
                        // What has not come is failed by whoever ended the pool, if not yet.
                        drop(reader);
                        if check() {
                            return true;
                        }
                        thread::sleep(Duration::from_millis(1));
                        break;
                    }
                    if deadline.passed() {
                        return check();
                    }
                }
            } else if self.follow(job, deadline, &mut check) {
                return true;
            }
            if deadline.passed() {
                return check();
            }
        }
    }

    /// Reads what reports there are, unless another thread does; not those that come meanwhile.
    pub(super) fn collect_now(&self) {
        if let Some(mut reader) = self.reader() {
            let mut left = self.work.reports().len();
            while left != 0 && reader.read(Deadline::Now) {
                left = left.saturating_sub(BATCH as u64);
            }
        }
    }

    /// [`Shared::collect_now`], all of them; unless another thread reads, which does so.
    pub(super) fn collect_all(&self) {
        if let Some(mut reader) = self.reader() {
            while reader.read(Deadline::Now) {}
        }
    }

    fn reader(&self) -> Option<Reader<'_>> {
        let mut state = self.lock();
        if state.collector.is_some() {
            return None;
        }
        state.collector = Some(thread::current().id());
        Some(Reader { shared: self, batch: Batch::new(), touched: Vec::new() })
    }

    /// Waits until the reading thread has something for this one, or leaves its role to it.
    fn follow(&self, job: u64, deadline: Deadline, check: &mut impl FnMut() -> bool) -> bool {
        // A thread that ends has none any more.
        let signal = SIGNAL.try_with(Arc::clone).unwrap_or_default();
        let mut state = self.lock();
        if state.collector.is_none() {
            return false;
        }
        state.followers.push(Follower { job, signal: Arc::clone(&signal) });
        drop(state);
        // Whoever reads from here on finds this one among the followers.
        let mut found = check();
        let mut state = self.lock();
        if !found && state.collector.is_some() {
            let slice = deadline.slice(SLICE).unwrap_or_default();
            state = signal.wait_timeout(state, slice).unwrap_or_else(PoisonError::into_inner).0;
        }
        if let Some(place) = state.followers.iter().position(|other| Arc::ptr_eq(&other.signal, &signal)) {
            state.followers.remove(place);
        }
        drop(state);
        if !found {
            found = check();
        }
        if found {
            let state = self.lock();
            // It may have been this one's turn.
            if state.collector.is_none()
                && let Some(next) = state.followers.first()
            {
                next.signal.notify_one();
            }
        }
        found
    }

    /// Wakes those that wait for a job, of which something came that was not in a report.
    pub(super) fn notify(&self, job: u64) {
        let is_collected = {
            let state = self.lock();
            state.followers.iter().filter(|follower| follower.job == job).for_each(|follower| {
                follower.signal.notify_one();
            });
            state.collector.is_some_and(|collector| collector != thread::current().id())
        };
        if is_collected {
            // That thread may be the one that waits for this job. If this cannot be put, that thread looks by itself soon.
            let wake = Report { id: TaskId { job: NO_JOB, index: 0 }, outcome: Outcome::Wake };
            if let Err(error) = self.work.try_report(wake, &[]) {
                self.break_up(&format!("its reports: {error}"));
            }
        }
    }

    /// Wakes all that wait.
    pub(super) fn wake_all(&self) {
        self.lock().followers.iter().for_each(|follower| {
            follower.signal.notify_all();
        });
    }
}

impl Reader<'_> {
    /// Reads some reports, waiting for one until `deadline`, and handles them; whether there were any.
    fn read(&mut self, deadline: Deadline) -> bool {
        let shared = self.shared;
        self.batch.clear();
        match shared.work.reports().get_many_into(BATCH, &mut self.batch, deadline) {
            Ok(()) => {}
            Err(GetError::Empty | GetError::ShutDown) => {
                shared.empty_reads.fetch_add(1, Ordering::Release);
                return false;
            }
            Err(error) => {
                shared.break_up(&format!("its reports: {error}"));
                return false;
            }
        }
        self.touched.clear();
        let mut last: Option<(u64, Arc<dyn AnyJob>)> = None;
        for part in self.batch.drain() {
            let message = match part {
                Part::Copied(message) => Cow::Borrowed(message),
                // What lies in shared memory a faulty worker may change while it is read.
                Part::InPlace(message) => Cow::Owned(message.into_vec()),
            };
            let report = match Report::read(&message) {
                Ok(report) => report,
                Err(error) => {
                    shared.break_up(&format!("its reports: {error}"));
                    return true;
                }
            };
            let id = report.id.job;
            if last.as_ref().is_none_or(|(last, _)| *last != id) {
                last = shared.lock().jobs.get(&id).map(|job| (id, Arc::clone(job)));
                if !self.touched.contains(&id) {
                    self.touched.push(id);
                }
            }
            shared.handle(report, message, last.as_ref().map(|(_, job)| job));
        }
        let state = shared.lock();
        if !state.followers.is_empty() {
            let room = shared.out.load(Ordering::Relaxed) < AHEAD;
            for follower in &state.followers {
                let wanted = self.touched.contains(&follower.job) || (follower.job == NO_JOB && room);
                if wanted || state.jobs.is_empty() {
                    follower.signal.notify_one();
                }
            }
        }
        true
    }
}
