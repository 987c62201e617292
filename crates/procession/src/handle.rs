//! Handles as serde sees them: a few bytes that the core makes and reads.

use std::fmt::Display;
use std::io;

use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Serialises a handle's bytes.
pub(crate) fn serialize<S: Serializer, const N: usize>(
    handle: io::Result<[u8; N]>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let handle =
        handle.map_err(|error| S::Error::custom(format!("cannot hand out a descriptor: {error}")))?;
    handle.as_slice().serialize(serializer)
}

/// Reads a handle's bytes and opens what it leads to.
pub(crate) fn deserialize<'de, D: Deserializer<'de>, T, E: Display, const N: usize>(
    deserializer: D,
    open: impl FnOnce(&[u8; N]) -> Result<T, E>,
) -> Result<T, D::Error> {
    let bytes = Vec::<u8>::deserialize(deserializer)?;
    let handle = bytes.as_slice().try_into().map_err(|_| D::Error::custom("not a handle: wrong length"))?;
    open(handle).map_err(D::Error::custom)
}
