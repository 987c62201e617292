//! A connection between two processes that carries messages with descriptors.

use std::fs::File;
use std::io::{self, IoSlice, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use rustix::fs::{FileType, MemfdFlags, fcntl_get_seals, fstat, memfd_create};
use rustix::io::{Errno, FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, sendmsg,
    socketpair, sockopt,
};

use procession_sys::clock::Deadline;
use procession_sys::credentials::{Credentials, effective_user, peer_credentials, receive_from};
use procession_sys::memory;
use procession_sys::process::{self, wait_ended, wait_readable};
use procession_sys::socket::unreceived;

/// The kernel's `SCM_MAX_FD`.
const DESCRIPTORS_A_PACKET: usize = 253;
/// A longer body goes in a memfd, so that sending never waits for the receiver to read.
const INLINE: usize = 32 << 10;
/// How long the rest of a message's descriptors may take that the sender said there are.
const PATIENCE: Duration = Duration::from_secs(30);
/// Body length (8 bytes), number of descriptors (4), whether the first of them is the body (4).
const HEADER: usize = 16;

/// What arrived: bytes and the descriptors that came with them.
#[derive(Debug)]
pub(super) struct Message {
    /// The bytes.
    pub(super) body: Vec<u8>,
    /// The descriptors, in the order in which they were sent.
    pub(super) descriptors: Vec<OwnedFd>,
    /// The process that sent it, and its user then, as the kernel has it. At the second end of a
    /// pair only.
    pub(super) sender: Option<Credentials>,
}

/// Which descriptor of a process an inherited end is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket {
    /// The descriptor's number.
    pub(super) number: i32,
    /// The socket's inode: a descriptor that has the number by chance is another one.
    pub(super) inode: u64,
}

/// What [`Channel::from_parent`] found.
#[derive(Debug)]
pub(super) enum FromParent {
    /// The end, and the parent.
    Channel(Channel, Credentials),
    /// An end that this user made, in a process that is not, or no longer, the parent of this one.
    Orphaned,
    /// No such end, or one that another user made.
    Foreign,
}

/// One end of the connection. It is closed by the last process that has it.
#[derive(Debug)]
pub(super) struct Channel(OwnedFd);

impl Channel {
    /// Makes two connected ends, closed on exec. Messages that the second end receives carry their
    /// sender's credentials. Neither end has the number of a standard stream, even where those are
    /// closed: what a program prints must not go there.
    ///
    /// # Errors
    /// Out of descriptors.
    pub(super) fn pair() -> io::Result<(Channel, Channel)> {
        let (one, other) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        sockopt::set_socket_passcred(&other, true)?;
        Ok((Channel(above_standard(one)?), Channel(above_standard(other)?)))
    }

    /// Names the end for [`Channel::from_parent`] in a process that inherits it under the same
    /// number.
    ///
    /// # Errors
    /// None that is known.
    pub(super) fn ticket(&self) -> io::Result<Ticket> {
        Ok(Ticket { number: self.0.as_raw_fd(), inode: fstat(&self.0)?.st_ino })
    }

    /// The end that the parent of this process made and left open for it; from now on closed on
    /// exec.
    ///
    /// # Safety
    /// Nothing else in this process owns a descriptor of the ticket's number if that is the socket
    /// of its inode.
    pub(super) unsafe fn from_parent(ticket: Ticket) -> FromParent {
        if ticket.number < 0 {
            return FromParent::Foreign;
        }
        // SAFETY: not -1; used for calls that fail when nothing is open under the number.
        let borrowed = unsafe { BorrowedFd::borrow_raw(ticket.number) };
        let is_it = fstat(borrowed).is_ok_and(|about| {
            FileType::from_raw_mode(about.st_mode) == FileType::Socket && about.st_ino == ticket.inode
        }) && sockopt::socket_domain(borrowed) == Ok(AddressFamily::UNIX)
            && sockopt::socket_type(borrowed) == Ok(SocketType::SEQPACKET);
        // The credentials of a pair are those of the process that made it, when it did.
        let Some(maker) =
            peer_credentials(borrowed).ok().filter(|maker| is_it && maker.uid == effective_user())
        else {
            return FromParent::Foreign;
        };
        if maker.pid != process::getppid() as i32 || fcntl_setfd(borrowed, FdFlags::CLOEXEC).is_err() {
            return FromParent::Orphaned;
        }
        // SAFETY: it is open, and left to this process for this call by the one that made it.
        FromParent::Channel(Channel(unsafe { OwnedFd::from_raw_fd(ticket.number) }), maker)
    }

    /// An end that arrived as a descriptor.
    pub(super) fn from_received(fd: OwnedFd) -> Channel {
        Channel(fd)
    }

