//! The parent's side: feeds the workers, collects their reports, replaces those that die, and kills some when told.

use std::collections::HashSet;
use std::error::Error;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

use procession::Process;
use procession::process::JoinError;
use procession::queue::GetError;
use procession::sync::LockError;

use crate::digest::Hash;
use crate::walk::File;
use crate::worker::{BIG, DEATHS, DEATHS_UNDER_KILLS, Report, Shared, Task, work};

/// Tasks that wait for workers, at most, so that memory stays flat however many files there are.
const AHEAD: usize = 256;
/// Between two looks at the workers and the progress.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Between two kills.
const KILL_EVERY: Duration = Duration::from_millis(50);
/// When nothing was done since the last kill.
const KILL_RETRY: Duration = Duration::from_millis(5);
const SIGKILL: i32 = 9;
/// When this many workers in a row die before they begin with a file, the next will too.
const STILLBORN: u32 = 10;

type Worker = Process<Result<(), String>>;

pub(crate) struct Plan {
    pub(crate) workers: usize,
    pub(crate) chaos: bool,
}

pub(crate) struct Outcome {
    /// In the order of the files.
    pub(crate) hashes: Vec<io::Result<Hash>>,
    /// Workers at a time: no more than there are files.
    pub(crate) workers: usize,
    /// Workers that were killed by the plan.
    pub(crate) killed: u32,
    /// Workers that died otherwise.
    pub(crate) died: u32,
}

/// Hashes the files and tells `progress` the number of bytes now and then.
///
/// # Errors
/// The workers cannot be started, or cannot work. What is wrong with a file is its own outcome.
pub(crate) fn hash_all(
    files: &[File],
    plan: &Plan,
    mut progress: impl FnMut(u64),
) -> Result<Outcome, Box<dyn Error>> {
    let mut job = Job::start(files, plan)?;
    let mut next_look = Instant::now() + LOOK_EVERY;
    let mut next_kill = plan.chaos.then(|| Instant::now() + KILL_EVERY);
    let mut progress_at_kill = None;
    while job.left > 0 {
        job.feed()?;
        let next = next_kill.map_or(next_look, |next_kill| next_kill.min(next_look));
        job.receive(next.saturating_duration_since(Instant::now()))?;
        if Instant::now() >= next_look {
            job.replace_the_dead()?;
            progress(job.hashed()?);
            next_look = Instant::now() + LOOK_EVERY;
        }
        if let Some(at) = next_kill.filter(|at| Instant::now() >= *at) {
            // Where nothing gets done between two kills, as on a slow machine, the job would not end: there the next waits.
            let progress = Some((job.left, job.hashed()?));
            if progress == progress_at_kill {
                next_kill = Some(Instant::now() + KILL_RETRY);
            } else {
                job.kill_one()?;
                progress_at_kill = progress;
                next_kill = Some((at + KILL_EVERY).max(Instant::now()));
            }
        }
    }
    job.finish()
}

struct Job<'a> {
    files: &'a [File],
    /// Files that no worker has been told of, the smallest first.
    unfed: Vec<u32>,
    shared: Shared,
    workers: Vec<Worker>,
    /// The workers, by their pids, that have begun with a file.
    begun: HashSet<u32>,
    hashes: Vec<Option<io::Result<Hash>>>,
    /// Files without an outcome.
    left: usize,
    killed: u32,
    died: u32,
    /// Workers that died one after another before they began with a file.
    stillborn: u32,
}

impl<'a> Job<'a> {
    fn start(files: &'a [File], plan: &Plan) -> Result<Self, Box<dyn Error>> {
        let mut unfed: Vec<u32> = (0..u32::try_from(files.len())?).collect();
        // Big ones go first: begun last, one would keep a single worker busy while the others are done.
        unfed.sort_by_key(|index| files[*index as usize].size);
        let mut job = Job {
            files,
            unfed,
            shared: Shared::new(if plan.chaos { DEATHS_UNDER_KILLS } else { DEATHS })?,
            workers: Vec::new(),
            begun: HashSet::new(),
            hashes: files.iter().map(|_| None).collect(),
            left: files.len(),
            killed: 0,
            died: 0,
            stillborn: 0,
        };
        for _ in 0..plan.workers.min(files.len()) {
            let worker = job.start_worker()?;
            job.workers.push(worker);
        }
        Ok(job)
    }

