//! What all proxies consist of.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use procession_core::shm::{OpenError, tally, transfer};
use serde::de::{self, DeserializeOwned, Deserializer};
use serde::ser::{self, Serializer};
use serde::{Deserialize, Serialize};

use super::client::ManagerClient;
use super::error::CallError;
use super::table;
use super::value::{self, Form, Received};
use super::wire::{Answer, Bytes, Encoded, Kind, Number, Operation, Refusal, Reply, Request, Token};
use crate::connection::{Address, AuthKey};

/// This process's reference to an object. There is one, which all its proxies share.
pub(super) struct Reference {
    client: Arc<ManagerClient>,
    object: Number,
    held: Mutex<Held>,
}

/// What the manager counts for this process. A forked child finds its parent's.
struct Held {
    session: Token,
    count: u32,
}

impl Reference {
    pub(super) fn new(client: &Arc<ManagerClient>, object: Number, session: Token) -> Reference {
        Reference { client: Arc::clone(client), object, held: Mutex::new(Held { session, count: 1 }) }
    }

    /// Makes an object, or finds the one that has the name.
    pub(super) fn make(
        client: &Arc<ManagerClient>,
        kind: &Kind,
        name: Option<&str>,
        arguments: Encoded,
    ) -> Result<Arc<Reference>, CallError> {
        let about = match name {
            Some(name) => format!("the {kind} {name:?} of the manager at {}", client.address()),
            None => format!("a new {kind} of the manager at {}", client.address()),
        };
        let request = Request::Make { kind: kind.clone(), name: name.map(str::to_owned), arguments };
        let (reply, session) = client.exchange(&about, &request, None)?;
        match reply {
            Ok(Answer::Object(object)) => Ok(client.adopt(session, object)),
            other => Err(refused(client, &about, kind, other)),
        }
    }

    /// A reference of this process's own to an object that another one has.
    fn open(client: &Arc<ManagerClient>, object: Number) -> Result<Arc<Reference>, CallError> {
        let about = name(client, object);
        match client.exchange(&about, &Request::Open { object }, None)? {
            (Ok(Answer::Done), session) => Ok(client.adopt(session, object)),
            (other, _) => Err(refused(client, &about, &"proxy", other)),
        }
    }

    pub(super) fn client(&self) -> &Arc<ManagerClient> {
        &self.client
    }

    /// The session has got one more. Called with the fork gate held.
    pub(super) fn got(&self, session: Token) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        match held.session == session {
            true => held.count += 1,
            false => *held = Held { session, count: 1 },
        }
    }

    /// Has a reference of this process's own, also in a forked child.
    fn ensure(&self) -> Result<(), CallError> {
        let current = self.client.session();
        let known = {
            let _gate = procession_sys::fork::gate();
            self.held.lock().unwrap_or_else(PoisonError::into_inner).session
        };
        if current == Some(known) {
            return Ok(());
        }
        // It adds to what this very reference has.
        Reference::open(&self.client, self.object).map(drop)
    }

    /// Has the object do something.
    pub(super) fn call(
        &self,
        kind: &dyn fmt::Display,
        operation: Operation,
        timeout: Option<Duration>,
    ) -> Result<Answer<Received>, CallError> {
        self.ensure()?;
        let about = About { kind, reference: self };
        let request = Request::Call { object: self.object, operation };
        let (reply, _) = self.client.exchange(&about, &request, timeout)?;
        reply.map_err(|refusal| refused(&self.client, &about, kind, Err(refusal)))
    }

    /// Serialises a value for the object, which is to be read back as what it is.
    pub(super) fn encode<T: Serialize + DeserializeOwned>(&self, value: &T) -> Result<Encoded, CallError> {
        value::check_readable::<T>()?;
        self.encode_as(Form::Plain, value)
    }

    /// Serialises a value for the object in this form.
    pub(super) fn encode_as<T: Serialize + ?Sized>(
        &self,
        form: Form,
        value: &T,
    ) -> Result<Encoded, CallError> {
        let transport = self.client.transport()?;
        value::encode(self.client.manager(), transport, form, value)
            .map_err(|error| error.of::<T>(&self.client))
    }

    /// Serialises a key: its bytes are the key.
    pub(super) fn key<T: Serialize + ?Sized>(&self, key: &T) -> Result<Bytes, CallError> {
        let encoded = self.encode_as(Form::Plain, key)?;
        if !encoded.descriptors.is_empty() || !encoded.objects.is_empty() {
            let cause = OpenError::Malformed("a key cannot have handles in it");
            return Err(CallError::Send { type_name: std::any::type_name::<T>(), cause });
        }
        Ok(Bytes(encoded.bytes))
    }

    /// An answer that the request cannot have.
    pub(super) fn unexpected(&self) -> CallError {
        let problem = "its answer is not one to what it was asked".into();
        CallError::NotAManager { address: self.client.address().clone(), problem }
    }

    /// Whether both are of the same object.
    pub(super) fn is(&self, other: &Reference) -> bool {
        self.client.manager() == other.client.manager() && self.object == other.object
    }
}

