//! Messages as bytes: postcard, through a buffer that each thread reuses.

use std::any::type_name;
use std::cell::Cell;

use procession_core::queue::{Batch, Part, Queue};
use procession_core::shm::tally::Tally;
use procession_core::shm::transfer;
use procession_sys::clock::Deadline;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{GetError, MemoryError, PutError, PutManyError};
use crate::codec::{Shape, append};

/// A buffer larger than this is not kept.
const KEPT: usize = 4 << 20;

/// A batch of more messages than this is not kept.
const KEPT_MESSAGES: usize = 1024;

thread_local! {
    // A thread that ends has neither any more, and allocates.
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    static BATCH: Cell<Batch> = const { Cell::new(Batch::new()) };
}

/// Runs `use_it` with an empty buffer. Nested uses (a message that puts another one while it is serialised) get one
/// of their own.
#[inline]
pub(crate) fn with_buffer<R>(use_it: impl FnOnce(&mut Vec<u8>) -> R) -> R {
    let mut buffer = BUFFER.try_with(Cell::take).unwrap_or_default();
    buffer.clear();
    let result = use_it(&mut buffer);
    if buffer.capacity() <= KEPT {
        let _ = BUFFER.try_with(|kept| kept.set(buffer));
    }
    result
}

/// Appends a message's bytes.
#[inline]
fn encode<T: Serialize + ?Sized>(value: &T, buffer: &mut Vec<u8>) -> Result<(), PutError> {
    transfer::failure();
    append(value, buffer).map_err(|error| match (transfer::failure(), error.out_of_memory()) {
        (Some(reason), _) => PutError::Handle(reason),
        (None, Some(error)) => PutError::Memory(MemoryError::System(error)),
        (None, None) => PutError::Serialize(error),
    })
}

/// Encodes a message and has it put. Handles in a message that is not put are taken back.
#[inline]
pub(super) fn put_encoded<T: Serialize + ?Sized>(
    queue: &Queue,
    value: &T,
    shape: Shape,
    put: impl FnOnce(&[u8]) -> Result<(), PutError>,
) -> Result<(), PutError> {
    shape.check::<T>().map_err(PutError::Serialize)?;
    with_buffer(|buffer| {
        let handles = Tally::begin();
        encode(value, buffer)?;
        put(buffer)?;
        handles.keep(queue.id());
        Ok(())
    })
}

/// Puts messages one after another, encoded a group at a time.
pub(super) fn put_many<'a, T: Serialize + 'a>(
    queue: &Queue,
    shape: Shape,
    messages: impl IntoIterator<Item = &'a T>,
) -> Result<usize, PutManyError> {
    /// A long iterator neither waits for its end nor fills memory.
    const GROUP: usize = 256;
    let readable = shape.check::<T>().map_err(PutError::Serialize);
    readable.map_err(|error| PutManyError { put: 0, error })?;
    let mut messages = messages.into_iter();
    let mut put = 0;
    loop {
        let group = with_buffer(|buffer| {
            let mut ends = Vec::new();
            let mut failed = None;
            let handles = Tally::begin();
            for message in messages.by_ref().take(GROUP) {
                if let Err(error) = encode(message, buffer) {
                    failed = Some(error);
                    break;
                }
                ends.push((buffer.len(), handles.mark()));
            }
            let starts = std::iter::once(0).chain(ends.iter().map(|(end, _)| *end));
            let encoded = starts.zip(&ends).map(|(start, (end, _))| &buffer[start..*end]);
            let result = queue.put_many(encoded, Deadline::Never).map_err(|(n, e)| (n, e.into()));
            let (Ok(put) | Err((put, _))) = result;
            if let Some((_, mark)) = put.checked_sub(1).and_then(|last| ends.get(last)) {
                handles.keep_until(*mark, queue.id());
            }
            let count = result?;
            failed.map_or(Ok(count), |error| Err((count, error)))
        });
        match group {
            Ok(GROUP) => put += GROUP,
            Ok(count) => return Ok(put + count),
            Err((count, error)) => return Err(PutManyError { put: put + count, error }),
        }
    }
}

/// Takes messages that are there, through a batch that each thread reuses. One that cannot be read
/// is an error in its place.
pub(super) fn get_many<T: DeserializeOwned>(
    queue: &Queue,
    max: usize,
    deadline: Deadline,
) -> Result<Vec<Result<T, GetError>>, GetError> {
    let mut batch = BATCH.try_with(Cell::take).unwrap_or_default();
    queue.get_many_into(max, &mut batch, deadline)?;
    let count = batch.len();
    let mut messages = Vec::with_capacity(count);
    messages.extend(batch.drain().map(|message| match message {
        Part::Copied(bytes) => decode(bytes),
        Part::InPlace(message) => decode(&message.into_vec()),
    }));
    batch.clear();
    if count <= KEPT_MESSAGES {
        let _ = BATCH.try_with(|kept| kept.set(batch));
    }
    Ok(messages)
}

/// Reads a message, all of it. The bytes must be this process's own: what lies in shared memory a faulty peer may change between
/// a check (that a text is UTF-8, say) and its use.
#[inline]
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, GetError> {
    transfer::failure();
    let failed = |cause| match transfer::failure() {
        Some(error) => GetError::Handle(error),
        None => GetError::Deserialize { len: bytes.len(), expected: type_name::<T>(), cause },
    };
    match postcard::take_from_bytes(bytes).map_err(failed)? {
        (value, []) => Ok(value),
        _ => Err(failed(postcard::Error::DeserializeBadEncoding)),
    }
}
