//! Takes permits of a robust semaphore, and counts who has one.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use procession::Semaphore;
use serde::{Deserialize, Serialize};

use super::{Doing, Outcome, Station};
use crate::board::Board;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PermitUser {
    pub(crate) semaphore: Semaphore,
    /// How many permits there are.
    pub(crate) permits: u64,
}

impl PermitUser {
    pub(super) fn run(self, station: &mut Station) -> Outcome {
        let pace = station.pace();
        while !station.is_over() {
            station.pause(pace.max(Duration::from_micros(20)));
            station.doing(Doing::Acquiring);
            let got = match station.random.u8(0..4) {
                0 => self.semaphore.try_acquire(),
                1 => self.semaphore.acquire(Duration::from_millis(5)),
                _ => self.semaphore.acquire(None),
            };
            station.beat();
            if !got {
                continue;
            }
            station.slot.inside.fetch_add(1, SeqCst);
            station.doing(Doing::Inside);
            let inside = inside(station.board);
            if inside > self.permits {
                return Err(format!("{inside} processes have one of {} permits", self.permits));
            }
            if station.random.bool() {
                std::thread::sleep(Duration::from_micros(station.random.u64(0..500)));
            }
            station.slot.inside.fetch_add(1, SeqCst);
            station.doing(Doing::Releasing);
            self.semaphore.release().map_err(|error| format!("release: {error}"))?;
        }
        Ok(())
    }
}

/// How many processes had a permit at one instant; 0 when no such instant was caught.
fn inside(board: &Board) -> u64 {
    let look =
        || -> Vec<u64> { (0..board.count()).map(|slot| board.slot(slot).inside.load(SeqCst)).collect() };
    // Nobody went in or out between two looks that are the same: it was so all the time in between. Whoever is
    // marked as killed by the end may have died by then: it does not count.
    let mut before = look();
    for _ in 0..10 {
        let after = look();
        if before == after {
            let lives = |slot: u64| board.slot(slot).killed.load(SeqCst) == 0;
            return (0..).zip(after).filter(|(slot, times)| times % 2 == 1 && lives(*slot)).count() as u64;
        }
        before = after;
    }
    0
}
