//! Plain data without a lock.

use std::marker::PhantomData;

use bytemuck::Pod;
use procession_core::objects::Block;

use super::{Layout, sized};
use crate::handle::{one_handle, travels};
use crate::sync::CreateError;

/// A value shared between processes without a lock, as Python's `multiprocessing.RawValue`.
///
/// One of 1, 2, 4 or 8 bytes is read and written whole; a larger one may be seen half-written. There is no order between
/// different values, and no read-modify-write: use [`super::Value`] for both.
#[derive(Clone, Debug)]
pub struct RawValue<T> {
    block: Block,
    value: PhantomData<T>,
}

travels!(RawValue<T: Pod>);

impl<T: Pod> RawValue<T> {
    /// Shares `value`.
    ///
    /// # Errors
    /// Out of memory, of descriptors or of mappings.
    pub fn new(value: T) -> Result<Self, CreateError> {
        let raw = RawValue { block: Block::new(Layout::<T>::SIZE, 1)?, value: PhantomData };
        raw.set(value);
        Ok(raw)
    }

    /// The value now.
    pub fn get(&self) -> T {
        let mut value = T::zeroed();
        self.block.read(0, bytemuck::bytes_of_mut(&mut value));
        value
    }

    /// Replaces the value.
    pub fn set(&self, value: T) {
        self.block.write(0, bytemuck::bytes_of(&value));
    }

    /// Where the value lies. Others may change it at any time; it stays there while this handle or a clone exists.
    pub fn as_ptr(&self) -> *mut T {
        self.block.data().cast().as_ptr()
    }

    one_handle!(|handle| {
        let block = sized::<T>(Block::open(handle)?)?;
        if block.len() != 1 {
            return Err(procession_core::shm::OpenError::Malformed("an array, not a value"));
        }
        Ok(RawValue { block, value: PhantomData })
    });

    fn core(&self) -> &Block {
        &self.block
    }
}

/// An array shared between processes without a lock, as Python's `multiprocessing.RawArray`. Its length is fixed and may be 0.
///
/// An element of 1, 2, 4 or 8 bytes is read and written whole; a larger one may be seen half-written, and there is no order
/// between different elements.
#[derive(Clone, Debug)]
pub struct RawArray<T> {
    block: Block,
    elements: PhantomData<T>,
}

travels!(RawArray<T: Pod>);

impl<T: Pod> RawArray<T> {
    /// `len` elements of zero bytes.
    ///
    /// # Errors
    /// More than this machine can give now; out of descriptors or of mappings.
    pub fn new(len: usize) -> Result<Self, CreateError> {
        Ok(RawArray { block: Block::new(Layout::<T>::SIZE, len)?, elements: PhantomData })
    }

    /// An array of these elements.
    ///
    /// # Errors
    /// As [`RawArray::new`].
    pub fn from_slice(elements: &[T]) -> Result<Self, CreateError> {
        let array = Self::new(elements.len())?;
        array.write(0, elements);
        Ok(array)
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.block.len()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.block.is_empty()
    }

    /// Element number `index`.
    ///
    /// # Panics
    /// When there is no such element.
    #[track_caller]
    pub fn get(&self, index: usize) -> T {
        let mut value = T::zeroed();
        self.block.read(index, bytemuck::bytes_of_mut(&mut value));
        value
    }

    /// Replaces element number `index`.
    ///
    /// # Panics
    /// When there is no such element.
    #[track_caller]
    pub fn set(&self, index: usize, value: T) {
        self.block.write(index, bytemuck::bytes_of(&value));
    }

    /// Copies the elements from number `first` on into `elements`.
    ///
    /// # Panics
    /// When there are not that many.
    #[track_caller]
    pub fn read(&self, first: usize, elements: &mut [T]) {
        self.block.read(first, bytemuck::cast_slice_mut(elements));
    }

    /// Copies `elements` to number `first` and on.
    ///
    /// # Panics
    /// When there are not that many.
    #[track_caller]
    pub fn write(&self, first: usize, elements: &[T]) {
        self.block.write(first, bytemuck::cast_slice(elements));
    }

    /// A copy of all elements.
    pub fn to_vec(&self) -> Vec<T> {
        let mut elements = vec![T::zeroed(); self.len()];
        self.read(0, &mut elements);
        elements
    }

    /// The elements one after the other, each read when it is asked for.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = T> + '_ {
        (0..self.len()).map(|index| self.get(index))
    }

    /// Where the first element lies. Others may change the elements at any time; they stay there while this handle or a clone
    /// exists.
    pub fn as_ptr(&self) -> *mut T {
        self.block.data().cast().as_ptr()
    }

    one_handle!(|handle| {
        let block = sized::<T>(Block::open(handle)?)?;
        Ok(RawArray { block, elements: PhantomData })
    });

    fn core(&self) -> &Block {
        &self.block
    }
}
