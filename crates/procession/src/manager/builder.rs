//! Starting a manager, and asking it for objects.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use procession_sys::identity::Identity;
use serde::de::DeserializeOwned;

use super::client::ManagerClient;
use super::dict::Dict;
use super::error::{CallError, ManagerError};
use super::list::List;
use super::namespace::Namespace;
use super::reference::{Reference, refused};
use super::server::{self, Orders, Started};
use super::service::{Proxy, Service};
use super::value::{Form, HandleTransport, check_readable, encode};
use super::wire::{Answer, Encoded, Kind, Request};
use crate::connection::{Address, AuthKey, Pipe, RecvError};
use crate::process::TaskRef;
use crate::process::{Process, StartError, StartMethod};
use crate::shared::{Array, Pod, Value};
use crate::sync::{Barrier, BoundedSemaphore, Condition, Event, Lock, RLock, Semaphore};
use crate::{JoinableQueue, Queue, SimpleQueue};

/// How long a manager may take to end when it is told to.
const ENDING: Duration = Duration::from_secs(1);

/// A manager to be started, from [`Manager::builder`].
#[must_use = "the manager starts with start()"]
pub struct Builder {
    address: Option<Address>,
    key: Option<AuthKey>,
    types: Vec<(&'static str, Result<TaskRef, StartError>)>,
}

impl Builder {
    /// Where the manager is to be found. Without it an abstract address is chosen that nobody else has. `"localhost"` and port 0
    /// for a TCP port that the system chooses; see [`Manager::address`].
    ///
    /// A socket file is removed when the manager is shut down or dropped; if it is killed, the next one there replaces it.
    pub fn address(mut self, address: Address) -> Self {
        self.address = Some(address);
        self
    }

    /// The key that its clients must have; random otherwise.
    pub fn authkey(mut self, key: impl Into<AuthKey>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Registers a type, of which [`Manager::create`] makes objects then, in this program and in others.
    pub fn register<S: Service>(mut self) -> Self {
        self.types.push((S::NAME, TaskRef::new(server::register::<S>)));
        self
    }

    /// Starts the manager: this program, executed once more as a daemon process, which ends with this one. Returns when it
    /// can be connected to.
    ///
    /// # Errors
    /// [`ManagerError`]: no process can be started, or it cannot listen at the address; an empty key; a name that is
    /// registered twice. Nothing is left behind then.
    pub fn start(self) -> Result<Manager, ManagerError> {
        let mut types = Vec::new();
        let mut names: Vec<&'static str> = Vec::new();
        for (name, task) in self.types {
            let problem = match name {
                "" => Some("it has no bytes"),
                name if names.contains(&name) => Some("there is one with that name"),
                _ => None,
            };
            if let Some(problem) = problem {
                return Err(ManagerError::Register { name, problem });
            }
            names.push(name);
            types.push(task?);
        }
        let key = self.key.unwrap_or_else(AuthKey::random);
        let system = |action| move |cause| ManagerError::System { action, cause };
        let (starting, started) = Pipe::one_way().map_err(system("making a pipe"))?;
        let orders = Orders { address: self.address, key: key.as_bytes().to_vec(), types, started };
        let process =
            Process::builder(server::serve, orders).daemon(true).start_method(StartMethod::Spawn).start()?;
        let started: Result<Result<Started, String>, RecvError> = starting.recv();
        let Started { address, manager } = match started {
            Ok(Ok(started)) => started,
            Ok(Err(problem)) => {
                process.join()?;
                return Err(ManagerError::Listen(problem));
            }
            Err(error) => {
                process.join()?;
                return Err(ManagerError::Listen(error.to_string()));
            }
        };
        let manager_of = |client| Manager { client, process: Some(process), owner: Identity::current() };
        Ok(manager_of(ManagerClient::known(manager, address, key)))
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.types.iter().map(|(name, _)| name).collect();
        f.debug_struct("Builder")
            .field("address", &self.address)
            .field("types", &names)
            .finish_non_exhaustive()
    }
}

/// A process that keeps objects for others, as Python's `multiprocessing.Manager`. See [the module](super).
///
/// Dropping a manager that this process started ends it, and its objects with it. Dropping one that was
/// [connected](Manager::connect) to does not.
///
/// ```
/// use procession::{Manager, Process};
/// use procession::manager::{Dict, List};
///
/// fn worker((squares, log): (Dict<u32, u32>, List<String>)) {
///     squares.insert(&7, &49).expect("insert");
///     log.push(&"7 is done".to_owned()).expect("push");
/// }
///
/// let manager = Manager::new()?;
/// let (squares, log) = (manager.dict()?, manager.list()?);
/// Process::spawn(worker, (squares.clone(), log.clone()))?.join()?;
/// assert_eq!(squares.get(&7)?, Some(49));
/// assert_eq!(log.to_vec()?, ["7 is done"]);
/// # Ok::<(), procession::Error>(())
/// ```
pub struct Manager {
    client: Arc<ManagerClient>,
    /// If it was started here.
    process: Option<Process<()>>,
    owner: Identity,
}

impl Manager {
    /// Starts a manager for this program and those that it hands proxies to, with the defaults of [`Manager::builder`].
    ///
    /// # Errors
    /// As [`Builder::start`].
    pub fn new() -> Result<Self, ManagerError> {
        Self::builder().start()
    }

