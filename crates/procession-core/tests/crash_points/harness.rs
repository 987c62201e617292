//! Forks, deaths, and what was seen of them.

use std::panic::{AssertUnwindSafe, Location, catch_unwind};
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use procession_sys::crash_point;

/// Places for the sites at which steps were seen.
const SITES: usize = 2048;

/// No survivor may need longer; far above what it should be, for the machine may be busy.
pub(crate) const LONG: Duration = Duration::from_secs(20);

/// Situations at a time: most of what they do is wait.
const AT_ONCE: usize = 4;

pub(crate) struct Run {
    /// Where all processes note the sites that they came to.
    sites: &'static [AtomicPtr<Location<'static>>],
    only: Option<String>,
    all_pairs: bool,
    start: Instant,
    at_work: Vec<AtWork>,
    situations: u32,
    deaths: u64,
    failures: Vec<String>,
}

/// A process that goes through the deaths of a situation.
struct AtWork {
    name: &'static str,
    runner: Child,
    notes: Notes,
    started: Instant,
    /// Cases when there was last one more, and when that was.
    last: (u64, Instant),
}

/// Memory that the processes of a situation share with the first, so that a death does not lose what was noted.
#[derive(Clone, Copy)]
struct Notes {
    /// The step at which the victim dies, and the one at which the second does.
    first: &'static AtomicU64,
    second: &'static AtomicU64,
    cases: &'static AtomicU64,
    deaths: &'static AtomicU64,
    /// The steps of the last process that did not die.
    steps: &'static AtomicU64,
    latest: &'static AtomicPtr<Location<'static>>,
}

/// What happens in one situation. The state is made anew for each death, in the process that survives.
pub(crate) struct Situation<S> {
    pub(crate) name: &'static str,
    pub(crate) prepare: fn() -> S,
    /// Runs in a forked process, which dies at each step of it in turn.
    pub(crate) victim: fn(&S),
    /// Runs in the surviving process while the victim does, once that sleeps or has ended. For victims that wait.
    pub(crate) meanwhile: Option<fn(&S)>,
    /// What another process does first after the death, and may die over as well.
    pub(crate) second: Option<fn(&S)>,
    /// Whether the victim died is given.
    pub(crate) survivor: fn(&S, bool),
}

/// As a [`Situation`], but the victim is stopped at each of its steps, and then continues to its
/// end.
pub(crate) struct Stop<S> {
    pub(crate) name: &'static str,
    pub(crate) prepare: fn() -> S,
    /// Runs in a forked process.
    pub(crate) victim: fn(&S),
    /// Runs while the victim is stopped, and must finish all the same.
    pub(crate) meanwhile: fn(&S),
    /// Runs when the victim has ended.
    pub(crate) after: fn(&S),
}

/// So many of what is valid as zero, and may be shared.
pub(crate) fn shared<T: Sync>(count: usize) -> &'static [T] {
    // SAFETY: a new shared mapping, zeroed, never unmapped; `T` is made of atomics, valid as zero.
    unsafe {
        let start = libc::mmap(
            std::ptr::null_mut(),
            count * size_of::<T>(),
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        assert_ne!(start, libc::MAP_FAILED);
        std::slice::from_raw_parts(start.cast::<T>(), count)
    }
}

/// A word that the processes of one situation share, outside the library.
pub(crate) fn word() -> &'static AtomicU64 {
    &shared(1)[0]
}

/// How a forked process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Done,
    Killed,
    Failed(i32),
}

pub(crate) struct Child(i32);

pub(crate) fn fork(body: impl FnOnce()) -> Child {
    // SAFETY: this program has one thread; the child runs `body` and ends.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
    if pid == 0 {
        let ok = catch_unwind(AssertUnwindSafe(body)).is_ok();
        // SAFETY: ends the child at once, without the parent's exit handlers.
        unsafe { libc::_exit(if ok { 0 } else { 101 }) };
    }
    Child(pid)
}

impl Child {
    pub(crate) fn wait(self) -> End {
        let mut status = 0;
        // SAFETY: plain wait for our child.
        assert_eq!(unsafe { libc::waitpid(self.0, &raw mut status, 0) }, self.0);
        match status {
            0 => End::Done,
            status if libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGKILL => End::Killed,
            other => End::Failed(other),
        }
    }

    pub(crate) fn pid(&self) -> u64 {
        self.0 as u64
    }

    /// Waits until the process has stopped itself. False if it has ended instead, as it should.
    pub(crate) fn stops(&self) -> bool {
        let mut status = 0;
        // SAFETY: plain wait for our child, which stays to be waited for if it has stopped.
        assert_eq!(unsafe { libc::waitpid(self.0, &raw mut status, libc::WUNTRACED) }, self.0);
        assert!(libc::WIFSTOPPED(status) || status == 0, "the victim ended with status {status:#x}");
        libc::WIFSTOPPED(status)
    }

