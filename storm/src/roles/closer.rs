//! Ends a queue or barrier when its turn is over: the calls that may hang are made by a process that can be watched, not by the
//! supervisor.

use std::time::Duration;

use procession::queue::{GetError, JoinError};
use serde::{Deserialize, Serialize};

use super::{Closed, Doing, Outcome, Station};

/// What a drained and trimmed queue may keep in bytes.
const KEPT: u64 = 4 << 20;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Closer {
    pub(crate) queue: Closed,
    /// Whether workers took tasks for good.
    pub(crate) losses: bool,
    /// Whether all other users are gone: then the queue is looked through, else it is shut down.
    pub(crate) last: bool,
}

impl Closer {
    pub(super) fn run(self, station: &mut Station) -> Outcome {
        station.doing(Doing::Closing);
        match (self.queue, self.last) {
            (Closed::Plain(source), false) => {
                source.open()?.shutdown(false).map_err(|error| format!("shutdown: {error}"))
            }
            (Closed::Plain(source), true) => {
                let queue = source.open()?;
                match queue.try_get() {
                    Err(GetError::ShutDown) => {}
                    other => return Err(format!("a get from what was drained and shut down: {other:?}")),
                }
                if !queue.is_empty() {
                    return Err(format!("{} messages are left that nobody gets", queue.len()));
                }
                queue.trim().map_err(|error| format!("trim: {error}"))?;
                check_memory(queue.memory_used())
            }
            (Closed::Barrier(barrier), false) => {
                barrier.abort();
                Ok(())
            }
            (Closed::Barrier(barrier), true) => match (barrier.broken(), barrier.n_waiting()) {
                (true, 0) => Ok(()),
                other => Err(format!("a barrier that was aborted and left is (broken, waiting) {other:?}")),
            },
            (Closed::Tasks(queue), false) => {
                // First what the dead held comes back to the workers, then nothing more will.
                loop {
                    station.doing(Doing::Joining);
                    let joined = queue.join_timeout(Duration::from_millis(100));
                    match joined {
                        Ok(()) => break,
                        Err(JoinError::Timeout { .. }) => {}
                        Err(JoinError::DeliveryLost { count, .. }) if self.losses => {
                            station.log(crate::account::tag::LOST | count);
                        }
                        Err(error) => return Err(format!("the last join: {error}")),
                    }
                }
                queue.shutdown(false).map_err(|error| format!("shutdown: {error}"))
            }
            (Closed::Tasks(queue), true) => {
                match queue.join_timeout(Duration::from_secs(2)) {
                    Ok(()) => {}
                    Err(error) => return Err(format!("join of a queue whose tasks are done: {error}")),
                }
                if queue.unfinished() != 0 || !queue.is_empty() {
                    let (unfinished, len) = (queue.unfinished(), queue.len());
                    return Err(format!(
                        "{unfinished} tasks are unfinished and {len} wait after all was done"
                    ));
                }
                queue.trim().map_err(|error| format!("trim: {error}"))?;
                check_memory(queue.memory_used())
            }
        }
    }
}

fn check_memory(used: u64) -> Outcome {
    if used > KEPT {
        return Err(format!(
            "{used} bytes are left of the dead's messages in a queue that was drained and trimmed"
        ));
    }
    Ok(())
}
