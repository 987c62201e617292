//! Messages as bytes: postcard, through a buffer that each thread reuses.

use std::any::type_name;
use std::cell::RefCell;

use postcard::ser_flavors::Flavor;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{GetError, PutError};

/// A buffer larger than this is not kept.
const KEPT: usize = 1 << 20;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Runs `use_it` with an empty buffer. Nested uses (a message that puts another one while it is serialised) get one
/// of their own.
#[inline]
pub(super) fn with_buffer<R>(use_it: impl FnOnce(&mut Vec<u8>) -> R) -> R {
    let mut buffer = BUFFER.take();
    buffer.clear();
    let result = use_it(&mut buffer);
    if buffer.capacity() <= KEPT {
        BUFFER.replace(buffer);
    }
    result
}

/// Appends a message's bytes.
#[inline]
pub(super) fn encode<T: Serialize + ?Sized>(value: &T, buffer: &mut Vec<u8>) -> Result<(), PutError> {
    let start = buffer.len();
    postcard::serialize_with_flavor(value, Append(&mut *buffer)).map_err(|error| {
        buffer.truncate(start);
        PutError::Serialize(error)
    })
}

/// Where postcard writes: the end of a vector.
struct Append<'a>(&'a mut Vec<u8>);

impl Flavor for Append<'_> {
    type Output = ();

    #[inline]
    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.push(byte);
        Ok(())
    }

    #[inline]
    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

/// Reads a message, all of it.
#[inline]
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, GetError> {
    let failed = |source| GetError::Deserialize { len: bytes.len(), expected: type_name::<T>(), source };
    match postcard::take_from_bytes(bytes).map_err(failed)? {
        (value, []) => Ok(value),
        _ => Err(failed(postcard::Error::DeserializeBadEncoding)),
    }
}
