//! Setters set and clear an event; watchers wait for it.

use std::time::Duration;

use procession::Event;
use serde::{Deserialize, Serialize};

use super::{Doing, Outcome, Station};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Setter {
    pub(crate) event: Event,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Watcher {
    pub(crate) event: Event,
}

impl Setter {
    /// Goes on after the watchers were told to end, so that none of them waits for what does not come.
    pub(super) fn run(self, station: &mut Station) -> Outcome {
        while station.board.head().stop.load(std::sync::atomic::Ordering::Relaxed) < 2 {
            station.pause(Duration::from_millis(2));
            station.doing(Doing::Notifying);
            self.event.set();
            // At once, so that whoever waits sees by the count of sets that it was set.
            self.event.clear();
            station.beat();
        }
        Ok(())
    }
}

impl Watcher {
    pub(super) fn run(self, station: &mut Station) -> Outcome {
        while !station.is_over() {
            station.doing(Doing::Waiting);
            if station.random.u8(..) < 60 {
                self.event.wait(Duration::from_millis(5));
            } else if !self.event.wait(None) {
                return Err("a wait without a limit was over before its time".into());
            }
            station.beat();
        }
        Ok(())
    }
}
