//! The buffer that each thread reuses for small messages.

use std::cell::Cell;

/// A buffer larger than this is not kept.
const KEPT: usize = 1 << 20;

thread_local! {
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Runs `use_it` with an empty buffer. Nested uses (an object that uses the queue while it is pickled) get one of their own.
#[inline]
pub(crate) fn with_buffer<R>(use_it: impl FnOnce(&mut Vec<u8>) -> R) -> R {
    // `None` while the thread ends.
    let mut buffer = BUFFER.try_with(Cell::take).unwrap_or_default();
    buffer.clear();
    let result = use_it(&mut buffer);
    if buffer.capacity() <= KEPT {
        let _ = BUFFER.try_with(|kept| kept.set(buffer));
    }
    result
}
