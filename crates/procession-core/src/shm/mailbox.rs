//! Sockets on their way to another process through something that carries only bytes.
//!
//! A socket cannot be opened through `/proc/PID/fd`. So the sender keeps a duplicate under a random number
//! in its *mailbox*, a listening local socket without a file, served by one thread that starts with the first
//! socket sent so. The bytes are a [`Ticket`]: whose mailbox, and which number. Who presents the number
//! there first, as the same user, is handed the duplicate, and the mailbox forgets it.
//!
//! A socket that is not fetched stays open until its sender ends. When the sender exits, its
//! [`keeper`] hands the sockets over for as long as they can still be requested. When the sender is
//! killed, its tickets are void.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use procession_sys::clock::Deadline;
use procession_sys::identity::Identity;
use procession_sys::socket::{self, Blocking, Endpoint};
use procession_sys::thread::spawn_without_signals;
use rustix::event::{PollFd, PollFlags};

use super::error::OpenError;
use super::fd_ref::FdRef;
use super::header::ObjectId;
use super::keeper;
use super::tally::{self, Fate};
use super::transfer::{attach, attached};

/// How long [`receive`] waits for a sender that lives but does not answer.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// How often it looks whether the sender still lives.
const SLICE: Duration = Duration::from_millis(100);
/// How long the thread keeps a connection that has not presented its number, and how long a receiver that finds
/// a mailbox closed waits to see its process end.
const PRESENTING: Duration = Duration::from_secs(1);
/// How long [`receive`] waits for a keeper, which answers one receiver at a time and looks at all
/// processes now and then.
const KEEPERS_PATIENCE: Duration = Duration::from_secs(3);
/// How many such connections it keeps; beyond, the oldest goes.
const PRESENTERS: usize = 64;
/// The thread's answers: the descriptor comes with this byte, or it is not here.
pub(super) const HERE: u8 = 1;
pub(super) const NOT_HERE: u8 = 0;

/// How a handle's bytes refer to its socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ticket {
    /// The n-th descriptor that travels with the message.
    Attached(u32),
    /// One that its sender keeps for the first who asks.
    Mailbox {
        /// The sender.
        holder: Identity,
        /// Its mailbox.
        mailbox: [u8; 16],
        /// The number to present there.
        number: [u8; 16],
    },
}

impl Ticket {
    /// The size in bytes of the encoded form.
    pub const LEN: usize = 40;

    /// The holder's identity (0 for an attached one), then mailbox and number, or the index; little-endian.
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        match self {
            Ticket::Attached(index) => bytes[8..12].copy_from_slice(&index.to_le_bytes()),
            Ticket::Mailbox { holder, mailbox, number } => {
                bytes[..8].copy_from_slice(&holder.to_bits().to_le_bytes());
                bytes[8..24].copy_from_slice(&mailbox);
                bytes[24..].copy_from_slice(&number);
            }
        }
        bytes
    }

    /// Reads it back.
    ///
    /// # Errors
    /// [`OpenError::Malformed`] for another length or an impossible holder.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, OpenError> {
        let bytes: &[u8; Self::LEN] =
            bytes.try_into().map_err(|_| OpenError::Malformed("a socket's handle has 40 bytes"))?;
        let (holder, rest) = bytes.split_at(8);
        let (mailbox, number) = rest.split_at(16);
        let holder = u64::from_le_bytes(holder.try_into().unwrap_or_default());
        if holder == 0 {
            return Ok(Ticket::Attached(u32::from_le_bytes(mailbox[..4].try_into().unwrap_or_default())));
        }
        Ok(Ticket::Mailbox {
            holder: Identity::from_bits(holder).ok_or(OpenError::Malformed("impossible process"))?,
            mailbox: mailbox.try_into().unwrap_or_default(),
            number: number.try_into().unwrap_or_default(),
        })
    }
}

/// One process's mailbox. A forked child makes its own: the thread does not come along.
struct Mailbox {
    owner: Identity,
    name: [u8; 16],
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    /// The listening socket's number, once there is one.
    listener: Option<RawFd>,
    /// The process is ending, and its keeper hands the sockets over.
    left_to_keeper: bool,
    sockets: HashMap<[u8; 16], Posted>,
}

