//! A manager's process: who is connected, and what they have.
//!
//! The first thread accepts connections, which authenticate side by side there, and starts a thread for each that did. That
//! thread waits for nobody but its own client and, inside an object's lock, for the object: whoever is stopped, slow or killed
//! disturbs only itself.

mod connection;
mod objects;
mod sequence;
mod service;
mod session;
mod table;

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use procession_sys::clock::Deadline;
use procession_sys::identity::Identity;
use procession_sys::{process, signals};
use rustix::fd::AsFd;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use self::objects::{Hosted, Objects, State};
pub(super) use self::service::register;
use self::session::Sessions;
use super::client::ManagerClient;
use super::wire::{Encoded, Kind, Machine, Refusal, Token, token};
use crate::connection::{Address, AuthKey, Listener, Peer, Pipe, Receiver, Sender};
use crate::process::TaskRef;
use crate::process::wire::Report;
use crate::process::{Hooks, register_hooks};

/// How long a peer may take to authenticate.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How many connections may wait to be accepted.
const BACKLOG: u32 = 1024;
/// How many peers may be in their handshakes at once.
const HANDSHAKES: usize = 256;
/// How long what a client had sent is kept after the client's end, for who has yet to open it.
const GRACE: Duration = Duration::from_secs(3600);
/// How long objects may take to end when the manager does.
const ENDING: Duration = Duration::from_secs(1);
/// How long the manager pauses that is out of descriptors, threads or memory.
const PAUSE: Duration = Duration::from_millis(100);

/// What a new manager is told.
#[derive(Serialize, Deserialize)]
pub(super) struct Orders {
    pub(super) address: Option<Address>,
    pub(super) key: Vec<u8>,
    /// [`register`] for each type.
    pub(super) types: Vec<TaskRef>,
    pub(super) started: Sender<Result<Started, String>>,
}

/// Where a new manager is.
#[derive(Serialize, Deserialize)]
pub(super) struct Started {
    pub(super) address: Address,
    pub(super) manager: Token,
}

/// The socket at which this process listens as a manager; -1 if it does not.
static LISTENING: AtomicI32 = AtomicI32::new(-1);

/// In a forked child of a manager: closes its copy of the socket that listens. Nobody answers there, and the address is to be
/// free once the manager has ended.
fn stop_listening() {
    let socket = LISTENING.swap(-1, Ordering::Relaxed);
    if socket != -1 {
        // SAFETY: `accept` has the descriptor open as long as it is noted here. It runs on the manager's first thread, which
        // forks nothing, so there is none in this process that could use it or close it.
        drop(unsafe { OwnedFd::from_raw_fd(socket) });
    }
}

static HOOKS: Hooks = Hooks { in_child: stop_listening, ..Hooks::NONE };

/// Lives as a manager until it is told to end.
pub(super) fn serve(orders: Orders) {
    let Orders { started, .. } = &orders;
    let (server, listener, stop) = match ServerState::new(&orders) {
        Ok(new) => new,
        Err(problem) => {
            // Nobody is left to be told if this fails.
            let _gone = started.send(&Err(problem));
            return;
        }
    };
    let about = Started { address: listener.address().clone(), manager: server.client.manager() };
    if started.send(&Ok(about)).is_ok() {
        drop(orders);
        server.accept(listener, &stop);
        server.end();
    }
}

/// What all threads of a manager share.
struct ServerState {
    objects: Arc<Objects>,
    sessions: Sessions,
    /// The manager as a client of itself: what proxies that handlers read are of.
    client: Arc<ManagerClient>,
    machine: Machine,
    names: Mutex<HashMap<String, Name>>,
    tickets: Mutex<Tickets>,
    wake: Sender<WakeReason>,
}

/// A name's object, once it is made. Locked while it is made.
type Name = Arc<Mutex<Option<Arc<Hosted>>>>;

/// What the first thread is to look at.
#[derive(Serialize, Deserialize)]
enum WakeReason {
    Stop,
    Tickets,
}

/// Objects that are kept for handles on their way.
#[derive(Default)]
struct Tickets {
    last: u64,
    held: HashMap<u64, Held>,
}

struct Held {
    _object: Arc<Hosted>,
    session: Token,
    /// Once the session has ended.
    until: Option<Instant>,
}

