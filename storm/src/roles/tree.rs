//! Has a daemon of its own that does the work, and starts another when that one is killed.

use std::time::Duration;

use procession::process::JoinError;
use serde::{Deserialize, Serialize};

use super::{Consumer, Doing, Outcome, Producer, Role, Station, Worker};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Tree {
    Producer(Producer),
    Consumer(Consumer),
    Worker(Worker),
}

impl Tree {
    /// Runs until its daemon ends as it should.
    pub(super) fn run(self, station: &mut Station) -> Outcome {
        loop {
            let role = match self.clone() {
                Tree::Producer(role) => Role::Producer(role),
                Tree::Consumer(role) => Role::Consumer(role),
                Tree::Worker(role) => Role::Worker(role),
            };
            let daemon = station.start_daemon(role)?;
            let outcome = loop {
                station.doing(Doing::Waiting);
                let outcome = daemon.join_timeout(Duration::from_millis(50));
                station.beat();
                match outcome {
                    Ok(None) => {}
                    Ok(Some(outcome)) => break Ok(outcome),
                    Err(error) => break Err(error),
                }
            };
            match outcome {
                Ok(outcome) if outcome.is_err() || station.is_over() => return outcome,
                // Its log was full.
                Ok(_) => {}
                Err(JoinError::Killed { signal: 9, .. } | JoinError::Unknown { .. }) => {}
                Err(error) => return Err(format!("the daemon: {error}")),
            }
        }
    }
}