/// A socket that waits to be fetched.
struct Posted {
    socket: OwnedFd,
    /// The queue that its ticket was put into; `None` where it went elsewhere.
    carrier: Option<ObjectId>,
}

/// This process's mailbox, or after a fork its parent's. Only ever points to leaked boxes.
static CURRENT: AtomicPtr<Mailbox> = AtomicPtr::new(std::ptr::null_mut());

/// This process's mailbox, if it has used one.
fn existing(me: Identity) -> Result<&'static Mailbox, *mut Mailbox> {
    let known = CURRENT.load(Ordering::Acquire);
    // SAFETY: either null or from `Box::leak` in `own`, never freed; a fork copies it with all memory.
    match unsafe { known.as_ref() } {
        Some(mailbox) if mailbox.owner == me => Ok(mailbox),
        Some(of_parent) => {
            // Close what was inherited, or this process would keep connections open that it knows nothing of.
            // The lock may have been copied while held, and nobody here would ever release it.
            if let Ok(mut held) = of_parent.held.try_lock() {
                held.sockets.clear();
                if let Some(listener) = held.listener.take() {
                    // SAFETY: it is the mailbox's thread's, which this process does not have.
                    unsafe { libc::close(listener) };
                }
            }
            Err(known)
        }
        None => Err(known),
    }
}

/// This process's mailbox.
fn own() -> &'static Mailbox {
    let me = Identity::current();
    loop {
        let known = match existing(me) {
            Ok(mailbox) => return mailbox,
            Err(known) => known,
        };
        let new = Box::into_raw(Box::new(Mailbox {
            owner: me,
            name: ObjectId::random().to_bytes(),
            held: Mutex::default(),
        }));
        if CURRENT.compare_exchange(known, new, Ordering::AcqRel, Ordering::Acquire).is_err() {
            // SAFETY: made above and shared with nobody.
            drop(unsafe { Box::from_raw(new) });
        }
    }
}

/// Closes the sockets that a forked child has inherited from its parent's mailbox. Using the mailbox in the
/// child does the same.
pub fn forget_parents() {
    // Either this process's own, which stays, or its parent's, which `existing` empties.
    let _own = existing(Identity::current());
}

/// Whether this process has started its mailbox's thread.
pub fn is_running() -> bool {
    existing(Identity::current())
        .is_ok_and(|mailbox| mailbox.held.lock().unwrap_or_else(PoisonError::into_inner).listener.is_some())
}

/// How a socket's handle is to refer to it: attached inside [`super::transfer::collect`], else by a duplicate
/// in this process's mailbox until it is fetched.
///
/// # Errors
/// Out of descriptors or threads.
pub fn send(socket: BorrowedFd<'_>) -> io::Result<Ticket> {
    if let Some(FdRef::Attached(index)) = attach(socket)? {
        return Ok(Ticket::Attached(index));
    }
    let mailbox = own();
    let duplicate = socket.try_clone_to_owned()?;
    let number = ObjectId::random().to_bytes();
    let mut held = mailbox.held.lock().unwrap_or_else(PoisonError::into_inner);
    if held.listener.is_none() {
        keeper::register()?;
        let listener = socket::listen(&endpoint(&mailbox.name), 128)?;
        let listener_number = listener.as_raw_fd();
        spawn_without_signals("procession-mailbox", move || serve(mailbox, &listener))?;
        held.listener = Some(listener_number);
    }
    held.sockets.insert(number, Posted { socket: duplicate, carrier: None });
    tally::sent_with(move |fate| match fate {
        Fate::Put(carrier) => carried(number, carrier),
        Fate::TakenBack => take_back(number),
    });
    Ok(Ticket::Mailbox { holder: mailbox.owner, mailbox: mailbox.name, number })
}

/// Notes that the ticket of a socket was put into the queue `carrier`.
fn carried(number: [u8; 16], carrier: ObjectId) {
    if let Ok(mailbox) = existing(Identity::current()) {
        let mut held = mailbox.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(posted) = held.sockets.get_mut(&number) {
            posted.carrier = Some(carrier);
        }
    }
}

