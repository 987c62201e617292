//! Puts messages, one by one, in batches, and through reservations.

use std::sync::atomic::Ordering::Release;
use std::time::Duration;

use procession::Queue;
use procession::queue::PutError;
use serde::{Deserialize, Serialize};

use super::{Doing, Fault, Outcome, Source, Station};
use crate::parcel::{Parcel, Sizes, id};

/// The most messages of one `put_many`.
const BATCH: u64 = 20;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Producer {
    pub(crate) queue: Source,
    pub(crate) sizes: Sizes,
    /// More messages than this are not to wait, since the machine's memory is bounded even if the queue is not.
    pub(crate) backlog: usize,
}

impl Producer {
    pub(super) fn run(self, station: &mut Station) -> Outcome {
        let queue = self.queue.open()?;
        let pace = station.pace();
        let mut sequence = 0;
        while !station.is_over() {
            while queue.len() > self.backlog {
                station.pause(Duration::from_millis(1));
            }
            if !pace.is_zero() {
                station.pause(pace);
            }
            let count = if station.random.u8(..) < 30 { station.random.u64(1..=BATCH) } else { 1 };
            let parcels: Vec<_> = (sequence..sequence + count)
                .map(|sequence| Parcel::new(id(station.number, sequence), self.sizes))
                .collect();
            // What may be in the queue from now on, and after the call what is.
            station.slot.put.store(sequence << 16 | count, Release);
            station.doing(Doing::Putting);
            sequence += put(&queue, &parcels, station)?;
            station.slot.put.store(sequence << 16, Release);
            station.beat();
        }
        Ok(())
    }
}

/// Puts the messages in some way or other; how many are put.
fn put(queue: &Queue<Parcel>, parcels: &[Parcel], station: &mut Station) -> Result<u64, String> {
    if parcels.len() > 1 {
        return match queue.put_many(parcels) {
            Ok(count) => Ok(count as u64),
            Err(error) => Err(format!("put_many: {error}")),
        };
    }
    let parcel = &parcels[0];
    let result = match station.random.u8(..) {
        ..40 => {
            let bytes = postcard::to_allocvec(parcel).map_err(|error| error.to_string())?;
            let mut reservation = queue.reserve(bytes.len()).map_err(|error| format!("reserve: {error}"))?;
            reservation.copy_from_slice(&bytes);
            if station.is_to(Fault::Tear)
                && let Some(last) = reservation.last_mut()
            {
                *last ^= 1;
            }
            match station.random.u8(..) {
                // Given up: nothing of it may be seen.
                ..60 => return Ok(0),
                60..100 => reservation.commit_timeout(Duration::from_millis(5)),
                _ => reservation.commit(),
            }
        }
        40..60 => queue.put_timeout(parcel, Duration::from_millis(20)),
        60..80 => queue.try_put(parcel),
        80..90 => queue.put_timeout(parcel, Duration::from_secs(100)),
        _ => queue.put(parcel),
    };
    match result {
        Ok(()) => Ok(1),
        Err(PutError::Full) => Ok(0),
        Err(error) => Err(format!("put: {error}")),
    }
}
