//! What a new process says to its starter over the control connection, and how both write.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use procession_sys::process::ExitStatus;

use super::control_channel::{Channel, Message};
use procession_core::shm::transfer;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codec::append;
use crate::handle::with_reason;

/// What a new process, or its fork server, says. The first byte of a message is the number in its comment.
pub(crate) enum Report {
    /// 0: the serialised result, and its descriptors.
    Returned { result: Vec<u8>, descriptors: Vec<OwnedFd> },
    /// 1: the function panicked.
    Panicked { message: String, location: Option<String> },
    /// 2: the arguments cannot be read.
    Arguments(String),
    /// 3: the result cannot be serialised.
    Result(String),
    /// 4: the process cannot begin.
    Begin(String),
    /// 5: how the process ended, from the fork server that collected it.
    Status(ExitStatus),
    /// 6: the process that detached itself: its pid, and a pidfd.
    Detached { pid: u32, pidfd: OwnedFd },
}

impl Report {
    /// Serialises a function's result.
    pub(super) fn returned<R: Serialize>(result: &R) -> Report {
        let mut bytes = vec![0];
        let (written, descriptors) = transfer::collect(|| with_reason(|| append(result, &mut bytes)));
        match written {
            Ok(()) => Report::Returned { result: bytes, descriptors },
            Err(error) => Report::Result(error),
        }
    }

    /// Sends it.
    pub(super) fn send(&self, channel: &Channel) -> std::io::Result<()> {
        let text = |number: u8, text: &String| [&[number], text.as_bytes()].concat();
        match self {
            Report::Returned { result, descriptors } => {
                let fds: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
                channel.send(result, &fds, None)
            }
            Report::Panicked { message, location } => {
                let mut bytes = vec![1];
                bytes.extend(encode(&(message, location))?);
                channel.send(&bytes, &[], None)
            }
            Report::Arguments(message) => channel.send(&text(2, message), &[], None),
            Report::Result(message) => channel.send(&text(3, message), &[], None),
            Report::Begin(message) => channel.send(&text(4, message), &[], None),
            Report::Status(status) => {
                let (kind, number) = match status {
                    ExitStatus::Exited(code) => (0, *code),
                    ExitStatus::Signaled { signal, core_dumped: false } => (1, *signal),
                    ExitStatus::Signaled { signal, .. } => (2, *signal),
                    _ => (3, 0),
                };
                let mut bytes = vec![5, kind];
                bytes.extend(number.to_le_bytes());
                channel.send(&bytes, &[], None)
            }
            Report::Detached { pid, pidfd } => {
                let mut bytes = vec![6];
                bytes.extend(pid.to_le_bytes());
                channel.send(&bytes, &[pidfd.as_fd()], None)
            }
        }
    }

    /// Reads one back; `None` for what is none.
    pub(super) fn read(message: Message) -> Option<Report> {
        let Message { mut body, mut descriptors, .. } = message;
        let (&number, rest) = body.split_first()?;
        let text = || String::from_utf8_lossy(rest).into_owned();
        match number {
            0 => {
                body.remove(0);
                Some(Report::Returned { result: body, descriptors })
            }
            1 => {
                let (message, location) = postcard::from_bytes(rest).ok()?;
                Some(Report::Panicked { message, location })
            }
            2 => Some(Report::Arguments(text())),
            3 => Some(Report::Result(text())),
            4 => Some(Report::Begin(text())),
            5 => {
                let (&kind, number) = rest.split_first()?;
                let number = i32::from_le_bytes(number.try_into().ok()?);
                Some(Report::Status(match kind {
                    0 => ExitStatus::Exited(number),
                    1 | 2 => ExitStatus::Signaled { signal: number, core_dumped: kind == 2 },
                    _ => ExitStatus::Unknown,
                }))
            }
            6 => {
                let pid = u32::from_le_bytes(rest.try_into().ok()?);
                Some(Report::Detached { pid, pidfd: descriptors.pop()? })
            }
            _ => None,
        }
    }
}

/// Serialises one of this module's own types.
pub(super) fn encode<T: Serialize>(value: &T) -> std::io::Result<Vec<u8>> {
    postcard::to_stdvec(value).map_err(std::io::Error::other)
}

/// Reads one of this module's own types from the front of the bytes; also returns what follows it.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> std::io::Result<(T, &[u8])> {
    // Owned: what is read never borrows from the bytes.
    let (value, rest) = postcard::take_from_bytes(bytes)
        .map_err(|error| std::io::Error::new(std::io::ErrorKind::InvalidData, error))?;
    Ok((value, rest))
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::hostile::target;

    /// Numbers as postcard writes them, large ones among them, and bytes.
    pub(in super::super) fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let part = prop_oneof![
            any::<u64>().prop_map(|n| postcard::to_stdvec(&n).unwrap_or_default()),
            (0..64u32).prop_map(|bits| postcard::to_stdvec(&(1u64 << bits)).unwrap_or_default()),
            (0..8u8).prop_map(|number| vec![number]),
            vec(any::<u8>(), 0..40),
        ];
        vec(part, 0..8).prop_map(|parts| parts.concat())
    }

    #[test]
    fn reports_of_any_bytes() {
        target((0..9u8, bytes(), any::<bool>()), |(number, bytes, with_descriptor)| {
            let null = std::fs::File::open("/dev/null").expect("/dev/null");
            let descriptors = if with_descriptor { vec![null.into()] } else { Vec::new() };
            let _ =
                Report::read(Message { body: [&[number], &bytes[..]].concat(), descriptors, sender: None });
        });
        assert!(Report::read(Message { body: Vec::new(), descriptors: Vec::new(), sender: None }).is_none());
    }
}
