//! What a process has of a manager: its connections there, and the references that they hold.
//!
//! The first connection of a process is its session, which holds its references for as long as it is open; it carries no
//! calls. A call takes a connection that is idle, or makes one, so that threads do not wait for each other.
//!
//! All of this changes with the fork gate held and is not locked while anybody waits, so that a forked child finds it whole.
//! The child has its own connections: it closes the copies of its parent's.

use std::collections::HashMap;
use std::fmt::Display;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use procession_sys::clock::Deadline;
use procession_sys::fork;
use procession_sys::identity::Identity;
use procession_sys::socket;
use rustix::event::PollFlags;

use super::connect::{Stream, begin, connect, not_a_manager, receive, silent, system};
use super::error::CallError;
use super::reference::Reference;
use super::table;
use super::value::{HandleTransport, Received};
use super::wire::{Answer, Encoded, Machine, Number, Refusal, Reply, Request, Token, Welcome};
use crate::connection::{Address, AuthKey, Client, ConnectError, RecvError, SendError};

/// How long a manager that closes its connections may take to end.
const ENDING: Duration = Duration::from_secs(1);
/// How many connections are kept for later calls.
const IDLE: usize = 8;
/// The most that one message gives back.
const BATCH: usize = 256;

/// A connection for calls.
struct CallConnection {
    stream: Stream,
    session: Token,
}

/// A manager as this process sees it.
pub(super) struct ManagerClient {
    manager: Token,
    address: Address,
    key: AuthKey,
    inner: Mutex<Inner>,
}

struct Inner {
    /// What is alive of the proxies that this process has. A forked child has copies.
    references: HashMap<Number, Weak<Reference>>,
    /// The manager's process, if it is one of this machine.
    process: Option<Identity>,
    died: bool,
    links: Links,
}

/// What belongs to one process.
struct Links {
    owner: Identity,
    session: Option<Session>,
    idle: Vec<CallConnection>,
    objects: Vec<(Number, u32)>,
    tickets: Vec<u64>,
}

struct Session {
    token: Token,
    stream: Arc<Stream>,
    transport: HandleTransport,
}

impl Links {
    fn new(owner: Identity) -> Links {
        Links { owner, session: None, idle: Vec::new(), objects: Vec::new(), tickets: Vec::new() }
    }
}

impl ManagerClient {
    /// The manager at an address, of which nothing is known but the key.
    pub(super) fn connect(address: &Address, key: &AuthKey) -> Result<Arc<ManagerClient>, CallError> {
        table::watch_forks().map_err(|cause| system(address, "registering with fork", cause))?;
        let (welcome, stream) = begin(address, key, Deadline::Never, None)?;
        let client = ManagerClient::known(welcome.manager, address.clone(), key.clone());
        client.settle_in(welcome, stream)?;
        Ok(client)
    }

    /// This process's view of a manager: there is one.
    pub(super) fn known(manager: Token, address: Address, key: AuthKey) -> Arc<ManagerClient> {
        table::client(manager, || ManagerClient {
            manager,
            address,
            key,
            inner: Mutex::new(Inner {
                references: HashMap::new(),
                process: None,
                died: false,
                links: Links::new(Identity::current()),
            }),
        })
    }

    pub(super) fn manager(&self) -> Token {
        self.manager
    }

    pub(super) fn address(&self) -> &Address {
        &self.address
    }

    pub(super) fn key(&self) -> &AuthKey {
        &self.key
    }

    /// The manager's process, if it is known and of this machine.
    pub(super) fn process(&self) -> Option<Identity> {
        self.locked(|inner| inner.process)
    }

    /// Nothing in `change` takes the gate or drops a reference.
    fn locked<R>(&self, change: impl FnOnce(&mut Inner) -> R) -> R {
        let gate = fork::gate();
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let me = Identity::current();
        let of_parent =
            (inner.links.owner != me).then(|| std::mem::replace(&mut inner.links, Links::new(me)));
        let result = change(&mut inner);
        drop((inner, gate));
        drop(of_parent);
        result
    }

    /// Closes what a forked child has of its parent's connections.
    pub(super) fn forget_parents(&self) {
        self.locked(|_| ());
    }

    /// All references of this process that live.
    pub(super) fn references(&self) -> Vec<Arc<Reference>> {
        self.locked(|inner| inner.references.values().filter_map(Weak::upgrade).collect())
    }

    /// The reference to an object of which the session got one more.
    pub(super) fn adopt(self: &Arc<Self>, session: Token, object: Number) -> Arc<Reference> {
        self.locked(|inner| {
            if let Some(known) = inner.references.get(&object).and_then(Weak::upgrade) {
                known.got(session);
                return known;
            }
            let new = Arc::new(Reference::new(self, object, session));
            inner.references.insert(object, Arc::downgrade(&new));
            new
        })
    }

