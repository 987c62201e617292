//! Stream sockets: making, sending and receiving with descriptors, waiting for readiness.
//!
//! No call here raises SIGPIPE, and every descriptor is closed on `exec`.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll as poll_once};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{FlockOperation, Mode, OFlags, fcntl_setfl, flock, open};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown, SocketAddrAny, SocketAddrUnix, SocketFlags, SocketType,
    accept_with, bind, connect as connect_once, getpeername, getsockname, listen as start_listening, recvmsg,
    sendmsg, shutdown, socket_with, socketpair, sockopt,
};

use super::clock::Deadline;
pub use super::credentials::{Credentials, effective_user, peer_credentials};

/// How many descriptors one call may send: the kernel's `SCM_MAX_FD`.
pub const MAX_DESCRIPTORS: usize = 253;

/// Up to this many bytes, sent by one call over a local socket that is empty or not, are queued in one
/// step: the kernel makes one buffer of them. Two processes that send so never mix their bytes, and a
/// process killed in the call has sent all of them or none.
pub const ATOMIC: usize = 32 * 1024;

/// What a call does when it cannot go on at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocking {
    /// Sleep until it can.
    Wait,
    /// Return `WouldBlock`.
    Never,
}

/// Two sockets connected to each other.
///
/// # Errors
/// Out of descriptors or memory.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?)
}

