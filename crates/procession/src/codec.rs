//! Values as bytes, by postcard. Want of memory is an error, not the end of the process.

use postcard::ser_flavors::Flavor;
use serde::Serialize;

/// Appends a value's bytes; on failure the buffer is as before.
///
/// # Errors
/// [`postcard::Error::SerializeBufferFull`] is want of memory and nothing else, which [`out_of_memory`] tells.
#[inline]
pub(crate) fn append<T: Serialize + ?Sized>(value: &T, buffer: &mut Vec<u8>) -> postcard::Result<()> {
    let start = buffer.len();
    postcard::serialize_with_flavor(value, Append(&mut *buffer)).inspect_err(|_| buffer.truncate(start))
}

/// Whether that is why [`append`] failed, as an error of the system.
pub(crate) fn out_of_memory(error: &postcard::Error) -> Option<std::io::Error> {
    (*error == postcard::Error::SerializeBufferFull).then(|| std::io::ErrorKind::OutOfMemory.into())
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