impl Drop for Reference {
    fn drop(&mut self) {
        let held = self.held.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.client.dropped(self.object);
        self.client.let_go(held.session, self.object, held.count);
    }
}

/// An object as messages call it.
struct About<'a> {
    kind: &'a dyn fmt::Display,
    reference: &'a Reference,
}

impl fmt::Display for About<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Reference { client, object, .. } = self.reference;
        write!(f, "the {} {object} of the manager at {}", self.kind, client.address())
    }
}

fn name(client: &ManagerClient, object: Number) -> String {
    format!("object {object} of the manager at {}", client.address())
}

/// What a refusal means, or an answer that the request cannot have.
pub(super) fn refused(
    client: &ManagerClient,
    about: &dyn fmt::Display,
    expected: &dyn fmt::Display,
    reply: Reply<Received>,
) -> CallError {
    let object = about.to_string();
    match reply {
        Err(Refusal::Gone) => CallError::Gone { object },
        Err(Refusal::Kind(found)) => {
            CallError::Kind { object, found: found.to_string(), expected: expected.to_string() }
        }
        Err(Refusal::NotRegistered(registered)) => {
            CallError::NotRegistered { name: expected.to_string(), registered }
        }
        Err(Refusal::Index(index, len)) => CallError::Index { object, index, len },
        Err(Refusal::Panicked { message, location }) => CallError::Panicked { object, message, location },
        Err(Refusal::Unreadable(problem)) => {
            CallError::Refused { object, problem: format!("the request cannot be read: {problem}") }
        }
        Err(Refusal::Answer(problem)) => {
            CallError::Refused { object, problem: format!("the answer cannot be handed over: {problem}") }
        }
        Ok(_) | Err(Refusal::Version(_) | Refusal::NoSession) => CallError::NotAManager {
            address: client.address().clone(),
            problem: "its answer is not one to what it was asked".into(),
        },
    }
}

/// A proxy as bytes.
#[derive(Serialize, Deserialize)]
enum ProxyHandle {
    /// In a value that the object's own manager keeps.
    Inside(Number),
    /// Anywhere else.
    Remote(Remote),
}

#[derive(Serialize, Deserialize)]
struct Remote {
    manager: Token,
    address: Address,
    /// For a manager of this machine, or over a local socket. It would be seen on a network.
    key: Option<Bytes>,
    object: Number,
    /// For what the manager keeps the object until this is opened; 0 if it may be opened many times.
    ticket: u64,
}

impl Reference {
    /// With the number of the kind of proxy.
    pub(super) fn serialize<S: Serializer>(&self, tag: u8, serializer: S) -> Result<S::Ok, S::Error> {
        let proxy_handle = self
            .proxy_handle()
            .map_err(|error| ser::Error::custom(transfer::fail(self.handle_error(error))))?;
        (tag, proxy_handle).serialize(serializer)
    }

    fn proxy_handle(&self) -> Result<ProxyHandle, CallError> {
        let (manager, object) = (self.client.manager(), self.object);
        self.ensure()?;
        if value::refer(manager, object) {
            return Ok(ProxyHandle::Inside(object));
        }
        let about = name(&self.client, object);
        let ticket = match self.client.exchange(&about, &Request::Hold { object }, None)? {
            (Ok(Answer::Ticket(ticket)), _) => ticket,
            (other, _) => return Err(refused(&self.client, &about, &"proxy", other)),
        };
        let client = Arc::clone(&self.client);
        tally::sent_otherwise(move || client.settle(ticket));
        let address = self.client.address().clone();
        let may_see_key = !matches!(address, Address::Tcp { .. }) || transfer::carries_descriptors();
        let key = may_see_key.then(|| Bytes(self.client.key().as_bytes().to_vec()));
        let ticket = if value::is_encoding() { 0 } else { ticket };
        Ok(ProxyHandle::Remote(Remote { manager, address, key, object, ticket }))
    }