    /// A daemon, so that none outlives this process, however it ends.
    fn start_worker(&self) -> Result<Worker, Box<dyn Error>> {
        Ok(Process::builder(work, self.shared.clone()).daemon(true).start()?)
    }

    fn hashed(&self) -> Result<u64, Box<dyn Error>> {
        Ok(self.shared.hashed.get().or_else(LockError::recover)?)
    }

    /// Puts tasks for as long as few wait.
    fn feed(&mut self) -> Result<(), Box<dyn Error>> {
        while self.shared.tasks.len() < AHEAD
            && let Some(index) = self.unfed.pop()
        {
            let file = &self.files[index as usize];
            let path = file.path.as_os_str().as_bytes().to_vec();
            self.shared.tasks.put(&Task { index, path, big: file.size >= BIG, after: None, deaths: 0 })?;
        }
        Ok(())
    }

    /// Takes all reports that there are, waiting for the first at most for `timeout`.
    fn receive(&mut self, timeout: Duration) -> Result<(), Box<dyn Error>> {
        let mut report = self.shared.reports.get_timeout(timeout);
        loop {
            match report {
                Ok(Report::Begun { pid }) => {
                    self.begun.insert(pid);
                    self.stillborn = 0;
                }
                Ok(Report::Ended { index, outcome }) => {
                    let hash = &mut self.hashes[index as usize];
                    // Not again when the file was handed out again.
                    if hash.is_none() {
                        *hash = Some(outcome.map_err(io::Error::from));
                        self.left -= 1;
                    }
                }
                Err(GetError::Empty) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
            report = self.shared.reports.try_get();
        }
    }

    fn replace_the_dead(&mut self) -> Result<(), Box<dyn Error>> {
        for place in 0..self.workers.len() {
            if !self.workers[place].is_alive() {
                let dead = self.replace(place)?;
                self.bury(&dead)?;
            }
        }
        Ok(())
    }

    /// SIGKILLs a worker and starts another.
    fn kill_one(&mut self) -> Result<(), Box<dyn Error>> {
        let victim = self.replace(fastrand::usize(..self.workers.len()))?;
        victim.kill()?;
        match victim.join() {
            Err(JoinError::Killed { signal: SIGKILL, pid, .. }) => {
                self.killed += 1;
                self.receive(Duration::ZERO)?;
                self.begun.remove(&pid);
                Ok(())
            }
            // It was faster.
            ended => self.note_death(victim.pid(), ended),
        }
    }

    /// Starts another worker; returns the one that it replaces.
    fn replace(&mut self, place: usize) -> Result<Worker, Box<dyn Error>> {
        let another = self.start_worker()?;
        Ok(std::mem::replace(&mut self.workers[place], another))
    }

    fn bury(&mut self, dead: &Worker) -> Result<(), Box<dyn Error>> {
        self.note_death(dead.pid(), dead.join())
    }

    /// A worker ended unasked. What it worked on is handed out again, by the queue.
    fn note_death(
        &mut self,
        pid: u32,
        ended: Result<Result<(), String>, JoinError>,
    ) -> Result<(), Box<dyn Error>> {
        let death = match ended {
            Ok(Ok(())) => return Err("a worker ended before its work".into()),
            Ok(Err(message)) => return Err(message.into()),
            Err(death) => death,
        };
        self.died += 1;
        // All that it reported has come: a put is over before its process can be.
        self.receive(Duration::ZERO)?;
        if !self.begun.remove(&pid) {
            self.stillborn += 1;
        }
        if self.stillborn >= STILLBORN { Err(death.into()) } else { Ok(()) }
    }

    /// Lets the workers end.
    fn finish(mut self) -> Result<Outcome, Box<dyn Error>> {
        // What is left are files that were handed out twice.
        self.shared.tasks.shutdown(true)?;
        for worker in &self.workers {
            match worker.join() {
                Ok(ended) => ended?,
                Err(_) => self.died += 1,
            }
        }
        let hashes = self.hashes.into_iter().map(|hash| hash.expect("no file is left")).collect();
        Ok(Outcome { hashes, workers: self.workers.len(), killed: self.killed, died: self.died })
    }
}