    /// A reference is being dropped.
    pub(super) fn dropped(&self, object: Number) {
        self.locked(|inner| {
            // Another one may have taken its place.
            if inner.references.get(&object).is_some_and(|known| known.strong_count() == 0) {
                inner.references.remove(&object);
            }
        });
    }

    /// The session that this process has now, if it has one.
    pub(super) fn session(&self) -> Option<Token> {
        self.locked(|inner| inner.links.session.as_ref().map(|session| session.token))
    }

    /// How handles travel there.
    pub(super) fn transport(&self) -> Result<HandleTransport, CallError> {
        self.begun(Deadline::Never)?;
        let transport = self.locked(|inner| inner.links.session.as_ref().map(|session| session.transport));
        transport.ok_or_else(|| self.lost())
    }

    /// Has a session, from now on if there was none.
    fn begun(&self, deadline: Deadline) -> Result<Token, CallError> {
        if let Some(token) = self.session() {
            return Ok(token);
        }
        if self.locked(|inner| inner.died) {
            return Err(self.ended());
        }
        let (welcome, stream) = begin(&self.address, &self.key, deadline, self.process())
            .map_err(|error| self.unreachable(error))?;
        self.settle_in(welcome, stream)
    }

    fn settle_in(&self, welcome: Welcome, stream: Stream) -> Result<Token, CallError> {
        if welcome.manager != self.manager {
            // Another manager has taken the address.
            self.give_up();
            return Err(self.ended());
        }
        let here = Machine::this().map_err(|cause| system(&self.address, "asking for the machine", cause))?;
        let same = here == welcome.machine;
        let transport = match (&self.address, same) {
            (Address::Tcp { .. }, true) => HandleTransport::Tickets,
            (Address::Tcp { .. }, false) => HandleTransport::Nothing,
            _ => HandleTransport::Descriptors,
        };
        let (token, spare) = self.locked(|inner| {
            inner.process = Identity::from_bits(welcome.process).filter(|_| same);
            match &inner.links.session {
                // Another thread was faster.
                Some(session) => (session.token, Some(stream)),
                None => {
                    let (token, stream) = (welcome.session, Arc::new(stream));
                    inner.links.session = Some(Session { token, stream, transport });
                    (token, None)
                }
            }
        });
        drop(spare);
        Ok(token)
    }

    /// A connection for a call.
    fn connection(&self, deadline: Deadline) -> Result<CallConnection, CallError> {
        let session = self.begun(deadline)?;
        if let Some(connection) = self.locked(|inner| inner.links.idle.pop()) {
            return Ok(connection);
        }
        let stream = connect(&self.address, &self.key, deadline, self.process())
            .map_err(|error| self.unreachable(error))?;
        let connection = CallConnection { stream, session };
        let joined = connection.stream.send(&Request::Join { session }).map_err(|error| self.unsent(error));
        match joined.and_then(|()| self.receive(&connection, deadline))? {
            Ok(Answer::Done) => Ok(connection),
            // Its end of the session's connection is closed. What the session had may be gone; the next call begins another.
            Err(Refusal::NoSession) => {
                self.close(session);
                Err(self.lost())
            }
            _ => Err(not_a_manager(&self.address)),
        }
    }

    /// Asks, and waits for the answer. Also returns the session that got what references come with it.
    pub(super) fn exchange(
        self: &Arc<Self>,
        about: &dyn Display,
        request: &Request,
        timeout: Option<Duration>,
    ) -> Result<(Reply<Received>, Token), CallError> {
        table::sweep();
        self.flush();
        let deadline = Deadline::from(timeout);
        self.exchange_until(request, deadline).map_err(|error| match (error, timeout) {
            (CallError::TimedOut { .. } | CallError::Connect(_), Some(timeout)) if deadline.passed() => {
                CallError::TimedOut { object: about.to_string(), timeout }
            }
            (error, _) => error,
        })
    }

    fn exchange_until(
        self: &Arc<Self>,
        request: &Request,
        deadline: Deadline,
    ) -> Result<(Reply<Received>, Token), CallError> {
        let connection = self.connection(deadline)?;
        match connection.stream.send(request) {
            Ok(()) => {}
            Err(error @ (SendError::Serialize { .. } | SendError::Handle { .. })) => {
                self.keep(connection);
                return Err(self.unsent(error));
            }
            Err(error) => return Err(self.unsent(error)),
        }
        let reply = self.receive(&connection, deadline)?;
        let session = connection.session;
        let reply = reply.map(|answer| answer.map(|encoded| Received::by_session(self, session, encoded)));
        self.keep(connection);
        Ok((reply, session))
    }