    /// Sends a message of any size. A body over 32 KiB is copied to shared memory first, so the call waits for
    /// the receiver only when there are thousands of descriptors, and then not for one that has died, which
    /// `receiver`, a pidfd, tells.
    ///
    /// # Errors
    /// `BrokenPipe` when the other end is gone; out of memory or descriptors.
    pub(super) fn send(
        &self,
        body: &[u8],
        descriptors: &[BorrowedFd<'_>],
        receiver: Option<BorrowedFd<'_>>,
    ) -> io::Result<()> {
        let outside = if body.len() > INLINE { Some(self.body_file(body)?) } else { None };
        let mut all: Vec<BorrowedFd<'_>> = Vec::with_capacity(descriptors.len() + 1);
        all.extend(outside.as_ref().map(AsFd::as_fd));
        all.extend_from_slice(descriptors);
        let count = u32::try_from(all.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(&(body.len() as u64).to_le_bytes());
        header[8..12].copy_from_slice(&count.to_le_bytes());
        header[12] = outside.is_some().into();
        let inline = if outside.is_some() { &[] } else { body };
        let (first, mut rest) = all.split_at(all.len().min(DESCRIPTORS_A_PACKET));
        self.send_packet(&[IoSlice::new(&header), IoSlice::new(inline)], first, receiver)?;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(DESCRIPTORS_A_PACKET));
            self.send_packet(&[IoSlice::new(&[0])], now, receiver)?;
            rest = later;
        }
        Ok(())
    }

    fn body_file(&self, body: &[u8]) -> io::Result<OwnedFd> {
        memory::check_file_size(body.len() as u64)?;
        let mut file = File::from(memfd_create(c"procession-message", MemfdFlags::CLOEXEC)?);
        file.write_all(body)?;
        file.rewind()?;
        Ok(file.into())
    }

