//! Messages over a stream socket, framed as CPython's `multiprocessing.connection` does.
//!
//! A message is its length as four bytes, big-endian and signed, then its bytes. A length over 2^31 - 1 is
//! written as -1 and eight more bytes. Descriptors travel with the message's first bytes.

use std::io::{self, IoSlice};
use std::sync::{Mutex, MutexGuard, PoisonError};

use procession_sys::clock::Deadline;
use procession_sys::socket::{self, Blocking, MAX_DESCRIPTORS};
use rustix::event::PollFlags;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};

use super::error::{RecvError, SendError};

/// The first size of a receive buffer, which doubles with what has come: a length is only a claim.
const FIRST_BUFFER: usize = 64 * 1024;
/// How much of a skipped message is read at a time.
const SKIP_BUFFER: usize = 16 * 1024;
/// What announces a length of eight bytes.
const LONG: [u8; 4] = (-1_i32).to_be_bytes();

/// A stream socket with this process's state of its two directions.
pub(super) struct Channel {
    socket: OwnedFd,
    /// Whether it is a local socket.
    carries_descriptors: bool,
    /// Whether a message was cut short. Held while a message is sent.
    cut_short: Mutex<bool>,
    /// Never held while waiting.
    incoming: Mutex<Incoming>,
}

/// A whole message.
pub(super) struct Message {
    pub(super) bytes: Vec<u8>,
    pub(super) descriptors: Vec<OwnedFd>,
    pub(super) descriptors_lost: bool,
}

/// What of the next message has come.
#[derive(Default)]
pub(super) struct Incoming {
    header: [u8; 12],
    /// How many bytes of the header have come.
    header_len: usize,
    body: Option<Body>,
    descriptors: Vec<OwnedFd>,
    descriptors_lost: bool,
    not_a_message: Option<i32>,
}

struct Body {
    length: u64,
    received: u64,
    /// Holds at least what was received, unless the message is skipped.
    bytes: Vec<u8>,
    skip: bool,
}

