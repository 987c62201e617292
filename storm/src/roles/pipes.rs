//! Two processes and the pipe between them: a parent that makes the pipe, and the child that it starts with the other end.
//! Whoever is killed, the other finds the end of the pipe.

use std::cell::Cell;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::time::Duration;

use procession::connection::{RecvError, SendError};
use procession::process::JoinError;
use procession::{Connection, Pipe, Process, StartMethod};
use serde::{Deserialize, Serialize};

use super::{Doing, Order, Outcome, Role, Station, begin};
use crate::account::tag;
use crate::parcel::{Parcel, Sizes, check, id, parts};

/// The parent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Pair {
    pub(crate) sizes: Sizes,
}

/// The child, with its end.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct End {
    sizes: Sizes,
    connection: Connection<Parcel, Parcel>,
}

impl Pair {
    pub(super) fn run(self, station: &mut Station) -> Outcome {
        let mut sequence = 0;
        while !station.is_over() {
            let (mine, theirs) = Pipe::duplex().map_err(|error| format!("making a pipe: {error}"))?;
            let daemon = station.random.bool();
            let (mine, child) = self.start(mine, theirs, daemon, station)?;
            self.talk(&mine, &mut sequence, station)?;
            // One that lives sees the end of the pipe, and ends.
            drop(mine);
            station.doing(Doing::Joining);
            match child.join() {
                Ok(outcome) => outcome?,
                Err(JoinError::Killed { signal: 9, .. } | JoinError::Unknown { .. }) => {}
                Err(error) => return Err(format!("the child: {error}")),
            }
            station.beat();
        }
        Ok(())
    }

    /// Starts the child. A forked one has a copy of its parent's end too, which it has to close, as with any pipe.
    fn start(
        &self,
        mine: Connection<Parcel, Parcel>,
        theirs: Connection<Parcel, Parcel>,
        daemon: bool,
        station: &mut Station,
    ) -> Result<(Connection<Parcel, Parcel>, Process<Outcome>), String> {
        let role = Role::End(End { sizes: self.sizes, connection: theirs });
        let method = StartMethod::ALL[station.random.usize(0..3)];
        if method != StartMethod::Fork {
            return Ok((mine, station.start(role, daemon, Some(method))?));
        }
        station.doing(Doing::Starting);
        let slot =
            station.board.take_slot(role.number(), Some(station.number), daemon).ok_or("no slot is left")?;
        let folder = station.board.folder().to_owned();
        let order = Order { folder, slot, seed: station.random.u64(..), fault: None, role };
        let (mine, order) = (Cell::new(Some(mine)), Cell::new(Some(order)));
        let child = Process::forking(|| {
            drop(mine.take());
            order.take().map_or(Ok(()), begin)
        });
        let child = child.daemon(daemon).start().map_err(|error| format!("forking a child: {error}"))?;
        station.beat();
        Ok((mine.take().ok_or("the end of the pipe is gone")?, child))
    }

    /// Sends messages and has them back, until the child is gone or it is time to let it go.
    fn talk(
        &self,
        connection: &Connection<Parcel, Parcel>,
        sequence: &mut u64,
        station: &mut Station,
    ) -> Outcome {
        let rounds = station.random.u32(1..2000);
        for _ in 0..rounds {
            if station.is_over() {
                return Ok(());
            }
            // Several on their way, so that a death finds some. Large ones one by one: else both sides may come to wait in
            // send, for the pipe holds no two of them.
            let burst = if self.sizes == Sizes::Small { station.random.u64(1..=4) } else { 1 };
            for _ in 0..burst {
                station.doing(Doing::Sending);
                let parcel = Parcel::new(id(station.number, *sequence), self.sizes);
                match connection.send(&parcel) {
                    Ok(()) => *sequence += 1,
                    Err(SendError::Closed) => return Ok(()),
                    Err(error) => return Err(format!("send: {error}")),
                }
                station.slot.put.store(*sequence << 16, Release);
            }
            for back in (0..burst).rev() {
                station.doing(Doing::Receiving);
                match connection.recv() {
                    Ok(parcel) => {
                        let (producer, number) = parts(check(&parcel.0, self.sizes)?);
                        if producer != station.number || number != *sequence - 1 - back {
                            return Err(format!("sent {}, had {number} back", *sequence - 1 - back));
                        }
                    }
                    Err(RecvError::Closed | RecvError::Truncated { .. }) => return Ok(()),
                    Err(error) => return Err(format!("recv: {error}")),
                }
            }
            station.beat();
        }
        Ok(())
    }
}

impl End {
    /// Sends back what it receives, until the pipe ends.
    pub(super) fn run(self, station: &mut Station) -> Outcome {
        loop {
            station.doing(Doing::Receiving);
            let parcel = match self.connection.recv() {
                Ok(parcel) => parcel,
                Err(RecvError::Closed) => return Ok(()),
                // Its sender was killed in the middle.
                Err(RecvError::Truncated { .. }) if self.parent_was_killed(station) => return Ok(()),
                Err(error) => return Err(format!("recv: {error}")),
            };
            station.beat();
            let id = check(&parcel.0, self.sizes)?;
            if !station.is_full() {
                station.log(tag::RECEIVED | id);
            }
            station.doing(Doing::Sending);
            match self.connection.send(&parcel) {
                Ok(()) => {}
                Err(SendError::Closed) => return Ok(()),
                Err(error) => return Err(format!("send: {error}")),
            }
            if station.random.u8(..) < 5 {
                station.pause(Duration::from_micros(500));
            }
        }
    }

    fn parent_was_killed(&self, station: &Station) -> bool {
        let parent = station.slot.parent.load(Acquire);
        parent != 0 && station.board.slot(parent - 1).killed.load(Acquire) != 0
    }
}
