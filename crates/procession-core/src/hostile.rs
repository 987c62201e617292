//! Running victims of hostile memory: each case in a forked child, which must end by itself, in time, without a panic or
//! a signal, and without a large allocation.
//!
//! `CASES` sets how many cases each target runs, `SEED` what they are made from.

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};

use procession_sys::identity::Identity;

/// A case that has not ended after so many seconds hangs: its victims wait for milliseconds.
const WATCHDOG: u32 = 30;
/// What a victim may allocate at once, and how much more private memory it may have, in bytes.
const ALLOWANCE: usize = 64 << 20;
/// How much more address space it may map.
const ADDRESSES: u64 = 4 << 30;
/// Set in the program that runs the cases: it has no other tests' threads, so that it can fork.
const ALONE: &str = "PROCESSION_HOSTILE";

/// The system's allocator, with a note of the largest request.
struct Noting;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: passes every call on as it is.
unsafe impl GlobalAlloc for Noting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's word.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's word.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        LARGEST.fetch_max(size, Ordering::Relaxed);
        // SAFETY: the caller's word.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's word.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Noting = Noting;

/// Runs `cases` cases of the test `name` (its full path), `victim` in a child of its own for each.
pub(crate) fn target<S: Strategy>(name: &str, cases: u32, strategy: S, victim: impl Fn(&S::Value)) {
    if std::env::var_os(ALONE).is_none() {
        let program = std::env::current_exe().expect("this program");
        let mut alone = Command::new(program);
        alone.args([name, "--exact", "--nocapture", "--test-threads=1"]).env(ALONE, "1");
        // Its total is part of this program's.
        alone.stdout(Stdio::null());
        assert!(alone.status().expect("this program again").success(), "see above");
        return;
    }
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse().ok());
    let (cases, seed) = (number("CASES").map_or(cases, |n| n as u32), number("SEED").unwrap_or(1));
    eprintln!("{name}: {cases} cases, SEED={seed}");
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&u64::to_le_bytes(seed));
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let config = Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: 300,
        max_shrink_time: 30_000,
        ..Config::default()
    };
    let run = TestRunner::new_with_rng(config, rng).run(&strategy, |case| in_child(|| victim(&case)));
    if let Err(failure) = run {
        panic!("{name}: {failure}");
    }
}

/// Runs `victim` in a forked child.
fn in_child(victim: impl FnOnce()) -> Result<(), TestCaseError> {
    let said = procession_sys::memory::create(c"stderr", 0)
        .map_err(|error| TestCaseError::fail(error.to_string()))?;
    // SAFETY: the only other thread of this program waits for this one; the child runs `victim` and ends.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
    if pid == 0 {
        // SAFETY: of this process alone.
        unsafe {
            libc::dup2(said.as_raw_fd(), 2);
            libc::alarm(WATCHDOG);
        }
        confine();
        LARGEST.store(0, Ordering::Relaxed);
        let calm = catch_unwind(AssertUnwindSafe(|| {
            victim();
            let largest = LARGEST.load(Ordering::Relaxed);
            assert!(largest <= ALLOWANCE, "an allocation of {largest} bytes");
        }));
        // SAFETY: ends the child at once, without the parent's exit handlers.
        unsafe { libc::_exit(if calm.is_ok() { 0 } else { 101 }) };
    }
    let mut status = 0;
    // SAFETY: the child made above; an interrupted wait is begun again.
    while unsafe { libc::waitpid(pid, &mut status, 0) } != pid {}
    if status == 0 {
        return Ok(());
    }
    let (mut file, mut text) = (File::from(said), String::new());
    file.rewind()
        .and_then(|()| file.read_to_string(&mut text))
        .map_err(|e| TestCaseError::fail(e.to_string()))?;
    let end = match libc::WTERMSIG(status) {
        0 => "panicked".to_owned(),
        libc::SIGALRM => "hung".to_owned(),
        signal => format!("died of signal {signal}"),
    };
    Err(TestCaseError::fail(format!("the victim {end}:\n{text}")))
}

/// Limits what this process can take, and leaves no core file.
fn confine() {
    let pages = std::fs::read_to_string("/proc/self/statm").expect("its own size");
    let pages: Vec<u64> = pages.split_whitespace().map(|n| n.parse().expect("a number")).collect();
    let page = procession_sys::memory::page_size() as u64;
    let limits = [
        (libc::RLIMIT_AS, pages[0] * page + ADDRESSES),
        (libc::RLIMIT_DATA, pages[5] * page + 2 * ALLOWANCE as u64),
        (libc::RLIMIT_CORE, 0),
    ];
    for (resource, limit) in limits {
        let limit = libc::rlimit { rlim_cur: limit, rlim_max: limit };
        // SAFETY: of this process alone; the struct outlives the call.
        assert_eq!(unsafe { libc::setrlimit(resource, &limit) }, 0);
    }
}

/// Runs `body` in another process, which goes with this one, and waits for it if `wait`.
pub(crate) fn elsewhere(wait: bool, body: impl FnOnce()) {
    // SAFETY: as in `in_child`.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
    if pid == 0 {
        // SAFETY: of this process alone; ends it without the parent's exit handlers.
        unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            let _ = catch_unwind(AssertUnwindSafe(body));
            libc::_exit(0);
        }
    }
    let mut status = 0;
    // SAFETY: the child made above.
    while wait && unsafe { libc::waitpid(pid, &mut status, 0) } != pid {}
}

/// An identity that no process has any more.
pub(crate) fn dead() -> Identity {
    // Pids begin again rarely, and nothing started with the machine's first tick but its first process.
    Identity::from_bits(12_345).expect("a pid")
}

/// What a peer writes into a word: numbers that stand for something, chosen by number.
pub(crate) fn value(kind: u8, random: u64, now: u64, other: u64, file_size: u64) -> u64 {
    let numbers = [
        0,
        1,
        u64::MAX,
        now.wrapping_add(1),
        now.wrapping_sub(1),
        now ^ 1 << (random % 64),
        random,
        other,
        random % 64,
        1 << (random % 64),
        (1 << (random % 64)) - 1,
        file_size,
        file_size - 4096,
        random % file_size.max(1) / 4096 * 4096,
        dead().to_bits(),
        // A state, or a mark, of somebody dead; and of nobody.
        (random % 16) << Identity::BITS | dead().to_bits(),
        (random % 16) << Identity::BITS,
        // A record, a segment, a cursor.
        (random % 6) << 32 | random >> 40,
        (random % 8) << 32 | now & 0xffff_ffff,
        now.wrapping_add((random % 3 + 1) << 31),
        now & !0xffff_ffff | random >> 32,
        now & 0xffff_ffff | random & !0xffff_ffff,
        u64::from(u32::MAX),
        1 << 31,
    ];
    let value = numbers[kind as usize % numbers.len()];
    // To hold a lock is any peer's right: only there, it may not name somebody who lives.
    let names_the_living = value & ((1 << Identity::BITS) - 1) == Identity::current().to_bits();
    if names_the_living { u64::MAX } else { value }
}

/// Writes as a peer does who has the file.
pub(crate) fn scribble(file: &File, at: u64, bytes: &[u8]) {
    // Beyond the end, or a place of no file: nothing.
    let _ = file.write_at(bytes, at);
}

/// The word of eight bytes there, 0 where there is none.
pub(crate) fn word(file: &File, at: u64) -> u64 {
    let mut bytes = [0; 8];
    let _ = file.read_exact_at(&mut bytes, at);
    u64::from_le_bytes(bytes)
}
