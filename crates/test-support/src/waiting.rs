//! Waiting for what will happen, and an end for a test in which it does not.

use std::panic::Location;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// Far longer than a test takes on a loaded machine.
const FAR_TOO_LONG: Duration = Duration::from_secs(240);

/// Ends the test program, unless it is dropped in time.
#[must_use]
pub struct Watchdog {
    _alive: Sender<()>,
}

/// Watches over the calling test. A test that hangs is named, and ends the whole program.
#[track_caller]
pub fn watchdog() -> Watchdog {
    let place = Location::caller();
    let test = std::thread::current().name().unwrap_or("?").to_owned();
    let (alive, over) = channel();
    std::thread::spawn(move || {
        if over.recv_timeout(FAR_TOO_LONG) == Err(RecvTimeoutError::Timeout) {
            eprintln!("watchdog: {test} at {place} hangs");
            std::process::abort();
        }
    });
    Watchdog { _alive: alive }
}

/// Waits until `is_true`; fails after a minute.
#[track_caller]
pub fn eventually(what: &str, mut is_true: impl FnMut() -> bool) {
    let since = Instant::now();
    while !is_true() {
        assert!(since.elapsed() < Duration::from_secs(60), "never: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Sleeps until the process is killed.
pub fn sleep_until_killed() -> ! {
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}