    /// A manager to be started.
    pub fn builder() -> Builder {
        Builder { address: None, key: None, types: Vec::new() }
    }

    /// Connects to a manager that another program has started. Gives up when that says nothing for 20 s.
    ///
    /// # Errors
    /// [`ManagerError::Call`]: nobody listens there, the key is another one, or what listens is no manager.
    pub fn connect(address: &Address, key: impl Into<AuthKey>) -> Result<Self, ManagerError> {
        let client = ManagerClient::connect(address, &key.into())?;
        Ok(Manager { client, process: None, owner: Identity::current() })
    }

    /// Where the manager is, for [`Manager::connect`] in another program.
    pub fn address(&self) -> &Address {
        self.client.address()
    }

    /// The key that clients must have.
    pub fn authkey(&self) -> &AuthKey {
        self.client.key()
    }

    /// The manager's process, if this one started it, or is connected and on the same machine.
    pub fn pid(&self) -> Option<u32> {
        let of_client = || self.client.process().map(|process| process.pid_number());
        self.process.as_ref().map(Process::pid).or_else(of_client)
    }

    /// Ends the manager and all its objects, for everybody. Those of registered types are dropped ([`Service`]). Waits until a manager
    /// that was started here has ended; if it does not within a second, it is killed.
    ///
    /// # Errors
    /// [`ManagerError::Call`] for one that was connected to, and cannot be told.
    pub fn shutdown(mut self) -> Result<(), ManagerError> {
        match self.process.take() {
            Some(process) if self.owner == Identity::current() => {
                end(&self.client, &process);
                Ok(())
            }
            _ => {
                let about = format!("the manager at {}", self.address());
                let reply = self.client.exchange(&about, &Request::Shutdown, None)?.0;
                reply
                    .map(drop)
                    .map_err(|refusal| refused(&self.client, &about, &"manager", Err(refusal)).into())
            }
        }
    }

    /// An empty dictionary.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn dict<K, V>(&self) -> Result<Dict<K, V>, CallError> {
        self.make(&Kind::Dict, None, Encoded::default()).map(Dict::over)
    }

    /// The dictionary with the name, empty if it is new. All who ask for the name get the same one, of whatever types they say it
    /// has. It stays until [`Manager::forget`].
    ///
    /// # Errors
    /// [`CallError`]; [`CallError::Kind`] when the name is that of something else.
    pub fn named_dict<K, V>(&self, name: &str) -> Result<Dict<K, V>, CallError> {
        self.make(&Kind::Dict, Some(name), Encoded::default()).map(Dict::over)
    }

    /// An empty list.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn list<T>(&self) -> Result<List<T>, CallError> {
        self.make(&Kind::List, None, Encoded::default()).map(List::over)
    }

    /// The list with the name, as [`Manager::named_dict`].
    ///
    /// # Errors
    /// As there.
    pub fn named_list<T>(&self, name: &str) -> Result<List<T>, CallError> {
        self.make(&Kind::List, Some(name), Encoded::default()).map(List::over)
    }

    /// An empty namespace.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn namespace(&self) -> Result<Namespace, CallError> {
        self.make(&Kind::Namespace, None, Encoded::default()).map(Namespace::over)
    }

    /// The namespace with the name, as [`Manager::named_dict`].
    ///
    /// # Errors
    /// As there.
    pub fn named_namespace(&self, name: &str) -> Result<Namespace, CallError> {
        self.make(&Kind::Namespace, Some(name), Encoded::default()).map(Namespace::over)
    }

    /// An object of a registered type, made in the manager's process.
    ///
    /// # Errors
    /// [`CallError`]; [`CallError::NotRegistered`], [`CallError::Panicked`] when [`Service::create`] did.
    pub fn create<S: Service>(&self, arguments: &S::Arguments) -> Result<Proxy<S>, CallError> {
        self.service::<S>(None, arguments)
    }

    /// The object of a registered type with the name, made of these arguments if it is new; as [`Manager::named_dict`].
    ///
    /// # Errors
    /// As for [`Manager::create`]; [`CallError::Kind`] when the name is that of something else.
    pub fn named<S: Service>(&self, name: &str, arguments: &S::Arguments) -> Result<Proxy<S>, CallError> {
        self.service::<S>(Some(name), arguments)
    }

    fn service<S: Service>(
        &self,
        name: Option<&str>,
        arguments: &S::Arguments,
    ) -> Result<Proxy<S>, CallError> {
        check_readable::<S::Arguments>()?;
        let encoded = encode(self.client.manager(), self.client.transport()?, Form::Plain, arguments)
            .map_err(|error| error.of::<S::Arguments>(&self.client))?;
        self.make(&Kind::Service(S::NAME.into()), name, encoded).map(Proxy::over)
    }

    fn make(&self, kind: &Kind, name: Option<&str>, arguments: Encoded) -> Result<Arc<Reference>, CallError> {
        Reference::make(&self.client, kind, name, arguments)
    }

    /// Forgets a name; whether there was one. Its object stays while somebody has a proxy of it; the next who asks for the name gets a
    /// new one.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn forget(&self, name: &str) -> Result<bool, CallError> {
        match self.ask(&Request::Forget { name: name.to_owned() })? {
            Answer::Bool(was) => Ok(was),
            _ => Err(self.unexpected()),
        }
    }

    /// How many objects the manager keeps now. Those whose last proxy was dropped a moment ago may be among them.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn objects(&self) -> Result<usize, CallError> {
        match self.ask(&Request::Count)? {
            Answer::Count(count) => Ok(usize::try_from(count).unwrap_or(usize::MAX)),
            _ => Err(self.unexpected()),
        }
    }

    fn ask(&self, request: &Request) -> Result<Answer<super::value::Received>, CallError> {
        let about = format!("the manager at {}", self.address());
        let reply = self.client.exchange(&about, request, None)?.0;
        reply.map_err(|refusal| refused(&self.client, &about, &"manager", Err(refusal)))
    }

    fn unexpected(&self) -> CallError {
        CallError::NotAManager {
            address: self.address().clone(),
            problem: "its answer is not one to what it was asked".into(),
        }
    }

    /// That memory can be shared with the manager's clients on this machine.
    fn shares_memory(&self, what: &'static str) -> Result<(), CallError> {
        match self.client.transport()? {
            HandleTransport::Nothing => {
                Err(CallError::NotOnThisMachine { address: self.address().clone(), what })
            }
            _ => Ok(()),
        }
    }
}