/// Sends some of `parts`, at least a byte, and all of `descriptors` (at most [`MAX_DESCRIPTORS`]) with the
/// first byte. Returns how many bytes were sent.
///
/// # Errors
/// What the kernel reported; `BrokenPipe` or `ConnectionReset` when nobody can receive any more.
pub fn send(
    socket: impl AsFd,
    parts: &[IoSlice<'_>],
    descriptors: &[BorrowedFd<'_>],
    blocking: Blocking,
) -> io::Result<usize> {
    let socket = socket.as_fd();
    let space = if descriptors.is_empty() { 0 } else { SendAncillaryMessage::ScmRights(descriptors).size() };
    let mut space = vec![MaybeUninit::uninit(); space];
    let flags = match blocking {
        Blocking::Wait => SendFlags::NOSIGNAL,
        Blocking::Never => SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
    };
    loop {
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            let fits = control.push(SendAncillaryMessage::ScmRights(descriptors));
            debug_assert!(fits, "the buffer was made for this message");
        }
        match sendmsg(socket, parts, &mut control, flags) {
            Ok(sent) => return Ok(sent),
            Err(Errno::INTR) => {}
            // A descriptor from elsewhere may be in non-blocking mode.
            Err(Errno::AGAIN) if blocking == Blocking::Wait => {
                wait(socket, PollFlags::OUT, Deadline::Never)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// What one [`receive`] got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// How many bytes; 0 is the end of the stream (or an empty buffer).
    pub bytes: usize,
    /// Whether descriptors came that were not wanted or that this process had no room for. The kernel has
    /// closed them.
    pub descriptors_lost: bool,
}

/// Receives what there is, up to the size of `buffer`, without waiting for more. Descriptors that came
/// along are appended to `descriptors`, closed on `exec`; with `None` the kernel throws them away.
///
/// # Errors
/// `WouldBlock` when there is nothing yet and the call may not wait; else what the kernel reported.
pub fn receive(
    socket: impl AsFd,
    buffer: &mut [u8],
    mut descriptors: Option<&mut Vec<OwnedFd>>,
    blocking: Blocking,
) -> io::Result<Received> {
    let socket = socket.as_fd();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let space = if descriptors.is_some() { &mut space[..] } else { &mut [] };
    let flags = match blocking {
        Blocking::Wait => RecvFlags::CMSG_CLOEXEC,
        Blocking::Never => RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
    };
    loop {
        let mut control = RecvAncillaryBuffer::new(space);
        match recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, flags) {
            Ok(result) => {
                for message in control.drain() {
                    if let (RecvAncillaryMessage::ScmRights(fds), Some(descriptors)) =
                        (message, &mut descriptors)
                    {
                        descriptors.extend(fds);
                    }
                }
                return Ok(Received {
                    bytes: result.bytes,
                    descriptors_lost: result.flags.contains(ReturnFlags::CTRUNC),
                });
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) if blocking == Blocking::Wait => {
                wait(socket, PollFlags::IN, Deadline::Never)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// How many bytes the other end of a local socket has yet to receive of what was sent by this one,
/// as the kernel counts them: 0 if and only if it has received all.
///
/// # Errors
/// What the kernel reported.
pub fn unreceived(socket: impl AsFd) -> io::Result<u32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the kernel writes one integer, which outlives the call. (The request is `SIOCOUTQ` by
    // its other name.)
    let result = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(bytes.unsigned_abs())
}

/// Tells the other end that nothing more comes from this one, whoever else has it open.
///
/// # Errors
/// `NotConnected` when the other end is gone already.
pub fn shut_down_sending(socket: impl AsFd) -> io::Result<()> {
    Ok(shutdown(socket, Shutdown::Write)?)
}

/// Waits until at least one of `fds` is ready, or the deadline; returns how many are. Signals do not end it.
///
/// # Errors
/// `InvalidInput` when there are more of them than the process may have descriptors, or `OutOfMemory`.
pub fn poll(fds: &mut [PollFd<'_>], deadline: Deadline) -> io::Result<usize> {
    loop {
        let timeout = match deadline {
            Deadline::Never => None,
            _ => Some(timespec(deadline.slice(Duration::MAX).unwrap_or_default())),
        };
        match poll_once(fds, timeout.as_ref()) {
            Ok(0) if !deadline.passed() => {}
            Ok(ready) => return Ok(ready),
            Err(Errno::INTR) if !deadline.passed() => {}
            Err(Errno::INTR) => return Ok(0),
            Err(error) => return Err(error.into()),
        }
    }
}

/// A changing set of descriptors that can be waited for as one: its own descriptor is readable while one of
/// them is.
#[derive(Debug)]
pub struct Watch(OwnedFd);

impl Watch {
    /// An empty set.
    ///
    /// # Errors
    /// Out of descriptors or memory.
    pub fn new() -> io::Result<Self> {
        Ok(Watch(epoll::create(epoll::CreateFlags::CLOEXEC)?))
    }

    /// Adds a descriptor, until it is removed or closed by everyone who has it.
    ///
    /// # Errors
    /// Out of memory, or the descriptor is in the set or cannot be waited for.
    pub fn add(&self, fd: impl AsFd) -> io::Result<()> {
        Ok(epoll::add(&self.0, fd, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?)
    }

    /// Removes a descriptor.
    ///
    /// # Errors
    /// It is not in the set.
    pub fn remove(&self, fd: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.0, fd)?)
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Waits for one descriptor; whether it became ready (or failed, which the next call on it reports).
///
/// # Errors
/// As [`poll`].
pub fn wait(fd: impl AsFd, events: PollFlags, deadline: Deadline) -> io::Result<bool> {
    Ok(poll(&mut [PollFd::new(&fd, events)], deadline)? > 0)
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    }
}

/// Where a socket listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A socket file.
    Path(PathBuf),
    /// A name in the abstract namespace of local sockets: gone with its socket.
    Abstract(Vec<u8>),
    /// TCP.
    Inet(SocketAddr),
    /// A local socket that has no name: the connecting side.
    Unnamed,
}

impl Endpoint {
    fn unix(&self) -> io::Result<SocketAddrUnix> {
        Ok(match self {
            Endpoint::Path(path) => SocketAddrUnix::new(path)?,
            Endpoint::Abstract(name) => SocketAddrUnix::new_abstract_name(name)?,
            Endpoint::Inet(_) | Endpoint::Unnamed => SocketAddrUnix::new_unnamed(),
        })
    }

    fn read(address: SocketAddrAny) -> io::Result<Self> {
        if let Ok(inet) = SocketAddr::try_from(address.clone()) {
            return Ok(Endpoint::Inet(inet));
        }
        let unix = SocketAddrUnix::try_from(address)?;
        Ok(match (unix.path_bytes(), unix.abstract_name()) {
            (Some(path), _) => {
                use std::os::unix::ffi::OsStrExt;
                Endpoint::Path(Path::new(std::ffi::OsStr::from_bytes(path)).into())
            }
            (None, Some(name)) if !name.is_empty() => Endpoint::Abstract(name.to_vec()),
            (None, _) => Endpoint::Unnamed,
        })
    }
}

/// A socket that listens at `endpoint`, in non-blocking mode.
///
/// # Errors
/// What the kernel reported: `AddrInUse`, `InvalidFilename` for a path or name over 107 bytes, …
pub fn listen(endpoint: &Endpoint, backlog: u32) -> io::Result<OwnedFd> {
    let socket = new_socket(endpoint)?;
    match endpoint {
        Endpoint::Inet(address) => {
            // So that a port can be used again while old connections of it linger.
            sockopt::set_socket_reuseaddr(&socket, true)?;
            bind(&socket, address)?;
        }
        _ => bind(&socket, &endpoint.unix()?)?,
    }
    start_listening(&socket, i32::try_from(backlog).unwrap_or(i32::MAX))?;
    Ok(socket)
}

/// Whether some process has a socket bound to the socket file at `path`: if none has, its process is gone and
/// the file is left over. Unlike a connection attempt, asking leaves no trace at a listener.
///
/// # Errors
/// What the kernel reported: `NotFound`, `PermissionDenied`, …
pub fn is_bound(path: &Path) -> io::Result<bool> {
    let probe = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    match connect_once(&probe, &SocketAddrUnix::new(path)?) {
        // A stream socket is there, and so of another type than the probe.
        Ok(()) | Err(Errno::PROTOTYPE) => Ok(true),
        Err(Errno::CONNREFUSED) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Connects to what listens at `endpoint`; the socket is in blocking mode.
///
/// # Errors
/// `TimedOut` at the deadline; `ConnectionRefused` or `NotFound` when nobody listens there; else what the
/// kernel reported.
pub fn connect(endpoint: &Endpoint, deadline: Deadline) -> io::Result<OwnedFd> {
    let socket = new_socket(endpoint)?;
    loop {
        let result = match endpoint {
            Endpoint::Inet(address) => connect_once(&socket, address),
            _ => connect_once(&socket, &endpoint.unix()?),
        };
        match result {
            Ok(()) | Err(Errno::ISCONN) => break,
            Err(Errno::INTR) => {}
            Err(Errno::INPROGRESS | Errno::ALREADY) => {
                if !wait(&socket, PollFlags::OUT, deadline)? {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                sockopt::socket_error(&socket)??;
                break;
            }
            // The queue of a local listener is full, and nothing tells when it no longer is.
            Err(Errno::AGAIN) => match deadline.slice(Duration::from_millis(5)) {
                Some(pause) => std::thread::sleep(pause),
                None => return Err(io::ErrorKind::TimedOut.into()),
            },
            Err(error) => return Err(error.into()),
        }
    }
    fcntl_setfl(&socket, OFlags::empty())?;
    tune(&socket, endpoint)?;
    Ok(socket)
}

fn new_socket(endpoint: &Endpoint) -> io::Result<OwnedFd> {
    let family = match endpoint {
        Endpoint::Inet(SocketAddr::V4(_)) => AddressFamily::INET,
        Endpoint::Inet(SocketAddr::V6(_)) => AddressFamily::INET6,
        Endpoint::Path(_) | Endpoint::Abstract(_) | Endpoint::Unnamed => AddressFamily::UNIX,
    };
    Ok(socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?)
}

/// TCP: messages are whole, so nothing is gained by holding one back; a machine that vanishes is noticed.
fn tune(socket: &OwnedFd, endpoint: &Endpoint) -> io::Result<()> {
    if matches!(endpoint, Endpoint::Inet(_)) {
        sockopt::set_tcp_nodelay(socket, true)?;
        sockopt::set_socket_keepalive(socket, true)?;
    }
    Ok(())
}

/// The next connection to a listening socket, in blocking mode; `None` when none waits or the next one has
/// already failed.
///
/// # Errors
/// Out of descriptors or memory: the connection still waits.
pub fn accept(listener: impl AsFd) -> io::Result<Option<(OwnedFd, Endpoint)>> {
    let socket = match retry_on_intr(|| accept_with(&listener, SocketFlags::CLOEXEC)) {
        Ok(socket) => socket,
        Err(
            error @ (Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM | Errno::INVAL | Errno::BADF),
        ) => {
            return Err(error.into());
        }
        // Nothing there, or an error of that one connection, which Linux reports here.
        Err(_) => return Ok(None),
    };
    let peer = match getpeername(&socket) {
        Ok(address) => address.map_or(Ok(Endpoint::Unnamed), Endpoint::read)?,
        // Gone again.
        Err(_) => return Ok(None),
    };
    tune(&socket, &peer)?;
    Ok(Some((socket, peer)))
}

/// Where the socket is bound: a TCP port that the kernel chose, say.
///
/// # Errors
/// What the kernel reported.
pub fn local_endpoint(socket: impl AsFd) -> io::Result<Endpoint> {
    Endpoint::read(getsockname(socket)?)
}

/// What kind of stream socket a descriptor is: `Some(true)` a local one, which can carry descriptors,
/// `Some(false)` another one, `None` no stream socket.
///
/// # Errors
/// What the kernel reported.
pub fn stream_is_local(fd: impl AsFd) -> io::Result<Option<bool>> {
    match sockopt::socket_type(&fd) {
        Ok(SocketType::STREAM) => Ok(Some(sockopt::socket_domain(fd)? == AddressFamily::UNIX)),
        Ok(_) | Err(Errno::NOTSOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Locks a directory against others that call this; the kernel ends the lock with the returned descriptor
/// or its process.
///
/// # Errors
/// `TimedOut` at the deadline, or what opening the directory reported.
pub fn lock_directory(path: &Path, deadline: Deadline) -> io::Result<OwnedFd> {
    let directory = open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    loop {
        match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(directory),
            Err(Errno::INTR) => {}
            Err(Errno::WOULDBLOCK) => match deadline.slice(Duration::from_millis(5)) {
                Some(pause) => std::thread::sleep(pause),
                None => return Err(io::ErrorKind::TimedOut.into()),
            },
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_come_with_the_first_byte() {
        let (a, b) = pair().unwrap();
        let (c, d) = pair().unwrap();
        let sent = send(&a, &[IoSlice::new(b"xyz")], &[c.as_fd()], Blocking::Wait).unwrap();
        assert_eq!(sent, 3);
        let mut first = [0];
        let mut fds = Vec::new();
        let got = receive(&b, &mut first, Some(&mut fds), Blocking::Wait).unwrap();
        assert_eq!(got, Received { bytes: 1, descriptors_lost: false });
        assert_eq!(fds.len(), 1);
        send(&fds[0], &[IoSlice::new(b"!")], &[], Blocking::Wait).unwrap();
        assert_eq!(receive(&d, &mut first, None, Blocking::Wait).unwrap().bytes, 1);
        assert_eq!(&first, b"!");
    }

    #[test]
    fn a_closed_peer_is_an_error_and_no_signal() {
        let (a, b) = pair().unwrap();
        drop(b);
        let error = send(&a, &[IoSlice::new(b"x")], &[], Blocking::Wait).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(receive(&a, &mut [0], None, Blocking::Wait).unwrap().bytes, 0);
    }

    #[test]
    fn nothing_there_is_would_block_and_no_readiness() {
        let (a, _b) = pair().unwrap();
        let error = receive(&a, &mut [0], None, Blocking::Never).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert!(!wait(&a, PollFlags::IN, Deadline::Now).unwrap());
        assert!(!wait(&a, PollFlags::IN, Deadline::after(Duration::from_millis(5))).unwrap());
    }

    #[test]
    fn an_abstract_listener_is_found_and_knows_its_peer() {
        let endpoint = Endpoint::Abstract(format!("procession-test-{}", std::process::id()).into_bytes());
        let listener = listen(&endpoint, 1).unwrap();
        assert_eq!(local_endpoint(&listener).unwrap(), endpoint);
        assert!(accept(&listener).unwrap().is_none());
        let client = connect(&endpoint, Deadline::Never).unwrap();
        let (server, peer) = accept(&listener).unwrap().unwrap();
        assert_eq!(peer, Endpoint::Unnamed);
        for socket in [&client, &server] {
            let found = peer_credentials(socket).unwrap();
            assert_eq!((found.pid as u32, found.uid), (std::process::id(), effective_user()));
        }
        drop(listener);
        let error = connect(&endpoint, Deadline::Never).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn a_full_queue_of_connections_times_out() {
        let endpoint = Endpoint::Abstract(format!("procession-full-{}", std::process::id()).into_bytes());
        let _listener = listen(&endpoint, 0).unwrap();
        let soon = || Deadline::after(Duration::from_millis(20));
        let connected: Vec<_> = (0..8).map_while(|_| connect(&endpoint, soon()).ok()).collect();
        assert!(connected.len() < 8);
        assert_eq!(connect(&endpoint, soon()).unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