impl Channel {
    /// # Errors
    /// `InvalidInput` for what is no stream socket.
    pub(super) fn new(socket: OwnedFd) -> io::Result<Self> {
        let Some(carries_descriptors) = socket::stream_is_local(&socket)? else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a stream socket"));
        };
        Ok(Channel { socket, carries_descriptors, cut_short: Mutex::new(false), incoming: Mutex::default() })
    }

    pub(super) fn into_socket(self) -> OwnedFd {
        self.socket
    }

    pub(super) fn carries_descriptors(&self) -> bool {
        self.carries_descriptors
    }

    /// Whether part of a message has come, which another process would miss.
    pub(super) fn is_amid_message(&self) -> bool {
        let incoming = self.lock_incoming();
        incoming.header_len > 0
    }

    fn lock_incoming(&self) -> MutexGuard<'_, Incoming> {
        self.incoming.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a message: one call to the system unless it is large. Blocks while the receiver has no room.
    pub(super) fn send(&self, bytes: &[u8], descriptors: &[OwnedFd]) -> Result<(), SendError> {
        let mut header = [0; 12];
        let header: &[u8] = match i32::try_from(bytes.len()) {
            Ok(length) => {
                header[..4].copy_from_slice(&length.to_be_bytes());
                &header[..4]
            }
            Err(_) => {
                header[..4].copy_from_slice(&LONG);
                header[4..].copy_from_slice(&(bytes.len() as u64).to_be_bytes());
                &header
            }
        };
        let descriptors: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
        let mut chunks = descriptors.chunks(MAX_DESCRIPTORS).peekable();
        let total = header.len() + bytes.len();

        let mut cut_short = self.cut_short.lock().unwrap_or_else(PoisonError::into_inner);
        if *cut_short {
            return Err(SendError::CutShort);
        }
        let mut sent = 0;
        while sent < total {
            let chunk = chunks.next().unwrap_or_default();
            let rest = [&header[sent.min(header.len())..], &bytes[sent.saturating_sub(header.len())..]];
            // A call carries one chunk: all but the last ride on a byte each. A handle has more bytes than
            // descriptors, so the bytes suffice.
            let one = [IoSlice::new(&rest[usize::from(rest[0].is_empty())][..1])];
            let all = rest.map(IoSlice::new);
            let parts = if chunks.peek().is_some() { &one[..] } else { &all[..] };
            match socket::send(&self.socket, parts, chunk, Blocking::Wait) {
                Ok(count) => sent += count,
                Err(error) => {
                    if sent > 0 {
                        *cut_short = true;
                        // Without it the receiver would wait for the rest as long as this end is open. It
                        // fails only when the receiver is gone.
                        let _gone = socket::shut_down_sending(&self.socket);
                    }
                    return Err(if is_closed(&error) {
                        SendError::Closed
                    } else {
                        SendError::System { length: bytes.len(), cause: error }
                    });
                }
            }
        }
        Ok(())
    }

    /// Receives the next message, of at most `max` bytes.
    pub(super) fn receive(&self, max: Option<usize>, deadline: Deadline) -> Result<Message, RecvError> {
        loop {
            if let Some(message) =
                self.lock_incoming().advance(&self.socket, max, self.carries_descriptors)?
            {
                return Ok(message);
            }
            if !socket::wait(&self.socket, PollFlags::IN, deadline).map_err(RecvError::System)? {
                return Err(RecvError::Timeout);
            }
        }
    }

    /// Whether there is something to receive: the beginning of a message, more of one, or the end.
    pub(super) fn poll(&self, deadline: Deadline) -> Result<bool, RecvError> {
        loop {
            // What is left of a skipped message is nothing to receive.
            let skipping = self.lock_incoming().skip(&self.socket)?;
            if !socket::wait(&self.socket, PollFlags::IN, deadline).map_err(RecvError::System)? {
                return Ok(false);
            }
            if !skipping {
                return Ok(true);
            }
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Incoming {
    /// Reads what there is, never beyond the message. `None` when it has not come whole.
    pub(super) fn advance(
        &mut self,
        socket: &OwnedFd,
        max: Option<usize>,
        take_descriptors: bool,
    ) -> Result<Option<Message>, RecvError> {
        loop {
            if self.skip(socket)? {
                return Ok(None);
            }
            let Some(body) = &mut self.body else {
                if self.read_header(socket, take_descriptors)? {
                    continue;
                }
                return Ok(None);
            };
            if let Some(max) = max.filter(|&max| body.length > max as u64) {
                let length = body.length;
                self.begin_skip();
                return Err(RecvError::TooLong { length, max });
            }
            if body.received == body.length {
                return Ok(Some(self.take()));
            }
            let filled = body.received as usize;
            if body.bytes.len() == filled {
                let more = (body.length - body.received).min(filled.max(FIRST_BUFFER) as u64) as usize;
                if body.bytes.try_reserve_exact(more).is_err() {
                    let length = body.length;
                    self.begin_skip();
                    return Err(RecvError::OutOfMemory { length });
                }
                body.bytes.resize(filled + more, 0);
            }
            let descriptors = take_descriptors.then_some(&mut self.descriptors);
            match read(socket, &mut body.bytes[filled..], descriptors, &mut self.descriptors_lost)? {
                None => return Ok(None),
                Some(0) => return Err(self.end()),
                Some(count) => body.received += count as u64,
            }
        }
    }

    /// Reads on in the header; whether something came. Makes the body once the header is whole.
    fn read_header(&mut self, socket: &OwnedFd, take_descriptors: bool) -> Result<bool, RecvError> {
        if let Some(length) = self.not_a_message {
            return Err(RecvError::NotAMessage { length });
        }
        let is_long = self.header_len >= 4 && self.header[..4] == LONG;
        let wanted = &mut self.header[self.header_len..if is_long { 12 } else { 4 }];
        let descriptors = take_descriptors.then_some(&mut self.descriptors);
        match read(socket, wanted, descriptors, &mut self.descriptors_lost)? {
            None => return Ok(false),
            Some(0) => return Err(self.end()),
            Some(count) => self.header_len += count,
        }
        let [a, b, c, d, long @ ..] = self.header;
        let length = match (self.header_len, i32::from_be_bytes([a, b, c, d])) {
            (12, _) => u64::from_be_bytes(long),
            (4, length @ 0..) => length as u64,
            (4, length) if length != -1 => {
                self.not_a_message = Some(length);
                self.descriptors.clear();
                return Err(RecvError::NotAMessage { length });
            }
            _ => return Ok(true),
        };
        self.body = Some(Body { length, received: 0, bytes: Vec::new(), skip: false });
        Ok(true)
    }

    fn take(&mut self) -> Message {
        let done = std::mem::take(self);
        Message {
            bytes: done.body.map(|body| body.bytes).unwrap_or_default(),
            descriptors: done.descriptors,
            descriptors_lost: done.descriptors_lost,
        }
    }

    fn begin_skip(&mut self) {
        self.descriptors.clear();
        if let Some(body) = &mut self.body {
            body.bytes = Vec::new();
            body.skip = true;
        }
    }

    /// Reads what there is of a message to be skipped; whether some of it is still to come.
    fn skip(&mut self, socket: &OwnedFd) -> Result<bool, RecvError> {
        while let Some(body) = self.body.as_mut().filter(|body| body.skip) {
            if body.received == body.length {
                *self = Incoming::default();
                break;
            }
            let mut scratch = [0; SKIP_BUFFER];
            let wanted = (body.length - body.received).min(SKIP_BUFFER as u64) as usize;
            match read(socket, &mut scratch[..wanted], None, &mut self.descriptors_lost)? {
                None => return Ok(true),
                // That this message was cut short is no news to whom it was refused.
                Some(0) => {
                    *self = Incoming::default();
                    return Err(RecvError::Closed);
                }
                Some(count) => body.received += count as u64,
            }
        }
        Ok(false)
    }

    /// The stream has ended: between two messages or within one.
    fn end(&mut self) -> RecvError {
        let ended = std::mem::take(self);
        match ended.body {
            None if ended.header_len == 0 => RecvError::Closed,
            None => RecvError::Truncated { received: 0, expected: None },
            Some(body) => RecvError::Truncated { received: body.received, expected: Some(body.length) },
        }
    }
}

/// Reads what there is: `None` nothing yet, 0 the end.
fn read(
    socket: &OwnedFd,
    buffer: &mut [u8],
    descriptors: Option<&mut Vec<OwnedFd>>,
    lost: &mut bool,
) -> Result<Option<usize>, RecvError> {
    match socket::receive(socket, buffer, descriptors, Blocking::Never) {
        Ok(received) => {
            *lost |= received.descriptors_lost;
            Ok(Some(received.bytes))
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        // The other end was closed with messages of ours unread.
        Err(error) if is_closed(&error) => Ok(Some(0)),
        Err(error) => Err(RecvError::System(error)),
    }
}

/// Whether the error says that the other end is closed.
pub(super) fn is_closed(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected};
    matches!(error.kind(), BrokenPipe | ConnectionReset | NotConnected)
}
