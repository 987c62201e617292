//! What a manager and its clients say to each other.
//!
//! A process that uses a manager has a *session* there: its first connection, which stays open, says [`Request::Begin`]; each
//! further one says [`Request::Join`] and then carries one call after another. Every request is answered, except for
//! [`Request::LetGo`] and [`Request::Leave`].

use std::os::fd::{AsFd, OwnedFd};

use procession_core::shm::{FdRef, transfer};
use procession_core::shm::{ObjectId, OpenError};
use serde::de::{self, Deserializer, Visitor};
use serde::ser::{self, SerializeTuple, Serializer};
use serde::{Deserialize, Serialize};

/// Grows with each change of what is said.
pub(super) const VERSION: u32 = 1;

/// A random number that names a manager or a session.
pub(super) type Token = [u8; 16];

pub(super) fn token() -> Token {
    ObjectId::random().to_bytes()
}

/// The number of an object among its manager's.
pub(super) type Number = u64;

/// What a client asks for.
#[derive(Serialize, Deserialize)]
pub(super) enum Request {
    /// Begin a session, which lasts as long as this connection.
    Begin { version: u32, machine: Machine },
    /// Use this connection for calls of a session.
    Join { session: Token },
    /// References that the session no longer has, and tickets of handles that nobody will open any more.
    LetGo { objects: Vec<(Number, u32)>, tickets: Vec<u64> },
    /// The last answer was received; this connection will be closed.
    Leave,
    /// Make an object, or find the one that has the name. The session gets a reference.
    Make { kind: Kind, name: Option<String>, arguments: Encoded },
    /// A reference to an object.
    Open { object: Number },
    /// Keep an object for a handle of it that is on its way.
    Hold { object: Number },
    /// A call of an object.
    Call { object: Number, operation: Operation },
    /// Forget a name; whether there was one.
    Forget { name: String },
    /// How many objects there are.
    Count,
    /// End.
    Shutdown,
}

impl Request {
    /// The objects that it names, itself or in its values.
    pub(super) fn objects(&self) -> Vec<Number> {
        let (object, values) = match self {
            Request::Make { arguments, .. } => (None, vec![arguments]),
            Request::Open { object } | Request::Hold { object } => (Some(*object), Vec::new()),
            Request::Call { object, operation } => (Some(*object), operation.values()),
            _ => (None, Vec::new()),
        };
        object.into_iter().chain(values.into_iter().flat_map(|value| value.objects.iter().copied())).collect()
    }
}

/// What an object is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Kind {
    Dict,
    List,
    Namespace,
    /// A registered type, by its name.
    Service(String),
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Kind::Dict => f.write_str("dict"),
            Kind::List => f.write_str("list"),
            Kind::Namespace => f.write_str("namespace"),
            Kind::Service(name) => write!(f, "service {name:?}"),
        }
    }
}

/// What an object is to do. Each message has values of its own type `Encoded`.
#[derive(Serialize, Deserialize)]
pub(super) enum Operation {
    Table(TableOperation),
    Sequence(SequenceOperation),
    Service(Encoded),
}

impl Operation {
    fn values(&self) -> Vec<&Encoded> {
        use SequenceOperation as S;
        use TableOperation as T;
        match self {
            Operation::Service(value)
            | Operation::Table(T::Set(_, value) | T::Swap(_, value) | T::GetOrInsert(_, value))
            | Operation::Table(T::Exchange(_, _, value))
            | Operation::Sequence(S::Set(_, value) | S::Exchange(_, _, value))
            | Operation::Sequence(S::Push(value) | S::Insert(_, value)) => vec![value],
            Operation::Table(T::Extend(pairs)) => pairs.iter().map(|(_, value)| value).collect(),
            Operation::Sequence(S::Extend(values) | S::Replace(_, values)) => values.iter().collect(),
            Operation::Table(
                T::Get(_)
                | T::Contains(_)
                | T::Remove(_)
                | T::Keys
                | T::Values
                | T::Items
                | T::Clear
                | T::Len,
            )
            | Operation::Sequence(
                S::Get(_) | S::Pop | S::Remove(_) | S::Clear | S::Len | S::Range(..) | S::All,
            ) => Vec::new(),
        }
    }
}

/// Of a dict or namespace.
#[derive(Serialize, Deserialize)]
pub(super) enum TableOperation {
    Get(Bytes),
    Contains(Bytes),
    /// Answers nothing.
    Set(Bytes, Encoded),
    /// Answers the old value.
    Swap(Bytes, Encoded),
    /// Answers the value that the key has then.
    GetOrInsert(Bytes, Encoded),
    /// Sets it if its version is this one, 0 for none; answers whether it was.
    Exchange(Bytes, u64, Encoded),
    Remove(Bytes),
    Keys,
    Values,
    Items,
    Extend(Vec<(Bytes, Encoded)>),
    Clear,
    Len,
}

/// Of a list.
#[derive(Serialize, Deserialize)]
pub(super) enum SequenceOperation {
    Get(u64),
    Set(u64, Encoded),
    /// Sets it if its version is this one; answers whether it was.
    Exchange(u64, u64, Encoded),
    Push(Encoded),
    Pop,
    Insert(u64, Encoded),
    Remove(u64),
    Extend(Vec<Encoded>),
    Clear,
    Len,
    /// So many elements from this one on, as far as there are.
    Range(u64, u64),
    /// All elements, with the version of the list.
    All,
    /// Replaces all elements if the version of the list is this one; answers whether they were.
    Replace(u64, Vec<Encoded>),
}