impl ServerState {
    fn new(orders: &Orders) -> Result<(Arc<ServerState>, Listener, Receiver<WakeReason>), String> {
        let failed = |action: &str, error: io::Error| format!("{action}: {error}");
        process::set_command_name(b"procession-mgr");
        // Ctrl-C is for the programs that use it, which may go on.
        signals::set_disposition(Signal::INT, signals::Disposition::Ignore)
            .map_err(|error| failed("ignoring SIGINT", error))?;
        // Two descriptors for each client.
        if let Err(error) = process::raise_descriptor_limit() {
            tracing::warn!(%error, "a manager has to do with the descriptors that it may have now");
        }
        super::table::watch_forks().map_err(|error| failed("registering with fork", error))?;
        register_hooks(&HOOKS);
        for task in &orders.types {
            match task.run(&[], Vec::new()) {
                Report::Returned { .. } => {}
                Report::Panicked { message, .. } | Report::Arguments(message) | Report::Begin(message) => {
                    return Err(format!("registering a type: {message}"));
                }
                _ => return Err("registering a type: an unexpected report".into()),
            }
        }
        let key = AuthKey::new(orders.key.clone());
        let mut listener = Listener::builder()
            .authkey(key.clone())
            .backlog(BACKLOG)
            .handshake_timeout(HANDSHAKE)
            .max_pending(HANDSHAKES);
        if let Some(address) = &orders.address {
            listener = listener.address(address.clone());
        }
        let listener = listener.bind().map_err(|error| error.to_string())?;
        let (stop, wake) = Pipe::one_way().map_err(|error| failed("making a pipe", error))?;
        let server = ServerState {
            objects: Arc::default(),
            sessions: Sessions::default(),
            client: ManagerClient::known(token(), listener.address().clone(), key),
            machine: Machine::this().map_err(|error| failed("asking for the machine", error))?,
            names: Mutex::default(),
            tickets: Mutex::default(),
            wake,
        };
        Ok((Arc::new(server), listener, stop))
    }

    fn accept(self: &Arc<Self>, mut listener: Listener, stop: &Receiver<WakeReason>) {
        LISTENING.store(listener.socket().as_raw_fd(), Ordering::Relaxed);
        self.accept_from(&mut listener, stop);
        LISTENING.store(-1, Ordering::Relaxed);
    }

    fn accept_from(self: &Arc<Self>, listener: &mut Listener, stop: &Receiver<WakeReason>) {
        loop {
            let deadline = self.next_expiry().map_or(Deadline::Never, Deadline::At);
            match listener.accept_unless(Some(stop.as_fd()), deadline) {
                Ok(Some(connection)) => {
                    let client = match listener.last_accepted() {
                        Some(Peer::Local { pid, .. }) => rustix::process::Pid::from_raw(pid.cast_signed()),
                        _ => None,
                    };
                    connection::attend(self, connection, client);
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(%error, "a manager cannot accept a connection");
                    std::thread::sleep(PAUSE);
                }
            }
            while matches!(stop.poll(Duration::ZERO), Ok(true)) {
                match stop.recv() {
                    Ok(WakeReason::Tickets) => {}
                    Ok(WakeReason::Stop) | Err(_) => return,
                }
            }
            self.expire();
        }
    }

    fn wake(&self, wake: WakeReason) {
        // The first thread reads as long as the process lives.
        let _over = self.wake.send(&wake);
    }

    fn names(&self) -> MutexGuard<'_, HashMap<String, Name>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes an object, or finds the one that has the name.
    fn make(&self, kind: Kind, name: Option<String>, arguments: Encoded) -> Result<Arc<Hosted>, Refusal> {
        let Some(name) = name else { return self.make_new(kind, arguments) };
        let place = Arc::clone(self.names().entry(name.clone()).or_default());
        let mut place_of_name = place.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(object) = &*place_of_name {
            return match object.kind == kind {
                true => Ok(Arc::clone(object)),
                false => Err(Refusal::Kind(object.kind.clone())),
            };
        }
        match self.make_new(kind, arguments) {
            Ok(object) => {
                *place_of_name = Some(Arc::clone(&object));
                Ok(object)
            }
            Err(refusal) => {
                let mut names = self.names();
                // Unless somebody waits for it to be made, or has forgotten the name and begun anew.
                if names.get(&name).is_some_and(|now| Arc::ptr_eq(now, &place))
                    && Arc::strong_count(&place) == 2
                {
                    names.remove(&name);
                }
                Err(refusal)
            }
        }
    }

    fn make_new(&self, kind: Kind, arguments: Encoded) -> Result<Arc<Hosted>, Refusal> {
        let state = match &kind {
            Kind::Dict | Kind::Namespace => State::Table(table::Table::default()),
            Kind::List => State::Sequence(sequence::Sequence::default()),
            Kind::Service(name) => State::Service(service::make(name, &self.client, arguments)?),
        };
        Ok(self.objects.add(kind, state))
    }