/// A socket that has not been fetched: its descriptor, its number, and the queue that its ticket
/// was put into.
pub(super) type Unfetched = (RawFd, [u8; 16], Option<ObjectId>);

/// Returns the sockets that have not been fetched, with their numbers and carriers, and the
/// listening socket. From now on this process hands none over: its keeper will.
pub(super) fn leave_to_keeper() -> Option<(RawFd, Vec<Unfetched>)> {
    let mailbox = existing(Identity::current()).ok()?;
    let mut held = mailbox.held.lock().unwrap_or_else(PoisonError::into_inner);
    let listener = held.listener?;
    held.left_to_keeper = true;
    let posted =
        held.sockets.iter().map(|(number, posted)| (posted.socket.as_raw_fd(), *number, posted.carrier));
    Some((listener, posted.collect()))
}

/// Closes what [`send`] has sent, if nobody has fetched it: nobody will.
fn take_back(number: [u8; 16]) {
    if let Ok(mailbox) = existing(Identity::current()) {
        drop(mailbox.take(number));
    }
}

/// Fetches what [`send`] sent, from its sender or, when that has exited, from the sender's
/// [`keeper`]. Waits at most [`PATIENCE`] for a process that is stopped or
/// overloaded.
///
/// # Errors
/// [`OpenError::Gone`] when neither lives, [`OpenError::NotHeld`] when another process has fetched
/// it already, [`OpenError::System`] with `TimedOut` when the sender does not answer.
pub fn receive(ticket: Ticket) -> Result<OwnedFd, OpenError> {
    let (holder, name, number) = match ticket {
        Ticket::Attached(index) => return attached(index),
        Ticket::Mailbox { holder, mailbox, number } => (holder, mailbox, number),
    };
    let pid = holder.pid_number();
    if holder == Identity::current() {
        let mailbox = existing(holder).map_err(|_| OpenError::NotHeld { pid })?;
        return mailbox.take(number).ok_or(OpenError::NotHeld { pid });
    }
    let deadline = Deadline::after(PATIENCE);
    let mut alive = holder.is_alive();
    loop {
        let fetched = fetch(holder, &name, number, deadline);
        match &fetched {
            // The sender may have ended with this request unanswered; ask its keeper.
            Err(OpenError::Gone { .. }) if alive => alive = false,
            // The sender is ending, and has left the request to its keeper.
            Err(OpenError::System { cause, .. })
                if cause.kind() == io::ErrorKind::UnexpectedEof && !deadline.passed() => {}
            _ => return fetched,
        }
    }
}

/// How long a receiver waits.
struct Patience {
    holder: Identity,
    deadline: Deadline,
    /// Since the holder was seen to have ended.
    for_keeper: Option<Deadline>,
}

impl Patience {
    /// The next time to wait before another look.
    ///
    /// # Errors
    /// The time is up. A holder that has ended and does not answer has left the listening socket to a
    /// process that it forked, and has no keeper.
    fn slice(&mut self) -> Result<Duration, OpenError> {
        if self.for_keeper.is_none() && !self.holder.is_alive() {
            self.for_keeper = Some(Deadline::after(KEEPERS_PATIENCE));
        }
        match self.for_keeper {
            None => self.deadline.slice(SLICE).ok_or_else(silent),
            Some(deadline) => {
                let pid = self.holder.pid_number();
                deadline.slice(SLICE).ok_or(OpenError::Gone { pid })
            }
        }
    }
}