/// What a manager has that lies in shared memory.
macro_rules! shared_memory {
    ($($(#[$doc:meta])* $name:ident $(<$param:ident $(: $bound:path)?>)? ($($argument:ident: $type:ty),*) -> $object:ty = $make:expr;)*) => {
        /// Objects in shared memory, for processes of this machine. They are those of this library, and need the manager no
        /// more; put into a dict or namespace of it, they stay as long as they are there.
        ///
        /// Each fails with [`CallError::NotOnThisMachine`] when the manager runs on another machine, [`CallError::Create`] when
        /// there is no memory or descriptor for the object or it is to have an impossible size, and otherwise as every call.
        impl Manager {
            $(
                $(#[$doc])*
                ///
                /// # Errors
                /// [`CallError`].
                pub fn $name $(<$param $(: $bound)?>)? (&self $(, $argument: $type)*) -> Result<$object, CallError> {
                    self.shares_memory(stringify!($name))?;
                    Ok($make?)
                }
            )*
        }
    };
}

shared_memory! {
    /// A [`Queue`] without a bound.
    queue<T: DeserializeOwned>() -> Queue<T> = Queue::unbounded();
    /// A [`Queue`] of at most so many messages.
    bounded_queue<T: DeserializeOwned>(messages: usize) -> Queue<T> = Queue::bounded(messages);
    /// A [`JoinableQueue`] without a bound.
    joinable_queue<T: DeserializeOwned>() -> JoinableQueue<T> = JoinableQueue::unbounded();
    /// A [`SimpleQueue`].
    simple_queue<T: DeserializeOwned>() -> SimpleQueue<T> = SimpleQueue::new();
    /// A [`Lock`].
    lock() -> Lock = Lock::new();
    /// An [`RLock`].
    rlock() -> RLock = RLock::new();
    /// A [`Semaphore`] with so many permits.
    semaphore(permits: u32) -> Semaphore = Semaphore::new(permits);
    /// A [`BoundedSemaphore`] with so many permits.
    bounded_semaphore(permits: u32) -> BoundedSemaphore = BoundedSemaphore::new(permits);
    /// A [`Condition`].
    condition() -> Condition = Condition::new();
    /// An [`Event`].
    event() -> Event = Event::new();
    /// A [`Barrier`] for so many parties.
    barrier(parties: u32) -> Barrier = Barrier::new(parties);
    /// A [`Value`].
    value<T: Pod>(value: T) -> Value<T> = Value::new(value);
    /// An [`Array`] of so many elements, all bytes of which are zero.
    array<T: Pod>(len: usize) -> Array<T> = Array::new(len);
}

/// Ends a manager of this process.
fn end(client: &Arc<ManagerClient>, process: &Process<()>) {
    let about = "the manager";
    // Whether it was told, or is gone or stopped: it has to end in time.
    let told = process.is_alive() && client.exchange(&about, &Request::Shutdown, Some(ENDING)).is_ok();
    if !(told && matches!(process.join_timeout(ENDING), Ok(Some(())) | Err(_))) {
        // Its own child by the pidfd: at worst it has ended.
        let _ended = process.kill();
        let _status = process.join();
    }
    client.give_up();
}

impl Drop for Manager {
    fn drop(&mut self) {
        if let Some(process) = self.process.take().filter(|_| self.owner == Identity::current()) {
            end(&self.client, &process);
        }
    }
}

impl fmt::Debug for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Manager").field("address", self.address()).field("pid", &self.pid()).finish()
    }
}