/// What a manager answers. `V` is a value: [`Encoded`] for who receives it.
pub(super) type Reply<V> = Result<Answer<V>, Refusal>;

#[derive(Serialize, Deserialize)]
pub(super) enum Answer<V> {
    Welcome(Welcome),
    Done,
    Bool(bool),
    Count(u64),
    /// An object, of which the session has got a reference.
    Object(Number),
    /// The ticket of a handle.
    Ticket(u64),
    /// A value, and its version.
    One(Option<(V, u64)>),
    /// Values, and the version of what has them.
    Many(Vec<V>, u64),
    Keys(Vec<Bytes>),
    Pairs(Vec<(Bytes, V)>),
}

impl<V> Answer<V> {
    /// With each value changed.
    pub(super) fn map<W>(self, change: impl Fn(V) -> W) -> Answer<W> {
        match self {
            Answer::Welcome(welcome) => Answer::Welcome(welcome),
            Answer::Done => Answer::Done,
            Answer::Bool(bool) => Answer::Bool(bool),
            Answer::Count(count) => Answer::Count(count),
            Answer::Object(object) => Answer::Object(object),
            Answer::Ticket(ticket) => Answer::Ticket(ticket),
            Answer::One(one) => Answer::One(one.map(|(value, version)| (change(value), version))),
            Answer::Many(many, version) => Answer::Many(many.into_iter().map(change).collect(), version),
            Answer::Keys(keys) => Answer::Keys(keys),
            Answer::Pairs(pairs) => {
                Answer::Pairs(pairs.into_iter().map(|(key, value)| (key, change(value))).collect())
            }
        }
    }
}

/// The answer to [`Request::Begin`].
#[derive(Serialize, Deserialize)]
pub(super) struct Welcome {
    pub(super) manager: Token,
    pub(super) session: Token,
    /// The manager's process: `Identity::to_bits`.
    pub(super) process: u64,
    /// The machine it runs on.
    pub(super) machine: Machine,
}

/// A running system and the pid namespace of a process in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Machine {
    boot: String,
    pid_namespace: u64,
}

impl Machine {
    /// This one; an error is the system's, out of descriptors, say.
    pub(super) fn this() -> std::io::Result<Self> {
        Ok(Machine {
            boot: std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?,
            pid_namespace: procession_sys::identity::pid_namespace()?,
        })
    }
}

#[cfg(test)]
impl Machine {
    /// None that there is.
    pub(super) fn another() -> Self {
        Machine { boot: "another".into(), pid_namespace: 1 }
    }
}

/// Why a manager did not do what it was asked.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Refusal {
    /// The client speaks another version.
    Version(u32),
    /// The session has ended.
    NoSession,
    /// There is no such object.
    Gone,
    /// The object is of another kind.
    Kind(Kind),
    /// No type is registered under that name; these are.
    NotRegistered(Vec<String>),
    /// The list has no element there, but only so many.
    Index(u64, u64),
    /// A handler panicked.
    Panicked { message: String, location: Option<String> },
    /// The request, or its value, cannot be read.
    Unreadable(String),
    /// The answer cannot be handed over.
    Answer(String),
}

/// A value as its bytes, with what its handles need: the descriptors, by their place in its bytes, and the objects
/// of the same manager that it refers to.
#[derive(Debug, Default)]
pub(super) struct Encoded {
    pub(super) bytes: Vec<u8>,
    pub(super) descriptors: Vec<OwnedFd>,
    pub(super) objects: Vec<Number>,
}

/// Inside of a message that carries descriptors.
impl Serialize for Encoded {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut places = Vec::with_capacity(self.descriptors.len());
        for descriptor in &self.descriptors {
            let place = match transfer::attach(descriptor.as_fd()) {
                Ok(Some(FdRef::Attached(place))) => Ok(place),
                Ok(_) => Err(OpenError::NotAttached),
                Err(error) => Err(OpenError::system("handing out a descriptor")(error)),
            };
            places.push(place.map_err(|error| ser::Error::custom(transfer::fail(error)))?);
        }
        let mut parts = serializer.serialize_tuple(3)?;
        parts.serialize_element(&BytesRef(&self.bytes))?;
        parts.serialize_element(&places)?;
        parts.serialize_element(&self.objects)?;
        parts.end()
    }
}

impl<'de> Deserialize<'de> for Encoded {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (Bytes(bytes), places, objects) = <(Bytes, Vec<u32>, Vec<Number>)>::deserialize(deserializer)?;
        let descriptors = places.into_iter().map(transfer::attached).collect::<Result<_, _>>();
        let descriptors = descriptors.map_err(|error| de::Error::custom(transfer::fail(error)))?;
        Ok(Encoded { bytes, descriptors, objects })
    }
}

/// Bytes that are written and read as one piece.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Bytes(pub(super) Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl Visitor<'_> for Read {
            type Value = Bytes;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Bytes, E> {
                Ok(Bytes(bytes.to_vec()))
            }

            fn visit_byte_buf<E: de::Error>(self, bytes: Vec<u8>) -> Result<Bytes, E> {
                Ok(Bytes(bytes))
            }
        }
        deserializer.deserialize_byte_buf(Read)
    }
}

struct BytesRef<'a>(&'a [u8]);

impl Serialize for BytesRef<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}