fn fetch(
    holder: Identity,
    name: &[u8; 16],
    number: [u8; 16],
    deadline: Deadline,
) -> Result<OwnedFd, OpenError> {
    let pid = holder.pid_number();
    let mut patience = Patience { holder, deadline, for_keeper: None };
    let connection = loop {
        let slice = patience.slice()?;
        match socket::connect(&endpoint(name), Deadline::after(slice)) {
            Ok(connection) => break connection,
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {}
            // It listened before it wrote the ticket: it is ending, or in another network namespace.
            Err(error) => return Err(broken(holder, "connecting to the sender's mailbox", error)),
        }
    };
    let server = socket::peer_credentials(&connection).map_err(OpenError::system("checking a mailbox"))?;
    if server.pid.unsigned_abs() != pid {
        return Err(OpenError::NotHeld { pid });
    }
    socket::send(&connection, &[IoSlice::new(&number)], &[], Blocking::Never)
        .map_err(|error| broken(holder, "presenting a ticket to its sender", error))?;
    loop {
        let slice = patience.slice()?;
        let ready = socket::wait(&connection, PollFlags::IN, Deadline::after(slice))
            .map_err(OpenError::system("waiting for a mailbox"))?;
        if !ready {
            continue;
        }
        let mut answer = [NOT_HERE];
        let mut sockets = Vec::new();
        return match socket::receive(&connection, &mut answer, Some(&mut sockets), Blocking::Never) {
            Ok(received) if received.descriptors_lost => {
                Err(OpenError::system("receiving a descriptor")(rustix::io::Errno::MFILE))
            }
            Ok(received) => match sockets.pop() {
                Some(socket) if answer == [HERE] => Ok(socket),
                _ if received.bytes > 0 => Err(OpenError::NotHeld { pid }),
                _ => Err(broken(holder, ASKING, io::ErrorKind::UnexpectedEof.into())),
            },
            Err(error) => Err(broken(holder, ASKING, error)),
        };
    }
}

const ASKING: &str = "fetching a socket from its sender";

/// Why talking to the holder failed. A process that ends closes its sockets a moment before it is seen to have
/// ended.
fn broken(holder: Identity, action: &'static str, error: io::Error) -> OpenError {
    let ending = Deadline::after(PRESENTING);
    while holder.is_alive() {
        match ending.slice(Duration::from_millis(5)) {
            Some(pause) => std::thread::sleep(pause),
            None => return OpenError::system(action)(error),
        }
    }
    OpenError::Gone { pid: holder.pid_number() }
}

fn silent() -> OpenError {
    let error = io::Error::new(
        io::ErrorKind::TimedOut,
        "the process that sent this handle did not answer within 10 s; it may be stopped",
    );
    OpenError::system(ASKING)(error)
}

fn endpoint(name: &[u8; 16]) -> Endpoint {
    Endpoint::Abstract(format!("procession-mailbox-{:032x}", u128::from_be_bytes(*name)).into_bytes())
}

impl Mailbox {
    fn take(&self, number: [u8; 16]) -> Option<OwnedFd> {
        self.take_posted(number).map(|posted| posted.socket)
    }

    fn take_posted(&self, number: [u8; 16]) -> Option<Posted> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).sockets.remove(&number)
    }

    /// Hands over what `number` names. A peer that has gone away leaves it for another.
    fn hand_over(&self, number: [u8; 16], to: &OwnedFd) -> io::Result<()> {
        if self.held.lock().unwrap_or_else(PoisonError::into_inner).left_to_keeper {
            // The receiver sees its connection end, waits for this process's end and asks the
            // keeper.
            return Ok(());
        }
        let Some(found) = self.take_posted(number) else {
            socket::send(to, &[IoSlice::new(&[NOT_HERE])], &[], Blocking::Never)?;
            return Ok(());
        };
        let sent = socket::send(to, &[IoSlice::new(&[HERE])], &[found.socket.as_fd()], Blocking::Never);
        if sent.is_err() {
            self.held.lock().unwrap_or_else(PoisonError::into_inner).sockets.insert(number, found);
        }
        sent.map(drop)
    }
}

/// A connection that has not presented its whole number.
struct Presenter {
    socket: OwnedFd,
    number: [u8; 16],
    have: usize,
    until: Instant,
}

impl Presenter {
    /// Reads on; whether this connection is to be kept.
    fn advance(&mut self, mailbox: &Mailbox) -> bool {
        match socket::receive(&self.socket, &mut self.number[self.have..], None, Blocking::Never) {
            Ok(received) if received.bytes > 0 => self.have += received.bytes,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            _ => return false,
        }
        if self.have < self.number.len() {
            return Instant::now() < self.until;
        }
        if let Err(error) = mailbox.hand_over(self.number, &self.socket) {
            tracing::debug!(%error, "a socket could not be handed over");
        }
        false
    }
}

