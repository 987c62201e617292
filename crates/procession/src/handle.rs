//! Handles as serde sees them: a few bytes that the core makes and reads.

use std::io;

use procession_core::shm::{OpenError, transfer};
use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Serialises a handle's bytes.
///
/// The serialiser may drop the text of an error; [`transfer::failure`] has the error itself.
pub(crate) fn serialize<S: Serializer, const N: usize>(
    handle: io::Result<[u8; N]>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let handle = handle.map_err(OpenError::system("handing out a descriptor"));
    handle.map_err(|error| S::Error::custom(transfer::fail(error)))?.as_slice().serialize(serializer)
}

/// Reads a handle's bytes and opens what it leads to. Errors as for [`serialize`].
pub(crate) fn deserialize<'de, D: Deserializer<'de>, T, const N: usize>(
    deserializer: D,
    open: impl FnOnce(&[u8; N]) -> Result<T, OpenError>,
) -> Result<T, D::Error> {
    let bytes = Vec::<u8>::deserialize(deserializer)?;
    let handle = bytes.as_slice().try_into().map_err(|_| OpenError::Malformed("wrong length"));
    handle.and_then(open).map_err(|error| D::Error::custom(transfer::fail(error)))
}
