//! Data in shared memory, after Python's `multiprocessing`.
//!
//! [`Value`] and [`Array`] have a lock beside their data, [`RawValue`] and [`RawArray`] have none. Elements are plain data
//! ([`bytemuck::Pod`]): numbers, and structs of them. The memory is gone with the last handle on it, however the processes
//! ended; only [`SharedMemory`] has a name and stays until it is unlinked.

mod array;
mod locked;
mod memory;
mod raw;
mod value;

pub use array::Array;
pub use bytemuck::Pod;
pub use locked::{ArrayGuard, ValueGuard};
pub use memory::SharedMemory;
pub use procession_core::shm::posix::SharedMemoryError;
pub use raw::{RawArray, RawValue};
pub use value::Value;

use procession_core::objects::{Block, Handle};
use procession_core::shm::OpenError;

/// The elements of a block as the caller sees them.
struct Layout<T>(std::marker::PhantomData<T>);

impl<T: Pod> Layout<T> {
    /// The size of an element in bytes; a type that no block can hold does not compile.
    const SIZE: usize = {
        assert!(size_of::<T>() > 0, "a type without bytes cannot be shared");
        assert!(align_of::<T>() <= Block::ALIGN, "a type aligned to more than 64 bytes");
        size_of::<T>()
    };
}

/// Opens a block with a lock and checks that its elements have the size of `T`.
fn open_locked<T: Pod>(handle: Handle) -> Result<Block, OpenError> {
    // SAFETY: for `Value` and `Array`, which use the data through `Locked` and `Held` alone.
    sized::<T>(unsafe { Block::open_with_lock(handle) }?)
}

/// Checks that the block's elements have the size of `T`.
fn sized<T: Pod>(block: Block) -> Result<Block, OpenError> {
    if block.element() != Layout::<T>::SIZE {
        return Err(OpenError::Malformed("its elements have another size"));
    }
    Ok(block)
}
