//! Takes permits of a robust semaphore, and counts who has one.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use procession::Semaphore;
use serde::{Deserialize, Serialize};

use super::{Doing, Outcome, Station};

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
            station.slot.inside.store(1, SeqCst);
            station.doing(Doing::Inside);
            let others = (0..station.board.count()).map(|slot| station.board.slot(slot));
            // Whoever is marked as killed may have died before or after this: it does not count.
            let inside = others.filter(|slot| slot.inside.load(SeqCst) == 1 && slot.killed.load(SeqCst) == 0);
            let inside = inside.count() as u64;
            if inside > self.permits {
                return Err(format!("{inside} processes have one of {} permits", self.permits));
            }
            if station.random.bool() {
                std::thread::sleep(Duration::from_micros(station.random.u64(0..500)));
            }
            station.slot.inside.store(0, SeqCst);
            station.doing(Doing::Releasing);
            self.semaphore.release().map_err(|error| format!("release: {error}"))?;
        }
        Ok(())
    }
}
