//! Bytes that a peer made up: what they may cost.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// The system's allocator, with a note of each thread's largest request.
struct Noting;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

fn note(size: usize) {
    // A thread that ends has none any more.
    let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(size)));
}

// SAFETY: passes every call on as it is.
unsafe impl GlobalAlloc for Noting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller's word.
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size);
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

/// The largest single allocation of this thread while `run` runs, in bytes.
pub(crate) fn largest_allocation(run: impl FnOnce()) -> usize {
    LARGEST.set(0);
    run();
    LARGEST.get()
}

/// Runs `CASES` cases, or 1000, from `SEED`. `victim` returns or panics, which is a failure, as is a large allocation.
pub(crate) fn target<S: Strategy>(strategy: S, victim: impl Fn(S::Value)) {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let (cases, seed) = (number("CASES").unwrap_or(1000), number("SEED").unwrap_or(1));
    println!("{cases} cases, SEED={seed}");
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let config = Config { cases: cases as u32, failure_persistence: None, ..Config::default() };
    let run = TestRunner::new_with_rng(config, rng).run(&strategy, |case| {
        let largest = largest_allocation(|| victim(case));
        assert!(largest <= 4 << 20, "an allocation of {largest} bytes");
        Ok(())
    });
    if let Err(failure) = run {
        panic!("{failure}");
    }
}