    fn send_packet(
        &self,
        parts: &[IoSlice<'_>],
        descriptors: &[BorrowedFd<'_>],
        receiver: Option<BorrowedFd<'_>>,
    ) -> io::Result<()> {
        /// How often in a row the kernel may call too many descriptors under way before that is an error.
        const TRIES: u32 = 500;
        let mut crowded = 0;
        loop {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_A_PACKET))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !descriptors.is_empty() {
                let fits = control.push(SendAncillaryMessage::ScmRights(descriptors));
                debug_assert!(fits, "the space is for as many as a packet takes");
            }
            match sendmsg(&self.0, parts, &mut control, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => {}
                Err(Errno::TOOMANYREFS) if crowded < TRIES => {
                    crowded += 1;
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(error) => return Err(error.into()),
            }
            if let Some(pidfd) = receiver
                && wait_ended(pidfd, Deadline::Now)?
            {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            let slice = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
            match poll(&mut [PollFd::new(&self.0, PollFlags::OUT)], Some(&slice)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Whether the other end has received all that was sent.
    ///
    /// # Errors
    /// What the kernel reported.
    pub(super) fn is_received(&self) -> io::Result<bool> {
        Ok(unreceived(&self.0)? == 0)
    }

    /// Waits for a message. `None` when the other end is gone, or `sender`, a pidfd, has ended without
    /// having sent one.
    ///
    /// # Errors
    /// `InvalidData` for what is no whole message, `EMFILE` when not all its descriptors could be taken.
    pub(super) fn receive(&self, sender: Option<BorrowedFd<'_>>) -> io::Result<Option<Message>> {
        let mut ended = false;
        loop {
            match self.try_receive()? {
                Received::Message(message) => return Ok(Some(message)),
                Received::End => return Ok(None),
                // Whatever it sent, it sent before it ended: one more look decides.
                Received::Nothing if ended => return Ok(None),
                Received::Nothing => match sender {
                    Some(sender) => {
                        ended = wait_readable(&[self.0.as_fd(), sender], Deadline::Never)? == Some(1);
                    }
                    None => {
                        wait_readable(&[self.0.as_fd()], Deadline::Never)?;
                    }
                },
            }
        }
    }

    /// Takes a message that has arrived, without waiting for one to begin.
    ///
    /// # Errors
    /// As [`Channel::receive`].
    pub(super) fn try_receive(&self) -> io::Result<Received> {
        let mut packet = vec![0; HEADER + INLINE];
        let mut descriptors = Vec::new();
        let Some((len, sender)) = self.receive_packet(&mut packet, &mut descriptors)? else {
            return Ok(Received::Nothing);
        };
        if len == 0 {
            return Ok(Received::End);
        }
        let broken = || io::Error::new(io::ErrorKind::InvalidData, "not a whole message");
        let (header, inline) = packet[..len].split_at_checked(HEADER).ok_or_else(broken)?;
        let body_len = u64::from_le_bytes(header[..8].try_into().map_err(|_| broken())?);
        let count = u32::from_le_bytes(header[8..12].try_into().map_err(|_| broken())?) as usize;
        let outside = header[12] != 0;
        // The sender sends them one after another, unless it dies or does not keep to the rules.
        let deadline = Deadline::after(PATIENCE);
        while descriptors.len() < count {
            let before = descriptors.len();
            match self.receive_packet(&mut [0], &mut descriptors)? {
                Some((1.., from)) if descriptors.len() > before && from == sender => {}
                Some(_) => return Err(broken()),
                None if wait_readable(&[self.0.as_fd()], deadline)?.is_none() => return Err(broken()),
                None => {}
            }
        }
        if descriptors.len() != count {
            return Err(broken());
        }
        let body_len = usize::try_from(body_len).map_err(|_| broken())?;
        let body = match outside {
            false => inline.to_vec(),
            true if descriptors.is_empty() => return Err(broken()),
            true => read_body(descriptors.remove(0), body_len)?,
        };
        if body.len() != body_len {
            return Err(broken());
        }
        Ok(Received::Message(Message { body, descriptors, sender }))
    }

    /// The packet's length, 0 at the end, and its sender; `None` when there is none yet.
    fn receive_packet(
        &self,
        bytes: &mut [u8],
        descriptors: &mut Vec<OwnedFd>,
    ) -> io::Result<Option<(usize, Option<Credentials>)>> {
        match receive_from(&self.0, bytes, descriptors) {
            Ok((received, _)) if received.descriptors_lost => Err(Errno::MFILE.into()),
            Ok((received, sender)) => Ok(Some((received.bytes, sender))),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            // Closed by a process that left something unread.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(Some((0, None))),
            Err(error) => Err(error),
        }
    }
}

/// Reads a body from the file that came with its length. The file is a memfd and has the memory for it: the length alone makes
/// this process take none, nor does a file that is slow, or endless, keep it.
fn read_body(file: OwnedFd, len: usize) -> io::Result<Vec<u8>> {
    let broken = || io::Error::new(io::ErrorKind::InvalidData, "not the body of a message");
    if fcntl_get_seals(&file).is_err() || memory::allocated(&file)? < len as u64 {
        return Err(broken());
    }
    let mut body = Vec::new();
    body.try_reserve_exact(len).map_err(|_| io::ErrorKind::OutOfMemory)?;
    File::from(file).take(len as u64 + 1).read_to_end(&mut body)?;
    Ok(body)
}

fn above_standard(fd: OwnedFd) -> io::Result<OwnedFd> {
    if fd.as_raw_fd() > 2 { Ok(fd) } else { Ok(fcntl_dupfd_cloexec(&fd, 3)?) }
}

/// What [`Channel::try_receive`] found.
#[derive(Debug)]
pub(super) enum Received {
    /// A message.
    Message(Message),
    /// Nothing yet.
    Nothing,
    /// The other end is gone and everything it sent has been taken.
    End,
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<Channel> for OwnedFd {
    fn from(channel: Channel) -> OwnedFd {
        channel.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_all_sizes_arrive_whole() {
        let (one, other) = Channel::pair().unwrap();
        for len in [0, 1, INLINE, INLINE + 1, 5 << 20] {
            let body: Vec<u8> = (0..len).map(|i| i as u8).collect();
            one.send(&body, &[], None).unwrap();
            let message = other.receive(None).unwrap().unwrap();
            assert!(message.body == body, "{len} bytes");
            assert!(message.descriptors.is_empty());
        }
        assert!(matches!(other.try_receive().unwrap(), Received::Nothing));
        drop(one);
        assert!(other.receive(None).unwrap().is_none());
    }

    #[test]
    fn more_descriptors_than_a_packet_holds() {
        let (one, other) = Channel::pair().unwrap();
        let files: Vec<_> = (0..300_u32)
            .map(|i| {
                let mut file = File::from(memfd_create(c"test", MemfdFlags::CLOEXEC).unwrap());
                file.write_all(&i.to_le_bytes()).unwrap();
                file.rewind().unwrap();
                file
            })
            .collect();
        let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        let body = vec![7; INLINE + 1];
        one.send(&body, &fds, None).unwrap();
        let message = other.receive(None).unwrap().unwrap();
        assert_eq!(message.body, body);
        assert_eq!(message.descriptors.len(), 300);
        for (i, fd) in message.descriptors.into_iter().enumerate() {
            let mut number = [0; 4];
            File::from(fd).read_exact(&mut number).unwrap();
            assert_eq!(u32::from_le_bytes(number), i as u32);
        }
    }

    #[test]
    fn a_gone_receiver_is_an_error() {
        let (one, other) = Channel::pair().unwrap();
        drop(other);
        // A child that another test is about to start has a copy until it executes its program.
        let error = loop {
            if let Err(error) = one.send(b"x", &[], None) {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
