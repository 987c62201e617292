//! Takes tasks, and does them, leaves them to another, or takes them for good.

use std::sync::atomic::Ordering::Release;
use std::time::Duration;

use procession::JoinableQueue;
use procession::queue::GetError;
use serde::{Deserialize, Serialize};

use super::{Doing, Fault, Outcome, Station};
use crate::account::tag;
use crate::parcel::{Parcel, Sizes, check};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Worker {
    pub(crate) queue: JoinableQueue<Parcel>,
    pub(crate) sizes: Sizes,
    /// Whether it takes some of the tasks for good, which a death then loses.
    pub(crate) for_good: bool,
}

impl Worker {
    /// Runs until the queue is shut down and empty.
    pub(super) fn run(self, station: &mut Station) -> Outcome {
        let pace = station.pace();
        while !station.is_full() {
            station.doing(Doing::Getting);
            let got = match station.random.u8(..) {
                ..40 => self.queue.get_timeout(Duration::from_millis(3)),
                40..60 => self.queue.try_get(),
                _ => self.queue.get(),
            };
            let delivery = match got {
                Ok(delivery) => delivery,
                Err(GetError::Empty) => {
                    station.pause(Duration::from_micros(200));
                    continue;
                }
                Err(GetError::ShutDown) => return Ok(()),
                Err(error) => return Err(format!("get: {error}")),
            };
            let id = check(&delivery.0, self.sizes)?;
            let received = if delivery.earlier_attempts() == 0 { tag::RECEIVED } else { tag::RECEIVED_AGAIN };
            station.log(received | id);
            if !pace.is_zero() && !station.is_over() {
                station.doing(Doing::Working);
                std::thread::sleep(Duration::from_micros(station.random.u64(0..=pace.as_micros() as u64)));
            }
            let way = station.random.u8(..);
            if way < 20 {
                // Counted as given back from here on; a death before the drop does the same.
                station.log(tag::DROPPED | id);
                drop(delivery);
            } else if self.for_good && way < 120 {
                station.log(tag::FOR_GOOD | id);
                delivery.into_inner().map_err(|error| format!("into_inner: {error}"))?;
                if way < 60 {
                    station.pause(Duration::from_millis(1));
                }
                station.doing(Doing::Finishing);
                self.queue.task_done().map_err(|error| format!("task_done: {error}"))?;
                station.log(tag::DONE | id);
            } else if station.is_to(Fault::Lose) {
                delivery.done().map_err(|error| format!("done: {error}"))?;
            } else {
                station.slot.finishing.store(id + 1, Release);
                station.doing(Doing::Finishing);
                delivery.done().map_err(|error| format!("done: {error}"))?;
                station.log(tag::DONE | id);
                if station.is_to(Fault::Repeat) {
                    station.log(tag::DONE | id);
                }
                station.slot.finishing.store(0, Release);
            }
            station.beat();
        }
        Ok(())
    }
}
