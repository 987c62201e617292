//! Accepting connections.

use std::io;
use std::time::{Duration, Instant};

use procession_core::shm::ObjectId;
use procession_sys::clock::Deadline;
use procession_sys::identity::Identity;
use procession_sys::socket::{self, Endpoint, Watch};
use rustix::event::{PollFd, PollFlags};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::process::{Resource, getrlimit};

use super::HANDSHAKE_TIMEOUT;
use super::address::Address;
use super::auth::{AuthKey, Handshake, Role};
use super::error::{AcceptError, AuthenticationError, ListenError};
use super::pipe::Connection;
use super::socket_file::SocketFile;

/// How many peers may be in their handshakes at once unless told otherwise.
const MAX_PENDING: usize = 64;
/// How long who connects may have to wait because those before say nothing: a full backlog of them is gone through in this time.
const PASSAGE: Duration = Duration::from_millis(300);
/// How long a peer is not dropped for others, at least. Many that come at once, on a busy machine, need some time.
const UNDISTURBED: Duration = Duration::from_millis(50);
/// The part of the descriptors that a process may have that peers in their handshakes get.
const PART_OF_DESCRIPTORS: u64 = 4;
/// How often a listener without room looks whether there is some.
const NO_ROOM: Duration = Duration::from_millis(5);

/// Accepts connections from a [`Client`](super::Client), or from CPython's
/// `multiprocessing.connection.Client`.
///
/// With a key, each peer has to show that it has it and is shown that the listener has. [`Listener::accept`]
/// returns only those that did; the others are dropped, counted by [`Listener::refused`], logged as a warning,
/// and do not disturb: handshakes of several peers go on side by side, and each has a limit in time. When more come than
/// there is room or descriptors for, the oldest that has not shown that it has the key is dropped, though not within its first
/// 50 ms.
///
/// Without a key, whoever can reach the address is accepted; at an abstract one, which has no permissions,
/// only processes of the same user are.
///
/// A forked child may accept from an inherited listener too. A socket file is removed when the process that
/// bound it drops the listener; if that process is killed, the next listener at the path replaces the file.
#[derive(Debug)]
pub struct Listener {
    // Before the socket: while that is open, nobody takes the file for a dead listener's.
    _file: Option<SocketFile>,
    socket: OwnedFd,
    address: Address,
    authkey: Option<AuthKey>,
    backlog: u32,
    handshake_timeout: Duration,
    max_pending: usize,
    state: State,
    last_accepted: Option<Peer>,
    refused: u64,
}

/// What belongs to one process: a forked child makes its own.
#[derive(Debug)]
struct State {
    owner: Identity,
    /// The socket and the pending peers.
    watch: Watch,
    pending: Vec<Pending>,
    /// Whether those who wait to be accepted have to wait for those in their handshakes.
    full: bool,
}

/// A peer in its handshake.
struct Pending {
    socket: OwnedFd,
    handshake: Handshake,
    peer: Peer,
    /// What is left of its time, which runs while somebody accepts.
    left: Duration,
    since: Instant,
}

/// Who connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Peer {
    /// A process of this machine, as the kernel says.
    Local {
        /// The process that connected; 0 for one of another pid namespace.
        pid: u32,
        /// Its effective user.
        uid: u32,
    },
    /// An address.
    Tcp(std::net::SocketAddr),
}

/// Sets a [`Listener`] up.
#[derive(Clone, Debug)]
#[must_use = "nothing listens before `bind`"]
pub struct ListenerBuilder {
    address: Option<Address>,
    authkey: Option<AuthKey>,
    backlog: u32,
    handshake_timeout: Duration,
    max_pending: usize,
}

impl ListenerBuilder {
    /// Where to listen. Without it an abstract address is chosen that nobody else has: see
    /// [`Listener::address`].
    pub fn address(mut self, address: Address) -> Self {
        self.address = Some(address);
        self
    }

    /// The key that peers must have.
    pub fn authkey(mut self, key: impl Into<AuthKey>) -> Self {
        self.authkey = Some(key.into());
        self
    }

    /// How many connections the system keeps waiting while nobody accepts, beyond which local clients wait to
    /// connect; 128 by default, limited by the system (`net.core.somaxconn`).
    pub fn backlog(mut self, connections: u32) -> Self {
        self.backlog = connections;
        self
    }

