//! Values on their way to and from a manager.
//!
//! A manager keeps a value as its bytes and need not know its type. What the handles in it need is kept beside the bytes: the
//! descriptors, so that the value outlives the process that sent it, and references to objects of the same manager.

use std::any::type_name;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use procession_core::shm::transfer;
use procession_sys::scoped::Scoped;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::client::ManagerClient;
use super::error::CallError;
use super::wire::{Encoded, Number, Token};
use crate::codec::{Shape, append, take};

/// How handles in a value travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HandleTransport {
    /// With their descriptors attached: over a local socket.
    Descriptors,
    /// As what they are in a queue: over TCP on one machine.
    Tickets,
    /// Not at all: to another machine.
    Nothing,
}

/// How a value is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// By postcard: for who reads it as the type that it has.
    Plain,
    /// By MessagePack, which says what each part is: for who may read it as another type.
    Described,
}

impl Form {
    fn write<T: Serialize + ?Sized>(self, value: &T, bytes: &mut Vec<u8>) -> Result<(), AnyError> {
        match self {
            Form::Plain => append(value, bytes)?,
            // With the names of fields: `skip_serializing_if` may leave out any of them.
            Form::Described => {
                let mut writer = rmp_serde::Serializer::new(Growing(bytes)).with_struct_map();
                value.serialize(&mut writer)?;
            }
        }
        Ok(())
    }

    /// Reads a value that takes all bytes.
    fn read<T: DeserializeOwned>(self, mut bytes: &[u8]) -> Result<T, AnyError> {
        let value = match self {
            Form::Plain => {
                let (value, rest) = take(bytes)?;
                bytes = rest;
                value
            }
            Form::Described => T::deserialize(&mut rmp_serde::Deserializer::new(&mut bytes))?,
        };
        match bytes.len() {
            0 => Ok(value),
            rest => Err(format!("{rest} bytes are left after it").into()),
        }
    }
}

type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// Where MessagePack writes. Want of memory is an error.
struct Growing<'a>(&'a mut Vec<u8>);

impl io::Write for Growing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_reserve(bytes.len())?;
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

thread_local! {
    static ENCODING: Scoped<Encoding> = const { Scoped::empty() };
    static OPENING: Scoped<Opening> = const { Scoped::empty() };
}

/// The value that is being serialised.
struct Encoding {
    manager: Token,
    objects: Vec<Number>,
}

/// The value that is being deserialised.
struct Opening {
    client: Arc<ManagerClient>,
    session: Token,
    granted: Vec<Number>,
}

/// Refuses values of a type that could not be read back from [`Form::Plain`].
pub(super) fn check_readable<T: DeserializeOwned>() -> Result<(), CallError> {
    let type_name = type_name::<T>();
    Shape::of::<T>().check::<T>().map_err(|cause| CallError::Serialize { type_name, cause: cause.into() })
}

/// Serialises a value for a manager.
pub(super) fn encode<T: Serialize + ?Sized>(
    manager: Token,
    transport: HandleTransport,
    form: Form,
    value: &T,
) -> Result<Encoded, EncodeError> {
    let encoding = Scoped::enter(&ENCODING, Encoding { manager, objects: Vec::new() });
    let _stale = transfer::failure();
    let mut bytes = Vec::new();
    let (result, descriptors) = match transport {
        HandleTransport::Tickets => (form.write(value, &mut bytes), Vec::new()),
        _ => transfer::collect(|| form.write(value, &mut bytes)),
    };
    result.map_err(|error| match transfer::failure() {
        Some(cause) => EncodeError::Handle(cause),
        None => EncodeError::Serialize(error),
    })?;
    if transport == HandleTransport::Nothing && !descriptors.is_empty() {
        return Err(EncodeError::OtherMachine);
    }
    let objects = encoding.leave().map(|encoding| encoding.objects).unwrap_or_default();
    Ok(Encoded { bytes, descriptors, objects })
}

