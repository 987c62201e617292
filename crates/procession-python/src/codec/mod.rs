//! Python objects as messages.
//!
//! A message begins with one byte that says what follows ([`tag`]). What programs mostly send (numbers, text, bytes, and tuples,
//! lists and dicts of them) is written and read by hand ([`native`]); all else is a pickle ([`pickle`]), with the large buffers
//! of protocol 5 behind it. A tag that this version does not know is an error of that one message.
//!
//! When the program has replaced CPython's pickler, everything goes through the replacement: see
//! [`replaced`].

mod buffer;
mod format;
mod gather;
mod key_cache;
mod msgpack;
mod native;
mod out_of_band;
mod pickle;
mod replaced;
mod zero_copy;

use procession_core::queue::Message;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

pub(crate) use self::buffer::with_buffer;
use self::format::tag;
pub(crate) use self::format::{ALIGNMENT, Retry, retrying};
pub(crate) use self::gather::{Encoded, Parts};
pub(crate) use self::replaced::is_replaced;
pub(crate) use self::zero_copy::make_private;

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    replaced::register(module)?;
    module.add_function(wrap_pyfunction!(pickle_of, module)?)
}

/// The pickle of a message's object.
#[pyfunction]
#[pyo3(name = "_pickle_of")]
fn pickle_of<'py>(py: Python<'py>, message: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    match message {
        [tag::PICKLE_WITH_BUFFERS, ..] => replaced::dumps(&pickle::decode_small(py, message)?),
        _ => replaced::pickle_of(py, message),
    }
}

/// How the objects of a queue become bytes: the argument `codec`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Codec {
    /// `None`: any object that can be pickled.
    Objects,
    /// `"msgpack"`: plain data, and the message is nothing else.
    MessagePack,
    /// `"bytes"`: bytes as they are.
    Bytes,
}

impl FromPyObject<'_, '_> for Codec {
    type Error = PyErr;

    fn extract(value: Borrowed<'_, '_, PyAny>) -> PyResult<Self> {
        match value.extract::<Option<&str>>() {
            Ok(None) => Ok(Codec::Objects),
            Ok(Some("msgpack")) => Ok(Codec::MessagePack),
            Ok(Some("bytes")) => Ok(Codec::Bytes),
            _ => Err(PyValueError::new_err("codec is None, \"msgpack\" or \"bytes\"")),
        }
    }
}

impl Codec {
    /// As the argument says it.
    pub(crate) fn name(self) -> Option<&'static str> {
        match self {
            Codec::Objects => None,
            Codec::MessagePack => Some("msgpack"),
            Codec::Bytes => Some("bytes"),
        }
    }

    /// Appends a message to `buffer`, or makes parts where that saves a copy; then, and after an error, the buffer is as
    /// before. Runs the object's own code when it has to be pickled.
    ///
    /// # Errors
    /// What pickling raised, or why the codec has nothing for the object.
    #[inline]
    pub(crate) fn encode(self, object: &Bound<'_, PyAny>, buffer: &mut Vec<u8>) -> PyResult<Encoded> {
        if self != Codec::Objects || replaced::is_replaced() {
            return self.encode_otherwise(object, buffer);
        }
        let start = buffer.len();
        match native::encode(object, buffer) {
            native::Outcome::Encoded => Ok(Encoded::InBuffer),
            native::Outcome::Large(tag) => Parts::of_one(object, tag).map(Encoded::InParts),
            native::Outcome::NotNative => {
                buffer.truncate(start);
                pickle::encode(object, buffer)
            }
        }
    }

    fn encode_otherwise(self, object: &Bound<'_, PyAny>, buffer: &mut Vec<u8>) -> PyResult<Encoded> {
        if self == Codec::Objects {
            return pickle::encode(object, buffer);
        }
        if self == Codec::Bytes {
            return Parts::of_bytes(object, buffer);
        }
        let start = buffer.len();
        match msgpack::encode(object, buffer) {
            Ok(()) => Ok(Encoded::InBuffer),
            Err(error) => {
                buffer.truncate(start);
                Err(error)
            }
        }
    }

    /// The message that is this pickle.
    pub(crate) fn of_pickle(pickle: &[u8]) -> Vec<u8> {
        [&[tag::PICKLE], pickle].concat()
    }

    /// Decodes a message. The bytes must be this process's own: what lies in shared memory a faulty peer may change between a check
    /// and its use.
    ///
    /// # Errors
    /// `UnpicklingError` for bytes that are no message, or what unpickling raised.
    #[inline]
    pub(crate) fn decode<'py>(self, py: Python<'py>, message: &[u8]) -> PyResult<Bound<'py, PyAny>> {
        if self == Codec::Objects
            && replaced::is_replaced()
            && let Some(object) = replaced::decode_any(py, message)?
        {
            return Ok(object);
        }
        match (self, message) {
            (Codec::Objects, [tag::PICKLE, ..]) => pickle::decode(py, message),
            (Codec::Objects, [tag::PICKLE_WITH_BUFFERS, ..]) => pickle::decode_small(py, message),
            (Codec::Objects, [tag::REPLACED, content @ ..]) => replaced::decode_others(py, content),
            (Codec::Objects, _) => native::decode(py, message),
            (Codec::MessagePack, _) => msgpack::decode(py, message),
            (Codec::Bytes, _) => Ok(PyBytes::new(py, message).into_any()),
        }
    }

    /// Decodes a large message where it lies. Its buffers may stay there for as long as the objects that use them.
    ///
    /// # Errors
    /// As [`Codec::decode`].
    pub(crate) fn decode_message(self, py: Python<'_>, message: Message) -> PyResult<Bound<'_, PyAny>> {
        self.decode_message_from(py, message, 0, &mut |_| false)
    }

    /// [`Codec::decode_message`] of a message before which others' bytes lie, as many as `start` says: a multiple of
    /// [`ALIGNMENT`], so that buffers lie as well as they would alone. It is read once more if `retry` says so.
    pub(crate) fn decode_message_from<'py>(
        self,
        py: Python<'py>,
        message: Message,
        start: usize,
        retry: Retry<'_>,
    ) -> PyResult<Bound<'py, PyAny>> {
        match (self, message.get(start..).unwrap_or_default()) {
            (Codec::Objects, content) if replaced::is_replaced() => {
                let content = content.to_vec();
                retrying(retry, || self.decode(py, &content))
            }
            (Codec::Objects, [tag::STR, content @ ..]) => native::large_str(py, content),
            (Codec::Objects, [tag::BYTES, content @ ..]) | (Codec::Bytes, content) => {
                native::large_bytes(py, content)
            }
            (Codec::Objects, [tag::PICKLE, ..]) => pickle::decode_in_place(py, message, start, retry),
            (Codec::Objects, [tag::PICKLE_WITH_BUFFERS, ..]) => {
                pickle::decode_with_buffers(py, message, start, retry)
            }
            (Codec::Objects | Codec::MessagePack, content) => {
                let content = content.to_vec();
                drop(message);
                self.decode(py, &content)
            }
        }
    }
}