    /// How long a peer may take to authenticate, 20 s by default; only time within `accept` counts.
    pub fn handshake_timeout(mut self, timeout: Duration) -> Self {
        self.handshake_timeout = timeout;
        self
    }

    /// How many peers may be in their handshakes at once.
    pub(crate) fn max_pending(mut self, peers: usize) -> Self {
        self.max_pending = peers;
        self
    }

    /// Listens.
    ///
    /// # Errors
    /// [`ListenError::InUse`] when somebody listens there, [`ListenError::NotASocket`] when the path is
    /// something else's; a socket file that a dead listener left is replaced.
    pub fn bind(self) -> Result<Listener, ListenError> {
        if self.authkey.as_ref().is_some_and(AuthKey::is_empty) {
            return Err(ListenError::EmptyKey);
        }
        let address = self.address.unwrap_or_else(|| {
            let name = u128::from_be_bytes(ObjectId::random().to_bytes());
            Address::Abstract(format!("procession-listener-{name:032x}").into_bytes())
        });
        let (socket, file) = listen(&address, self.backlog)?;
        let system = |action| {
            let address = address.clone();
            move |cause| ListenError::System { address, action, cause }
        };
        let bound = match socket::local_endpoint(&socket).map_err(system("asking for the port"))? {
            Endpoint::Inet(bound) => bound.into(),
            _ => address.clone(),
        };
        let state = State::new(&socket).map_err(system("making an epoll set"))?;
        Ok(Listener {
            _file: file,
            socket,
            address: bound,
            authkey: self.authkey,
            backlog: self.backlog,
            handshake_timeout: self.handshake_timeout,
            max_pending: self.max_pending,
            state,
            last_accepted: None,
            refused: 0,
        })
    }
}

/// Listens at the first of the address's endpoints that can be had.
fn listen(address: &Address, backlog: u32) -> Result<(OwnedFd, Option<SocketFile>), ListenError> {
    let refused = |cause: io::Error| match cause.kind() {
        io::ErrorKind::AddrInUse => ListenError::InUse(address.clone()),
        io::ErrorKind::InvalidFilename => ListenError::PathTooLong(address.clone()),
        _ => ListenError::System { address: address.clone(), action: "binding a socket", cause },
    };
    if let Address::Unix(path) = address {
        return SocketFile::listen(path, address, backlog).map(|(socket, file)| (socket, Some(file)));
    }
    let endpoints = address.resolve().map_err(|cause| ListenError::System {
        address: address.clone(),
        action: "looking the host up",
        cause,
    })?;
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for endpoint in endpoints {
        match socket::listen(&endpoint, backlog) {
            Ok(socket) => return Ok((socket, None)),
            Err(error) => failed = error,
        }
    }
    Err(refused(failed))
}

impl Listener {
    /// Listens at `address` without a key, with the defaults of [`Listener::builder`].
    ///
    /// # Errors
    /// As [`ListenerBuilder::bind`].
    pub fn bind(address: Address) -> Result<Self, ListenError> {
        Self::builder().address(address).bind()
    }

    /// A listener to be set up.
    pub fn builder() -> ListenerBuilder {
        ListenerBuilder {
            address: None,
            authkey: None,
            backlog: 128,
            handshake_timeout: HANDSHAKE_TIMEOUT,
            max_pending: MAX_PENDING,
        }
    }

    /// Accepts the next connection, once it has authenticated. Blocks until there is one.
    ///
    /// Peers that fail to authenticate do not end the call: see [`Listener::refused`].
    ///
    /// # Errors
    /// [`AcceptError::System`] when the system refuses, out of descriptors, say, and there is no peer in its handshake whose
    /// descriptor could be had back; who connects then still waits.
    pub fn accept<S, R>(&mut self) -> Result<Connection<S, R>, AcceptError> {
        self.accept_until(Deadline::Never)
    }

    /// As [`Listener::accept`], for at most `timeout`. Handshakes that are not finished go on in the next call.
    ///
    /// # Errors
    /// Also [`AcceptError::Timeout`].
    pub fn accept_timeout<S, R>(&mut self, timeout: Duration) -> Result<Connection<S, R>, AcceptError> {
        self.accept_until(Deadline::after(timeout))
    }

    /// Where the listener is: the address given, with the port that the system chose, or a chosen one.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Who made the connection that was accepted last.
    pub fn last_accepted(&self) -> Option<Peer> {
        self.last_accepted
    }