    /// Waits until the process is stopped, in one that is not its parent.
    pub(crate) fn until_stopped(&self) {
        while self.state() != Some('T') {
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Continues the process.
    pub(crate) fn go_on(&self) {
        // SAFETY: the child is not waited for yet, so that the pid is its own.
        unsafe { libc::kill(self.0, libc::SIGCONT) };
    }

    fn state(&self) -> Option<char> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0)).ok()?;
        stat.rsplit(") ").next().and_then(|rest| rest.chars().next())
    }

    pub(crate) fn kill(self) {
        // SAFETY: the child is not waited for yet, so that the pid is its own.
        unsafe { libc::kill(self.0, libc::SIGKILL) };
        assert_eq!(self.wait(), End::Killed);
    }

    /// # Panics
    /// When it has not ended by then, or not well. Then it is killed.
    pub(crate) fn ends_by(self, deadline: Instant) {
        let mut status = 0;
        // SAFETY: looks whether our child has ended.
        while unsafe { libc::waitpid(self.0, &raw mut status, libc::WNOHANG) } != self.0 {
            if Instant::now() > deadline {
                self.kill();
                panic!("nobody woke it");
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        assert_eq!(status, 0, "how it ended");
    }

    /// Waits until the process sleeps, or has ended.
    pub(crate) fn until_asleep(&self) {
        while !matches!(self.state(), Some('S' | 'Z' | 'X')) {
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

impl Run {
    pub(crate) fn new() -> Self {
        Run {
            sites: shared(SITES),
            only: std::env::var("ONLY").ok(),
            all_pairs: std::env::var("PAIRS").is_ok_and(|pairs| pairs == "all"),
            start: Instant::now(),
            at_work: Vec::new(),
            situations: 0,
            deaths: 0,
            failures: Vec::new(),
        }
    }

    /// Goes through all deaths of a situation, in a process of its own, so that one that fails or hangs is told and left.
    pub(crate) fn each_death<S>(&mut self, situation: Situation<S>) {
        let all_pairs = self.all_pairs;
        self.start(situation.name, |notes| Runner { notes, all_pairs }.run(&situation));
    }

    /// Goes through all stops of a victim, in a process of its own.
    pub(crate) fn each_stop<S>(&mut self, stop: Stop<S>) {
        let all_pairs = self.all_pairs;
        self.start(stop.name, |notes| Runner { notes, all_pairs }.run_stops(&stop));
    }

    fn start(&mut self, name: &'static str, run: impl FnOnce(Notes)) {
        if self.only.as_ref().is_some_and(|only| !name.contains(only.as_str())) {
            return;
        }
        self.wait_for_less_than(AT_ONCE);
        let words: &'static [AtomicU64] = shared(5);
        let notes = Notes {
            first: &words[0],
            second: &words[1],
            cases: &words[2],
            deaths: &words[3],
            steps: &words[4],
            latest: &shared(1)[0],
        };
        let started = Instant::now();
        let runner = fork(|| {
            crash_point::record_sites(self.sites.iter().collect(), notes.latest);
            run(notes);
        });
        self.at_work.push(AtWork { name, runner, notes, started, last: (0, started) });
    }

    /// Tells of those that have ended, until so few are at work.
    fn wait_for_less_than(&mut self, count: usize) {
        while self.at_work.len() >= count {
            std::thread::sleep(Duration::from_millis(1));
            let mut left = Vec::new();
            for mut at_work in std::mem::take(&mut self.at_work) {
                match at_work.outcome() {
                    None => left.push(at_work),
                    Some(outcome) => self.tell(&at_work, outcome),
                }
            }
            self.at_work = left;
        }
    }

    fn tell(&mut self, ended: &AtWork, outcome: Result<(), &'static str>) {
        let AtWork { name, notes, started, .. } = ended;
        let [first, second, deaths] =
            [notes.first, notes.second, notes.deaths].map(|word| word.load(Ordering::Relaxed));
        self.situations += 1;
        self.deaths += deaths;
        match outcome {
            Ok(()) => {
                println!(
                    "  {name}: {first} steps, {deaths} deaths, {:.1} s",
                    started.elapsed().as_secs_f64()
                );
            }
            Err(how) => {
                let latest = crash_point::site(notes.latest);
                let failure = format!("{name} {how} after a death at step {first}, {second} (at {latest:?})");
                println!("  {failure}");
                self.failures.push(failure);
            }
        }
    }

    pub(crate) fn visited(&self) -> Vec<&'static Location<'static>> {
        self.sites.iter().map_while(crash_point::site).collect()
    }

    /// Whether all situations were run.
    pub(crate) fn is_whole(&self) -> bool {
        self.only.is_none()
    }

    /// # Panics
    /// When something failed.
    pub(crate) fn report(&mut self) {
        self.wait_for_less_than(1);
        println!(
            "{} situations, {} deaths at {} places of the source, {:.1} s",
            self.situations,
            self.deaths,
            self.visited().len(),
            self.start.elapsed().as_secs_f64()
        );
        assert!(self.failures.is_empty(), "{} failed: {:#?}", self.failures.len(), self.failures);
    }
}

impl AtWork {
    /// How it ended, if it did.
    fn outcome(&mut self) -> Option<Result<(), &'static str>> {
        let mut status = 0;
        // SAFETY: looks whether our child has ended.
        if unsafe { libc::waitpid(self.runner.0, &raw mut status, libc::WNOHANG) } == self.runner.0 {
            return Some(if status == 0 { Ok(()) } else { Err("failed") });
        }
        let cases = self.notes.cases.load(Ordering::Relaxed);
        if self.last.0 != cases {
            self.last = (cases, Instant::now());
        }
        if self.last.1.elapsed() < LONG * 3 {
            return None;
        }
        // SAFETY: the child is not waited for yet, so that the pid is its own.
        unsafe { libc::kill(self.runner.0, libc::SIGKILL) };
        // SAFETY: plain wait for our child.
        unsafe { libc::waitpid(self.runner.0, &raw mut status, 0) };
        Some(Err("hangs"))
    }
}

struct Runner {
    notes: Notes,
    all_pairs: bool,
}

impl Runner {
    fn run<S>(&self, situation: &Situation<S>) {
        let mut step = 0;
        let mut steps_of_second = 1;
        loop {
            step += 1;
            if !self.one_case(situation, step, None) {
                break;
            }
            if situation.second.is_none() {
                continue;
            }
            if self.all_pairs {
                for second in 1.. {
                    if !self.one_case(situation, step, Some(second)) {
                        break;
                    }
                }
            } else {
                // One of the pairs, at another place each time.
                if step % 5 == 1 {
                    self.one_case(situation, step, Some(u64::MAX));
                    steps_of_second = self.notes.steps.load(Ordering::Relaxed).max(1);
                }
                self.one_case(situation, step, Some(1 + step * 5 % steps_of_second));
            }
        }
    }

    fn run_stops<S>(&self, stop: &Stop<S>) {
        for step in 1.. {
            self.notes.first.store(step, Ordering::Relaxed);
            self.notes.cases.fetch_add(1, Ordering::Relaxed);
            let state = (stop.prepare)();
            let victim = fork(|| {
                crash_point::stop_at(step);
                (stop.victim)(&state);
            });
            let stopped = victim.stops();
            if stopped {
                // Its steps count as reached too.
                crash_point::die_at(u64::MAX);
                (stop.meanwhile)(&state);
                crash_point::count();
                victim.go_on();
                assert_eq!(victim.wait(), End::Done);
            }
            (stop.after)(&state);
            if !stopped {
                return;
            }
        }
    }

    /// Whether the last victim died, so that there are more steps to die at.
    fn one_case<S>(&self, situation: &Situation<S>, first: u64, second: Option<u64>) -> bool {
        self.notes.first.store(first, Ordering::Relaxed);
        self.notes.second.store(second.unwrap_or(0), Ordering::Relaxed);
        self.notes.cases.fetch_add(1, Ordering::Relaxed);
        let state = (situation.prepare)();
        let mut died = self.one_death(
            first,
            || (situation.victim)(&state),
            || {
                if let Some(meanwhile) = situation.meanwhile {
                    meanwhile(&state);
                }
            },
        );
        let first_died = died;
        if let (Some(repair), Some(second)) = (situation.second, second) {
            died = self.one_death(second, || repair(&state), || ());
        }
        (situation.survivor)(&state, first_died);
        died
    }

    fn one_death(&self, step: u64, victim: impl FnOnce(), meanwhile: impl FnOnce()) -> bool {
        let child = fork(|| {
            crash_point::die_at(step);
            victim();
            self.notes.steps.store(crash_point::count(), Ordering::Relaxed);
        });
        child.until_asleep();
        meanwhile();
        match child.wait() {
            End::Done => false,
            End::Killed => {
                self.notes.deaths.fetch_add(1, Ordering::Relaxed);
                true
            }
            End::Failed(status) => panic!("the victim ended with status {status:#x}"),
        }
    }
}
