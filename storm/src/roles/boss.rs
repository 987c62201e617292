//! Puts tasks a batch at a time and waits until all are done.

use std::sync::atomic::Ordering::Release;
use std::time::Duration;

use procession::JoinableQueue;
use procession::queue::{JoinError, PutError};
use serde::{Deserialize, Serialize};

use super::{Doing, Outcome, Station};
use crate::account::tag;
use crate::parcel::{Parcel, Sizes, id};

/// The most tasks of one batch.
const BATCH: u64 = 60;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Boss {
    pub(crate) queue: JoinableQueue<Parcel>,
    pub(crate) sizes: Sizes,
    /// Whether workers take tasks for good, so that some may be lost with them.
    pub(crate) losses: bool,
}

impl Boss {
    pub(super) fn run(self, station: &mut Station) -> Outcome {
        let mut sequence = 0;
        while !station.is_over() {
            let batch = station.random.u64(1..=BATCH);
            let end = sequence + batch;
            while sequence < end {
                let count = if station.random.bool() { 1 } else { station.random.u64(1..=end - sequence) };
                let parcels: Vec<_> = (sequence..sequence + count)
                    .map(|sequence| Parcel::new(id(station.number, sequence), self.sizes))
                    .collect();
                station.slot.put.store(sequence << 16 | count, Release);
                station.doing(Doing::Putting);
                sequence += self.put(&parcels, station)?;
                station.slot.put.store(sequence << 16, Release);
                station.beat();
            }
            self.join(station)?;
            if station.random.bool() {
                station.pause(Duration::from_millis(2));
            }
        }
        Ok(())
    }

    fn put(&self, parcels: &[Parcel], station: &mut Station) -> Result<u64, String> {
        if parcels.len() > 1 {
            return match self.queue.put_many(parcels) {
                Ok(count) => Ok(count as u64),
                Err(error) => Err(format!("put_many: {error}")),
            };
        }
        let result = match station.random.u8(0..4) {
            0 => self.queue.try_put(&parcels[0]),
            1 => self.queue.put_timeout(&parcels[0], Duration::from_millis(20)),
            _ => self.queue.put(&parcels[0]),
        };
        match result {
            Ok(()) => Ok(1),
            Err(PutError::Full) => Ok(0),
            Err(error) => Err(format!("put: {error}")),
        }
    }

    fn join(&self, station: &mut Station) -> Outcome {
        station.doing(Doing::Joining);
        let joined = match station.random.u8(0..4) {
            0 => self.queue.join_timeout(Duration::from_millis(50)),
            _ => self.queue.join(),
        };
        station.beat();
        match joined {
            Ok(()) | Err(JoinError::Timeout { .. }) => Ok(()),
            Err(JoinError::DeliveryLost { count, .. }) if self.losses => {
                station.log(tag::LOST | count);
                Ok(())
            }
            Err(error) => Err(format!("join: {error}")),
        }
    }
}