    fn handle_error(&self, error: CallError) -> OpenError {
        OpenError::system("handing out a manager's object")(std::io::Error::other(error))
    }

    /// Reads what [`Reference::serialize`] wrote.
    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        tag: u8,
        deserializer: D,
    ) -> Result<Arc<Reference>, D::Error> {
        let (found, proxy_handle) = <(u8, ProxyHandle)>::deserialize(deserializer)?;
        let reference = if found == tag {
            Reference::arrive(proxy_handle)
        } else {
            Err(OpenError::Malformed("it is a proxy of another kind of object"))
        };
        reference.map_err(|error| de::Error::custom(transfer::fail(error)))
    }

    fn arrive(proxy_handle: ProxyHandle) -> Result<Arc<Reference>, OpenError> {
        let failed = |error| OpenError::system("using a manager's object")(std::io::Error::other(error));
        let Remote { manager, address, key, object, ticket } = match proxy_handle {
            ProxyHandle::Remote(remote) => remote,
            ProxyHandle::Inside(object) => {
                let (client, session) = value::granted(object)
                    .ok_or(OpenError::Malformed("a proxy that a manager's value had, outside of it"))?;
                return match session {
                    Some(session) => Ok(client.adopt(session, object)),
                    None => Reference::open(&client, object).map_err(failed),
                };
            }
        };
        table::watch_forks().map_err(OpenError::system("registering with fork"))?;
        let client = match (table::known(manager), key) {
            (Some(client), _) => client,
            (None, Some(Bytes(key))) => ManagerClient::known(manager, address, AuthKey::new(key)),
            (None, None) => return Err(failed(CallError::NoKey { address })),
        };
        let reference = Reference::open(&client, object).map_err(failed)?;
        if ticket != 0 {
            transfer::when_settled(move || client.settle(ticket));
        }
        Ok(reference)
    }
}

/// What a proxy is and does whatever its object is.
macro_rules! proxy {
    ($proxy:ident $(<$($param:ident),*>)?, $tag:expr, $noun:expr) => {
        impl $(<$($param),*>)? $proxy $(<$($param),*>)? {
            pub(super) fn over(reference: std::sync::Arc<$crate::manager::reference::Reference>) -> Self {
                $proxy { reference, types: std::marker::PhantomData }
            }

            /// Whether both are proxies of the same object.
            pub fn is_same(&self, other: &Self) -> bool {
                self.reference.is(&other.reference)
            }
        }

        impl $(<$($param),*>)? Clone for $proxy $(<$($param),*>)? {
            fn clone(&self) -> Self {
                Self::over(std::sync::Arc::clone(&self.reference))
            }
        }

        impl $(<$($param),*>)? std::fmt::Debug for $proxy $(<$($param),*>)? {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, concat!(stringify!($proxy), "({})"), self.reference.describe(&$noun))
            }
        }

        /// Asks the manager to keep the object until this is read.
        impl $(<$($param),*>)? serde::Serialize for $proxy $(<$($param),*>)? {
            fn serialize<Z: serde::Serializer>(&self, serializer: Z) -> Result<Z::Ok, Z::Error> {
                self.reference.serialize($tag, serializer)
            }
        }

        /// Connects to the manager unless this process is connected.
        impl<'de $(, $($param),*)?> serde::Deserialize<'de> for $proxy $(<$($param),*>)? {
            fn deserialize<Z: serde::Deserializer<'de>>(deserializer: Z) -> Result<Self, Z::Error> {
                $crate::manager::reference::Reference::deserialize($tag, deserializer).map(Self::over)
            }
        }
    };
}

pub(super) use proxy;

impl Reference {
    /// In plain words.
    pub(super) fn describe(&self, kind: &dyn fmt::Display) -> String {
        About { kind, reference: self }.to_string()
    }
}
