//! Values as bytes, by postcard. A failed allocation is an error, not the end of the process.

mod error;
mod readable;
mod shape;
mod strict;

use postcard::ser_flavors::Flavor;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use error::SerializeError;
pub(crate) use readable::Readable;
pub(crate) use shape::Shape;

/// Appends a value's bytes; on failure the buffer is as before.
#[inline]
pub(crate) fn append<T: Serialize + ?Sized>(value: &T, buffer: &mut Vec<u8>) -> Result<(), SerializeError> {
    let start = buffer.len();
    let mut serializer = postcard::Serializer { output: Append(&mut *buffer) };
    value.serialize(strict::Strict(&mut serializer)).inspect_err(|_| buffer.truncate(start))
}

/// Reads a value from the beginning of the bytes. Returns it with the rest of them.
#[inline]
pub(crate) fn take<T: DeserializeOwned>(bytes: &[u8]) -> Result<(T, &[u8]), String> {
    postcard::take_from_bytes(bytes).map_err(explain::<T>)
}

/// Why a value cannot be read. Where its type asks for what postcard does not have, postcard does not say for what.
#[cold]
fn explain<T: DeserializeOwned>(error: postcard::Error) -> String {
    if error == postcard::Error::WontImplement
        && let Err(problem) = Shape::of::<T>().check::<T>()
    {
        return problem.to_string();
    }
    error.to_string()
}

/// Where postcard writes: the end of a vector.
struct Append<'a>(&'a mut Vec<u8>);

impl Append<'_> {
    #[inline]
    fn make_room(&mut self, len: usize) -> postcard::Result<()> {
        self.0.try_reserve(len).map_err(|_| postcard::Error::SerializeBufferFull)
    }
}

impl Flavor for Append<'_> {
    type Output = ();

    #[inline]
    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.make_room(1)?;
        self.0.push(byte);
        Ok(())
    }

    #[inline]
    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.make_room(bytes.len())?;
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}
