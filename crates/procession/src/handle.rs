//! Handles of the core's objects as serialised bytes.

use std::fmt;
use std::io;

use procession_core::objects::Handle;
use procession_core::shm::{OpenError, transfer};
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde::ser::{self, Serializer};

/// The most bytes that any object's handle has: a pool's three.
const MOST: usize = 3 * Handle::LEN;

/// Serialises what an object's `to_bytes` returned.
///
/// The serialiser may drop the text of an error; [`transfer::failure`] has the error itself.
pub(crate) fn serialize<S: Serializer>(
    bytes: io::Result<impl AsRef<[u8]>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let bytes = bytes.map_err(OpenError::system("handing out a descriptor"));
    serializer.serialize_bytes(bytes.map_err(|error| ser::Error::custom(transfer::fail(error)))?.as_ref())
}

/// Reads bytes back and opens what they refer to. Errors as for [`serialize`].
pub(crate) fn deserialize<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    open: impl FnOnce(&[u8]) -> Result<T, OpenError>,
) -> Result<T, D::Error> {
    struct Bytes;
    impl<'de> Visitor<'de> for Bytes {
        type Value = Vec<u8>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("the handle of a shared object")
        }

        fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
            if bytes.len() > MOST { Err(E::invalid_length(bytes.len(), &self)) } else { Ok(bytes.to_vec()) }
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<u8>, A::Error> {
            let mut bytes = Vec::new();
            while let Some(byte) = seq.next_element()? {
                if bytes.len() == MOST {
                    return Err(de::Error::invalid_length(MOST + 1, &self));
                }
                bytes.push(byte);
            }
            Ok(bytes)
        }
    }
    let bytes = deserializer.deserialize_bytes(Bytes)?;
    open(&bytes).map_err(|error| de::Error::custom(transfer::fail(error)))
}

/// Runs a serialiser, or its opposite, whose error is to be reported as text: the reason that a
/// handle gave, if one failed. The format's own error may not hold it.
pub(crate) fn with_reason<T, E: fmt::Display>(run: impl FnOnce() -> Result<T, E>) -> Result<T, String> {
    let _stale = transfer::failure();
    run().map_err(|error| transfer::failure().map_or_else(|| error.to_string(), |reason| reason.to_string()))
}

/// Serialisation by the type's own `to_bytes` and `from_bytes`.
macro_rules! travels {
    ($type:ident $(<$param:ident: $bound:path>)?) => {
        /// As [`Self::to_bytes`], or inside a channel that carries descriptors with the descriptor attached.
        impl $(<$param: $bound>)? serde::Serialize for $type $(<$param>)? {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                $crate::handle::serialize(self.to_bytes(), serializer)
            }
        }

        impl<'de $(, $param: $bound)?> serde::Deserialize<'de> for $type $(<$param>)? {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                $crate::handle::deserialize(deserializer, Self::from_bytes)
            }
        }
    };
}

/// `to_bytes` and `from_bytes` for a type that consists of one core object.
macro_rules! one_handle {
    ($open:expr) => {
        /// A handle on this object for another process on this machine: the form in which it is serialised. It can be opened
        /// while this process lives, or while the opening process has the object open itself.
        ///
        /// # Errors
        /// Out of descriptors.
        pub fn to_bytes(&self) -> std::io::Result<Vec<u8>> {
            Ok(self.core().send()?.to_bytes().to_vec())
        }

        /// Opens what [`Self::to_bytes`] made.
        ///
        /// # Errors
        /// Its process is gone; the bytes are damaged or belong to something else; the system refused.
        pub fn from_bytes(bytes: &[u8]) -> Result<Self, procession_core::shm::OpenError> {
            procession_core::objects::Handle::from_bytes(bytes).and_then($open)
        }
    };
}

pub(crate) use {one_handle, travels};