    /// How many peers were turned away since the listener was bound: with a wrong key, with none, too slow, of
    /// another user. The log has a warning for each with its reason.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    fn accept_until<S, R>(&mut self, deadline: Deadline) -> Result<Connection<S, R>, AcceptError> {
        self.accept_unless(None, deadline)?.ok_or(AcceptError::Timeout)
    }

    /// The socket that listens.
    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// As [`Listener::accept`]; `None` as soon as `other` is readable, or at the deadline.
    pub(crate) fn accept_unless<S, R>(
        &mut self,
        other: Option<BorrowedFd<'_>>,
        deadline: Deadline,
    ) -> Result<Option<Connection<S, R>>, AcceptError> {
        if self.state.owner != Identity::current() {
            // The parent goes on with its peers.
            self.state = State::new(&self.socket).map_err(AcceptError::System)?;
        }
        loop {
            let ready = match self.go_on() {
                Some(ready) => Some(ready),
                None => self.admit().map_err(AcceptError::System)?,
            };
            if let Some((socket, peer)) = ready {
                let connection = Connection::try_from(socket).map_err(AcceptError::System)?;
                self.last_accepted = Some(peer);
                return Ok(Some(connection));
            }
            if deadline.passed() || self.wait(other, deadline).map_err(AcceptError::System)? {
                return Ok(None);
            }
        }
    }

    /// Goes on with the pending handshakes; the first that is finished.
    fn go_on(&mut self) -> Option<(OwnedFd, Peer)> {
        let mut index = 0;
        while let Some(pending) = self.state.pending.get_mut(index) {
            let error = match pending.handshake.advance(&pending.socket) {
                Ok(true) => {
                    let Pending { socket, peer, .. } = self.state.remove(index);
                    return Some((socket, peer));
                }
                Ok(false) if pending.left.is_zero() => AuthenticationError::Timeout(self.handshake_timeout),
                Ok(false) => {
                    index += 1;
                    continue;
                }
                Err(error) => error,
            };
            let peer = self.state.remove(index).peer;
            self.refuse(peer, &error);
        }
        None
    }

    /// Takes new connections, and begins their handshakes; the first that needs none.
    fn admit(&mut self) -> io::Result<Option<(OwnedFd, Peer)>> {
        let (most, undisturbed) = self.limits();
        self.state.full = false;
        for _ in 0..most {
            if self.state.pending.len() >= most && self.to_be_dropped(undisturbed).is_none() {
                self.state.full = true;
                break;
            }
            let (socket, endpoint) = match socket::accept(&self.socket) {
                Ok(Some(accepted)) => accepted,
                Ok(None) => break,
                // Who has no descriptor left is told so also when nobody waits.
                Err(_) if !socket::wait(&self.socket, PollFlags::IN, Deadline::Now)? => break,
                Err(error) if self.state.pending.is_empty() => return Err(error),
                Err(_) => {
                    self.state.full =
                        !self.drop_slow(undisturbed, "it is slow, and its descriptor is needed");
                    if self.state.full {
                        break;
                    }
                    continue;
                }
            };
            let peer = match endpoint {
                Endpoint::Inet(address) => Peer::Tcp(address),
                _ => {
                    let found = socket::peer_credentials(&socket)?;
                    Peer::Local { pid: found.pid.unsigned_abs(), uid: found.uid }
                }
            };
            let Some(key) = &self.authkey else {
                if self.is_stranger(peer) {
                    self.refused += 1;
                    tracing::warn!(listener = %self.address, ?peer, "refused a peer of another user");
                    continue;
                }
                return Ok(Some((socket, peer)));
            };
            let begun = Handshake::new(key, Role::Listener, &socket).and_then(|handshake| {
                self.state.watch.add(&socket).map_err(AuthenticationError::System)?;
                Ok(handshake)
            });
            let handshake = match begun {
                Ok(handshake) => handshake,
                Err(error) => {
                    self.refuse(peer, &error);
                    continue;
                }
            };
            // More than one only where the process may have fewer descriptors than before.
            while self.state.pending.len() >= most
                && self.drop_slow(undisturbed, "it is slow, and too many others came")
            {}
            let (left, since) = (self.handshake_timeout, Instant::now());
            self.state.pending.push(Pending { socket, handshake, peer, left, since });
        }
        Ok(None)
    }

    /// How many peers may be in their handshakes at once, and how long one is not dropped for others.
    fn limits(&self) -> (usize, Duration) {
        let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let part = usize::try_from(descriptors / PART_OF_DESCRIPTORS).unwrap_or(usize::MAX);
        let most = self.max_pending.min(part).max(1);
        // All of them make room as often as that takes for a full backlog to pass.
        let turns = (self.backlog as usize).div_ceil(most).max(1);
        let undisturbed = PASSAGE / u32::try_from(turns).unwrap_or(u32::MAX);
        (most, undisturbed.max(UNDISTURBED))
    }

    /// The peer that would have to make room for others.
    fn to_be_dropped(&self, undisturbed: Duration) -> Option<usize> {
        let mut pending = self.state.pending.iter();
        pending.position(|pending| !pending.handshake.is_trusted() && pending.since.elapsed() > undisturbed)
    }

    /// Drops the peer that has to make room for others; whether there is one.
    fn drop_slow(&mut self, undisturbed: Duration, reason: &'static str) -> bool {
        let Some(index) = self.to_be_dropped(undisturbed) else { return false };
        let peer = self.state.remove(index).peer;
        self.refuse(peer, &AuthenticationError::Protocol(reason));
        true
    }

    /// Without a key, an abstract address is for the user's own processes.
    fn is_stranger(&self, peer: Peer) -> bool {
        matches!((&self.address, peer), (Address::Abstract(_), Peer::Local { uid, .. })
            if uid != socket::effective_user())
    }

    fn refuse(&mut self, peer: Peer, error: &AuthenticationError) {
        self.refused += 1;
        tracing::warn!(listener = %self.address, ?peer, %error, "refused a peer");
    }

    /// Waits for any peer, the deadline, the end of a handshake's time, or `other`; whether it is readable.
    fn wait(&mut self, other: Option<BorrowedFd<'_>>, deadline: Deadline) -> io::Result<bool> {
        // Without room for those who wait to be accepted they must not wake this.
        let full = self.state.full;
        let first = self.state.pending.iter().map(|pending| pending.left).min();
        let longest = if full { Some(NO_ROOM) } else { first };
        let until = match longest.map(|longest| deadline.slice(longest).unwrap_or_default()) {
            Some(slice) => Deadline::after(slice),
            None => deadline,
        };
        let begun = Instant::now();
        let mut fds = Vec::with_capacity(2);
        fds.extend(other.map(|other| PollFd::from_borrowed_fd(other, PollFlags::IN)));
        if !full {
            fds.push(PollFd::new(&self.state.watch, PollFlags::IN));
        }
        socket::poll(&mut fds, until)?;
        let other_is_ready = other.is_some() && !fds[0].revents().is_empty();
        drop(fds);
        let spent = begun.elapsed();
        for pending in &mut self.state.pending {
            pending.left = pending.left.saturating_sub(spent);
        }
        Ok(other_is_ready)
    }
}