    /// Waits for an answer.
    fn receive(&self, connection: &CallConnection, deadline: Deadline) -> Result<Reply<Encoded>, CallError> {
        receive(&connection.stream, self.process(), deadline).map_err(|error| match error {
            RecvError::Timeout => silent(&self.address),
            RecvError::Closed | RecvError::Truncated { .. } => self.lost(),
            RecvError::Handle { type_name, cause } => CallError::Open { type_name, cause },
            RecvError::System(cause) => system(&self.address, "receiving", cause),
            error => system(&self.address, "receiving", io::Error::other(error)),
        })
    }

    /// Keeps a connection whose call is over.
    fn keep(&self, connection: CallConnection) {
        let spare = self.locked(|inner| {
            let links = &mut inner.links;
            let current = links.session.as_ref().is_some_and(|session| session.token == connection.session);
            if current && links.idle.len() < IDLE {
                links.idle.push(connection);
                return None;
            }
            Some(connection)
        });
        if let Some(connection) = spare {
            // Without it the manager takes back what came with the last answer. The manager reads it: it has answered.
            let _gone = connection.stream.send(&Request::Leave);
        }
    }

    /// Gives references of a session back, now or with the next call. Never waits.
    pub(super) fn let_go(&self, session: Token, object: Number, count: u32) {
        self.later(Some(session), |links| links.objects.push((object, count)));
    }

    /// Declares that nobody will open the handle with this ticket any more.
    pub(super) fn settle(&self, ticket: u64) {
        self.later(None, |links| links.tickets.push(ticket));
    }

    /// What a session that has ended had is no concern of the next one.
    fn later(&self, of: Option<Token>, note: impl FnOnce(&mut Links)) {
        self.locked(|inner| {
            let links = &mut inner.links;
            if links.session.as_ref().is_some_and(|session| of.is_none_or(|of| of == session.token)) {
                note(links);
            }
        });
        self.flush();
    }

    /// Sends what is to be given back, as far as the manager takes it now.
    fn flush(&self) {
        loop {
            let batch = self.locked(|inner| {
                let Links { session, objects, tickets, .. } = &mut inner.links;
                let session = session.as_ref()?;
                if objects.is_empty() && tickets.is_empty() {
                    return None;
                }
                // If not, the manager is stopped or busy: with a later call.
                let ready = socket::wait(&session.stream, PollFlags::OUT, Deadline::Now).unwrap_or(false);
                if !ready {
                    return None;
                }
                let objects = objects.split_off(objects.len().saturating_sub(BATCH));
                let tickets = tickets.split_off(tickets.len().saturating_sub(BATCH));
                Some((Arc::clone(&session.stream), Request::LetGo { objects, tickets }))
            });
            let Some((stream, request)) = batch else { return };
            // It fails only when the manager is gone, and what it kept with it.
            if stream.send(&request).is_err() {
                return;
            }
        }
    }

    fn unsent(&self, error: SendError) -> CallError {
        match error {
            SendError::Closed | SendError::CutShort => self.lost(),
            cause => CallError::Request { address: self.address.clone(), cause },
        }
    }

    fn unreachable(&self, error: CallError) -> CallError {
        match error {
            CallError::Connect(ConnectError::Refused { .. }) => {
                self.give_up();
                self.ended()
            }
            error => error,
        }
    }

    /// Why a connection ended. A process that ends closes its sockets a moment before it is seen to have ended.
    fn lost(&self) -> CallError {
        let ended = match self.process() {
            Some(process) => {
                let ending = Deadline::after(ENDING);
                loop {
                    if !process.is_alive() {
                        break true;
                    }
                    match ending.slice(Duration::from_millis(2)) {
                        Some(pause) => std::thread::sleep(pause),
                        None => break false,
                    }
                }
            }
            None => {
                let probe = Client::connect_to_process::<(), ()>(&self.address, &self.key, ENDING, None);
                matches!(probe, Err(ConnectError::Refused { .. }))
            }
        };
        if !ended {
            return CallError::Disconnected { address: self.address.clone() };
        }
        self.give_up();
        self.ended()
    }

    /// Closes all connections of a manager that has ended.
    pub(super) fn give_up(&self) {
        let links = self.locked(|inner| {
            inner.died = true;
            std::mem::replace(&mut inner.links, Links::new(Identity::current()))
        });
        drop(links);
        table::forget(self.manager);
    }

    /// Closes the connections of a session.
    fn close(&self, session: Token) {
        let links = self.locked(|inner| {
            let current = inner.links.session.as_ref().is_some_and(|current| current.token == session);
            current.then(|| std::mem::replace(&mut inner.links, Links::new(Identity::current())))
        });
        drop(links);
    }

    fn ended(&self) -> CallError {
        let pid = self.process().map(|process| process.pid_number());
        CallError::ManagerDied { address: self.address.clone(), pid }
    }
}
