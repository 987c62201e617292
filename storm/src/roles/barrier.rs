//! Meets the others at a barrier, and mends it when a party died.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use std::time::Duration;

use procession::sync::{BarrierError, LockError};
use procession::{Barrier, Lock};
use serde::{Deserialize, Serialize};

use super::{Doing, Outcome, Station};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Party {
    pub(crate) barrier: Barrier,
    /// Who mends the barrier has this, so that nobody resets one that works.
    pub(crate) mender: Lock,
}

impl Party {
    /// Runs until the turn is over; the closer ends the wait of those who wait then.
    pub(super) fn run(self, station: &mut Station) -> Outcome {
        while !station.is_over() {
            station.pause(Duration::from_micros(500));
            let generation = &station.board.head().generation;
            let before = generation.load(Acquire);
            station.doing(Doing::Waiting);
            let met = self.barrier.wait_with(None, || {
                generation.fetch_add(1, AcqRel);
            });
            station.beat();
            match met {
                Ok(index) if index >= self.barrier.parties() => {
                    return Err(format!("arrived as number {index} of {}", self.barrier.parties()));
                }
                Ok(_) if generation.load(Relaxed) == before => {
                    return Err("released from a barrier at which the parties have not met".into());
                }
                Ok(_) => {}
                Err(BarrierError::Broken) => self.mend(station)?,
                Err(error) => return Err(format!("wait: {error}")),
            }
            if station.random.u8(..) == 0 {
                self.barrier.abort();
            }
        }
        Ok(())
    }

    fn mend(&self, station: &mut Station) -> Outcome {
        station.doing(Doing::Acquiring);
        let _mender = match self.mender.lock() {
            Ok(guard) | Err(LockError::OwnerDied(guard)) => guard,
            Err(error) => return Err(format!("lock: {error}")),
        };
        if self.barrier.broken() && !station.is_over() {
            self.barrier.reset();
        }
        station.beat();
        Ok(())
    }
}