impl State {
    fn new(socket: &OwnedFd) -> io::Result<Self> {
        let watch = Watch::new()?;
        watch.add(socket)?;
        Ok(State { owner: Identity::current(), watch, pending: Vec::new(), full: false })
    }

    fn remove(&mut self, index: usize) -> Pending {
        let pending = self.pending.remove(index);
        // Closing would not do: a forked child may have a copy, and the set would go on reporting it.
        if let Err(error) = self.watch.remove(&pending.socket) {
            tracing::warn!(%error, "a pending peer was not in the set");
        }
        pending
    }
}

/// Readable when [`Listener::accept_timeout`] has something to do: a new peer, or more from one in its
/// handshake, which then may or may not be accepted.
impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.state.watch.as_fd()
    }
}

impl std::fmt::Debug for Pending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pending").field("peer", &self.peer).field("left", &self.left).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backlog_of_silent_peers_is_gone_through_in_half_a_second() {
        for (backlog, max_pending) in [(1024, 256), (128, 64), (5, 64), (0, 64), (64, 64)] {
            let listener = Listener::builder().authkey("key").backlog(backlog).max_pending(max_pending);
            let (most, undisturbed) = listener.bind().unwrap().limits();
            assert!(most <= max_pending);
            let turns = (backlog as usize).div_ceil(most) as u32;
            assert!(undisturbed >= UNDISTURBED);
            assert!(undisturbed * turns <= Duration::from_millis(500), "{undisturbed:?}, {turns} times");
        }
    }
}