/// Why a value cannot be handed over.
pub(super) enum EncodeError {
    Serialize(AnyError),
    Handle(procession_core::shm::OpenError),
    OtherMachine,
}

impl EncodeError {
    /// As the error of a call.
    pub(super) fn of<T: ?Sized>(self, client: &ManagerClient) -> CallError {
        let type_name = type_name::<T>();
        match self {
            EncodeError::Serialize(cause) => CallError::Serialize { type_name, cause },
            EncodeError::Handle(cause) => CallError::Send { type_name, cause },
            EncodeError::OtherMachine => CallError::NotOnThisMachine {
                address: client.address().clone(),
                what: "a handle of shared memory or of a pipe",
            },
        }
    }
}

impl std::fmt::Display for EncodeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            EncodeError::Serialize(error) => error.fmt(f),
            EncodeError::Handle(error) => error.fmt(f),
            EncodeError::OtherMachine => f.write_str("it has a handle, which cannot go to another machine"),
        }
    }
}

/// Notes a proxy in the value that is being serialised for this manager; whether there is one.
pub(super) fn refer(manager: Token, object: Number) -> bool {
    Scoped::with(&ENCODING, |encoding| match encoding {
        Some(encoding) if encoding.manager == manager => {
            encoding.objects.push(object);
            true
        }
        _ => false,
    })
}

/// Whether a value for some manager is being serialised.
pub(super) fn is_encoding() -> bool {
    Scoped::is_set(&ENCODING)
}

/// A proxy in the value that is being deserialised: its manager, and the session that got a reference for it, if one did.
pub(super) fn granted(object: Number) -> Option<(Arc<ManagerClient>, Option<Token>)> {
    Scoped::with(&OPENING, |opening| {
        let opening = opening?;
        let place = opening.granted.iter().position(|granted| *granted == object);
        let session = place.map(|place| {
            opening.granted.swap_remove(place);
            opening.session
        });
        Some((Arc::clone(&opening.client), session))
    })
}

/// A value from a manager, not yet read. The references that came with it are given back with it.
pub(super) struct Received {
    client: Arc<ManagerClient>,
    session: Token,
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
    granted: Vec<Number>,
}

impl Received {
    /// What a session received.
    pub(super) fn by_session(client: &Arc<ManagerClient>, session: Token, encoded: Encoded) -> Received {
        let Encoded { bytes, descriptors, objects } = encoded;
        Received { client: Arc::clone(client), session, bytes, descriptors, granted: objects }
    }

    /// What a manager itself received from a client, whose session has the references.
    pub(super) fn of_client(client: &Arc<ManagerClient>, encoded: Encoded) -> Received {
        let Encoded { bytes, descriptors, .. } = encoded;
        let client = Arc::clone(client);
        Received { client, session: Token::default(), bytes, descriptors, granted: Vec::new() }
    }

    /// Reads the value.
    pub(super) fn open<T: DeserializeOwned>(self) -> Result<T, CallError> {
        self.open_as(Form::Plain)
    }

    /// Reads the value, which was written so.
    pub(super) fn open_as<T: DeserializeOwned>(mut self, form: Form) -> Result<T, CallError> {
        let opening = Opening {
            client: Arc::clone(&self.client),
            session: self.session,
            granted: std::mem::take(&mut self.granted),
        };
        let opening = Scoped::enter(&OPENING, opening);
        let _stale = transfer::failure();
        let descriptors = std::mem::take(&mut self.descriptors);
        let result = transfer::deliver(descriptors, || form.read::<T>(&self.bytes));
        self.granted = opening.leave().map(|opening| opening.granted).unwrap_or_default();
        let (type_name, len) = (type_name::<T>(), self.bytes.len());
        result.map_err(|cause| match transfer::failure() {
            Some(cause) => CallError::Open { type_name, cause },
            None => CallError::Deserialize { type_name, len, cause },
        })
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        for object in std::mem::take(&mut self.granted) {
            self.client.let_go(self.session, object, 1);
        }
    }
}