    /// Forgets a name; whether there was one.
    fn forget(&self, name: &str) -> bool {
        let place = self.names().remove(name);
        // The object may go with it, which is not to happen with a lock held.
        let object = place.and_then(|place| place.lock().unwrap_or_else(PoisonError::into_inner).take());
        object.is_some()
    }

    fn tickets(&self) -> MutexGuard<'_, Tickets> {
        self.tickets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps an object until the ticket comes back.
    fn hold(&self, object: Arc<Hosted>, session: Token) -> u64 {
        let mut tickets = self.tickets();
        tickets.last += 1;
        let ticket = tickets.last;
        tickets.held.insert(ticket, Held { _object: object, session, until: None });
        ticket
    }

    fn settle(&self, settled: &[u64]) {
        let over: Vec<Held> = {
            let mut tickets = self.tickets();
            settled.iter().filter_map(|ticket| tickets.held.remove(ticket)).collect()
        };
        drop(over);
    }

    /// A session has ended: what it had sent is kept a while longer.
    fn begin_grace(&self, session: Token) {
        let until = Instant::now() + GRACE;
        let mut any = false;
        for held in self.tickets().held.values_mut().filter(|held| held.session == session) {
            held.until = Some(until);
            any = true;
        }
        if any {
            self.wake(WakeReason::Tickets);
        }
    }

    fn next_expiry(&self) -> Option<Instant> {
        self.tickets().held.values().filter_map(|held| held.until).min()
    }

    fn expire(&self) {
        let now = Instant::now();
        let over: Vec<(u64, Held)> = {
            let mut tickets = self.tickets();
            tickets.held.extract_if(|_, held| held.until.is_some_and(|until| until <= now)).collect()
        };
        if over.is_empty() {
            return;
        }
        // The end of an object is a user's code, and may take as long as it likes: not on the thread that accepts.
        let (hand, over_there) = mpsc::channel();
        match thread(move || drop(over_there.recv())) {
            // It waits for them.
            Ok(()) => drop(hand.send(over)),
            Err(error) => {
                tracing::warn!(%error, "a manager keeps objects that are over until it can start a thread");
                self.tickets().held.extend(over);
                std::thread::sleep(PAUSE);
            }
        }
    }

    /// Ends the objects of registered types, as far as they do in time.
    fn end(&self) {
        let (over, ended) = mpsc::channel();
        let objects = Arc::clone(&self.objects);
        let ending = thread(move || {
            objects.end_services();
            // Unless it took too long, somebody waits for this.
            let _late = over.send(());
        });
        let ended = ending.map(|()| ended.recv_timeout(ENDING));
        if !matches!(ended, Ok(Ok(()))) {
            tracing::warn!(?ended, "a manager ends before its objects have");
        }
    }
}

/// Starts a thread.
fn thread(run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name("manager".into()).spawn(run).map(drop)
}

/// The process with this pid, to be watched: the end of a client whose forked children have copies of its sockets.
fn watch(pid: Option<rustix::process::Pid>) -> Result<Option<OwnedFd>, io::Error> {
    match pid.map(Identity::of_pid) {
        None => Ok(None),
        Some(Ok(client)) => client.open().map(Some),
        Some(Err(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manager::value::HandleTransport;

    /// An object whose end waits for a message.
    struct Slow(Mutex<mpsc::Receiver<()>>);

    impl service::Served for Slow {
        fn handle(
            &mut self,
            _: Encoded,
            _: &Arc<ManagerClient>,
            _: HandleTransport,
            _: &mut service::Keep<'_>,
        ) -> Result<(), Refusal> {
            Ok(())
        }
    }

    impl Drop for Slow {
        fn drop(&mut self) {
            let _message = self.0.get_mut().unwrap().recv_timeout(Duration::from_secs(10));
        }
    }

    #[test]
    fn an_object_that_ends_with_its_ticket_holds_up_nobody() {
        let (_, wake) = Pipe::one_way().unwrap();
        let address = Address::Abstract(b"procession: nobody".to_vec());
        let server = ServerState {
            objects: Arc::default(),
            sessions: Sessions::default(),
            client: ManagerClient::known(token(), address, "key".into()),
            machine: Machine::another(),
            names: Mutex::default(),
            tickets: Mutex::default(),
            wake,
        };
        let (end, waiting) = mpsc::channel();
        let state = State::Service(Box::new(Slow(Mutex::new(waiting))));
        let object = server.objects.add(Kind::Service("slow".into()), state);
        let ticket = server.hold(object, token());
        server.tickets().held.get_mut(&ticket).unwrap().until = Some(Instant::now());
        server.expire();
        assert!(server.next_expiry().is_none());
        end.send(()).expect("its end has waited for this in another thread");
    }
}
