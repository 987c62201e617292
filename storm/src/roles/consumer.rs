//! Takes messages by each kind of get, and writes down which.

use std::sync::atomic::Ordering::{Relaxed, Release};
use std::time::Duration;

use procession::Queue;
use procession::queue::GetError;
use serde::{Deserialize, Serialize};

use super::{Doing, Fault, Outcome, Source, Station};
use crate::parcel::{Parcel, Sizes, borrowed, check};

/// The most messages of one `get_many`.
const BATCH: u64 = 64;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Consumer {
    pub(crate) queue: Source,
    pub(crate) sizes: Sizes,
    /// Whether it takes many messages in one get as well, which a death then loses together.
    pub(crate) batches: bool,
}

impl Consumer {
    /// Runs until the queue is shut down and empty.
    pub(super) fn run(self, station: &mut Station) -> Outcome {
        let queue = self.queue.open()?;
        let pace = station.pace();
        while !station.is_full() {
            // In the end what is left is to be taken, however much it is.
            if !pace.is_zero() && !station.is_over() {
                station.pause(pace);
            }
            let most =
                if self.batches && station.random.u8(..) < 60 { station.random.u64(1..=BATCH) } else { 1 };
            // What a death from here on may take with it.
            station.slot.taking.store(most, Release);
            station.doing(Doing::Getting);
            let result = get(&queue, most as usize, self.sizes, station)?;
            station.slot.taking.store(0, Release);
            match result {
                Ok(()) => station.beat(),
                // An answer too: there was nothing for so long.
                Err(GetError::Empty) => station.beat(),
                Err(GetError::ShutDown) => return Ok(()),
                Err(error) => return Err(format!("get: {error}")),
            }
        }
        Ok(())
    }
}

/// Takes and writes down up to so many messages in some way or other.
fn get(
    queue: &Queue<Parcel>,
    most: usize,
    sizes: Sizes,
    station: &mut Station,
) -> Result<Result<(), GetError>, String> {
    let parcel = match (most, station.random.u8(..)) {
        (2.., way) => {
            let many = if way < 128 {
                queue.get_many(most)
            } else {
                queue.get_many_timeout(most, Duration::from_millis(300))
            };
            return match many {
                Err(error) => Ok(Err(error)),
                Ok(many) => {
                    for parcel in many {
                        note(&parcel.map_err(|error| format!("get_many: {error}"))?.0, sizes, station)?;
                    }
                    Ok(Ok(()))
                }
            };
        }
        (_, ..60) => {
            return match queue.get_bytes() {
                Err(error) => Ok(Err(error)),
                Ok(message) => {
                    note(borrowed(&message)?, sizes, station)?;
                    if station.random.u8(..) < 10 {
                        // A death meanwhile leaves a message that lies in the queue's memory and is nobody's.
                        std::thread::sleep(Duration::from_micros(station.random.u64(..1000)));
                    }
                    Ok(Ok(()))
                }
            };
        }
        (_, 60..80) => queue.get_timeout(Duration::from_millis(3)),
        (_, 80..90) => queue.try_get(),
        _ => queue.get(),
    };
    match parcel {
        Err(error) => Ok(Err(error)),
        Ok(parcel) => note(&parcel.0, sizes, station).map(Ok),
    }
}

fn note(bytes: &[u8], sizes: Sizes, station: &mut Station) -> Outcome {
    let id = check(bytes, sizes)?;
    if station.is_to(Fault::Lose) {
        return Ok(());
    }
    station.log(id);
    // A death can no longer lose this one.
    let taking = &station.slot.taking;
    taking.store(taking.load(Relaxed).saturating_sub(1), Release);
    if station.is_to(Fault::Repeat) {
        station.log(id);
    }
    if station.is_to(Fault::Invent) {
        station.log(id + 1_000_000_000);
    }
    if station.is_to(Fault::Hang) {
        std::thread::sleep(Duration::from_secs(1000));
    }
    Ok(())
}
