//! Values as bytes, by postcard. A failed allocation is an error, not the end of the process.

mod error;
mod shape;
mod strict;

use postcard::ser_flavors::Flavor;
use serde::Serialize;

pub use error::SerializeError;
pub(crate) use shape::Shape;

/// Appends a value's bytes; on failure the buffer is as before.
#[inline]
pub(crate) fn append<T: Serialize + ?Sized>(value: &T, buffer: &mut Vec<u8>) -> Result<(), SerializeError> {
    let start = buffer.len();
    let mut serializer = postcard::Serializer { output: Append(&mut *buffer) };
    value.serialize(strict::Strict(&mut serializer)).inspect_err(|_| buffer.truncate(start))
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