/// The mailbox's thread: ends with the process.
fn serve(mailbox: &'static Mailbox, listener: &OwnedFd) {
    let mut presenters: Vec<Presenter> = Vec::new();
    loop {
        let deadline =
            presenters.iter().map(|presenter| presenter.until).min().map_or(Deadline::Never, Deadline::At);
        let mut fds = vec![PollFd::new(listener, PollFlags::IN)];
        fds.extend(presenters.iter().map(|presenter| PollFd::new(&presenter.socket, PollFlags::IN)));
        let polled = socket::poll(&mut fds, deadline).map(drop);
        presenters.retain_mut(|presenter| presenter.advance(mailbox));
        if let Err(error) = polled.and_then(|()| admit(listener, &mut presenters)) {
            // Out of descriptors or memory, which may pass. Whoever waits goes on waiting.
            tracing::warn!(%error, "cannot hand sockets over");
            std::thread::sleep(SLICE);
        }
    }
}

/// Accepts connections of the same user, some at a time: who connects without end does not keep the others from being
/// served.
fn admit(listener: &OwnedFd, presenters: &mut Vec<Presenter>) -> io::Result<()> {
    for _ in 0..PRESENTERS {
        let Some((socket, _)) = socket::accept(listener)? else { break };
        if socket::peer_credentials(&socket)?.uid != socket::effective_user() {
            tracing::warn!("refused to hand a socket to another user");
            continue;
        }
        if presenters.len() == PRESENTERS {
            presenters.remove(0);
        }
        presenters.push(Presenter { socket, number: [0; 16], have: 0, until: Instant::now() + PRESENTING });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_reads_back() {
        let ticket = Ticket::Mailbox { holder: Identity::current(), mailbox: [7; 16], number: [9; 16] };
        for ticket in [ticket, Ticket::Attached(70_000)] {
            assert_eq!(Ticket::from_bytes(&ticket.to_bytes()).unwrap(), ticket);
        }
        assert!(matches!(Ticket::from_bytes(&[0; 3]), Err(OpenError::Malformed(_))));
        assert!(matches!(Ticket::from_bytes(&[255; 40]), Err(OpenError::Malformed(_))));
    }

    #[test]
    fn a_socket_is_fetched_once() {
        let (a, b) = socket::pair().unwrap();
        let ticket = send(a.as_fd()).unwrap();
        assert!(is_running());
        drop(a);
        let a = receive(ticket).unwrap();
        socket::send(&a, &[IoSlice::new(b"x")], &[], Blocking::Wait).unwrap();
        let got = socket::receive(&b, &mut [0; 2], None, Blocking::Wait).unwrap();
        assert_eq!(got.bytes, 1);
        assert!(matches!(receive(ticket), Err(OpenError::NotHeld { .. })));
    }

    #[test]
    fn the_thread_hands_over_and_silent_peers_do_not_stop_it() {
        let (a, _b) = socket::pair().unwrap();
        let Ticket::Mailbox { mailbox, number, .. } = send(a.as_fd()).unwrap() else {
            panic!("not inside collect")
        };
        let connect = || socket::connect(&endpoint(&mailbox), Deadline::after(PATIENCE)).unwrap();
        let _silent: Vec<_> = (0..3).map(|_| connect()).collect();
        let ask = |number: [u8; 16]| {
            let peer = connect();
            socket::send(&peer, &[IoSlice::new(&number)], &[], Blocking::Wait).unwrap();
            let (mut answer, mut fds) = ([9], Vec::new());
            socket::receive(&peer, &mut answer, Some(&mut fds), Blocking::Wait).unwrap();
            (answer[0], fds.len())
        };
        assert_eq!(ask([0; 16]), (NOT_HERE, 0));
        assert_eq!(ask(number), (HERE, 1));
        assert_eq!(ask(number), (NOT_HERE, 0));
    }
}
