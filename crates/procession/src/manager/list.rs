//! `List<T>`.

use std::marker::PhantomData;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::CallError;
use super::reference::{Reference, proxy};
use super::value::Received;
use super::wire::{Answer, Encoded, Operation, SequenceOperation};

/// How many elements [`List::iter`] fetches at a time.
const BLOCK: u64 = 256;

/// A list in a manager's process, as Python's `Manager().list()`: a proxy, see [the module](super) for what all
/// proxies have in common.
///
/// Each call is one step that no other interferes with. Two calls are two steps, and indices may mean other elements by the
/// second: to change elements depending on what they are, use [`List::update`] or [`List::update_all`].
///
/// ```
/// use procession::Manager;
///
/// let manager = Manager::new()?;
/// let list = manager.list::<u32>()?;
/// list.extend(&[3, 1, 2])?;
/// list.push(&5)?;
/// list.update_all(|list| list.sort())?;
/// assert_eq!(list.to_vec()?, [1, 2, 3, 5]);
/// assert_eq!((list.get(0)?, list.pop()?, list.get(3)?), (Some(1), Some(5), None));
/// # Ok::<(), procession::Error>(())
/// ```
pub struct List<T> {
    reference: Arc<Reference>,
    types: PhantomData<fn(T) -> T>,
}

proxy!(List<T>, 2, "list");

impl<T> List<T> {
    /// How many elements there are.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn len(&self) -> Result<usize, CallError> {
        match self.ask(SequenceOperation::Len)? {
            Answer::Count(len) => Ok(usize::try_from(len).unwrap_or(usize::MAX)),
            _ => Err(self.reference.unexpected()),
        }
    }

    /// Whether there is no element.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn is_empty(&self) -> Result<bool, CallError> {
        Ok(self.len()? == 0)
    }

    /// Removes all elements.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn clear(&self) -> Result<(), CallError> {
        self.done(SequenceOperation::Clear)
    }

    fn ask(&self, operation: SequenceOperation) -> Result<Answer<Received>, CallError> {
        self.reference.call(&"list", Operation::Sequence(operation), None)
    }

    fn done(&self, operation: SequenceOperation) -> Result<(), CallError> {
        match self.ask(operation)? {
            Answer::Done => Ok(()),
            _ => Err(self.reference.unexpected()),
        }
    }

    fn whether(&self, operation: SequenceOperation) -> Result<bool, CallError> {
        match self.ask(operation)? {
            Answer::Bool(whether) => Ok(whether),
            _ => Err(self.reference.unexpected()),
        }
    }
}

impl<T: Serialize + DeserializeOwned> List<T> {
    /// Appends an element.
    ///
    /// # Errors
    /// [`CallError`]; [`CallError::Serialize`] also for a type that could not be read back.
    pub fn push(&self, value: &T) -> Result<(), CallError> {
        self.done(SequenceOperation::Push(self.reference.encode(value)?))
    }

    /// Replaces the element at `index`.
    ///
    /// # Errors
    /// [`CallError`]; [`CallError::Index`] when there is none.
    pub fn set(&self, index: usize, value: &T) -> Result<(), CallError> {
        self.done(SequenceOperation::Set(index as u64, self.reference.encode(value)?))
    }

    /// Puts an element before the one at `index`, or at the end if that is the length.
    ///
    /// # Errors
    /// [`CallError`]; [`CallError::Index`] for an index above the length.
    pub fn insert(&self, index: usize, value: &T) -> Result<(), CallError> {
        self.done(SequenceOperation::Insert(index as u64, self.reference.encode(value)?))
    }

    /// Appends elements, in one step.
    ///
    /// # Errors
    /// [`CallError`]; nothing has changed then, unless the manager died.
    pub fn extend<'a>(&self, values: impl IntoIterator<Item = &'a T>) -> Result<(), CallError>
    where
        T: 'a,
    {
        self.done(SequenceOperation::Extend(self.encode_all(values)?))
    }

    fn encode_all<'a>(&self, values: impl IntoIterator<Item = &'a T>) -> Result<Vec<Encoded>, CallError>
    where
        T: 'a,
    {
        values.into_iter().map(|value| self.reference.encode(value)).collect()
    }
}

impl<T: DeserializeOwned> List<T> {
    /// The element at `index`, if there is one.
    ///
    /// # Errors
    /// [`CallError`]; [`CallError::Deserialize`] for an element of another type.
    pub fn get(&self, index: usize) -> Result<Option<T>, CallError> {
        Ok(self.one(SequenceOperation::Get(index as u64))?.map(|(value, _)| value))
    }

    /// Removes the last element, if there is one.
    ///
    /// # Errors
    /// As for [`List::get`]; the element is removed all the same if it cannot be read.
    pub fn pop(&self) -> Result<Option<T>, CallError> {
        Ok(self.one(SequenceOperation::Pop)?.map(|(value, _)| value))
    }

    /// Removes the element at `index`, and moves those after it.
    ///
    /// # Errors
    /// As for [`List::pop`]; [`CallError::Index`] when there is none.
    pub fn remove(&self, index: usize) -> Result<T, CallError> {
        let removed = self.one(SequenceOperation::Remove(index as u64))?;
        removed.map(|(value, _)| value).ok_or_else(|| self.reference.unexpected())
    }

    /// All elements, as they are at one time.
    ///
    /// # Errors
    /// As for [`List::get`].
    pub fn to_vec(&self) -> Result<Vec<T>, CallError> {
        Ok(self.many(SequenceOperation::All)?.0)
    }

    /// The elements one after another, fetched a block at a time: of a list that others change meanwhile some may be missed or
    /// met twice. After an error it ends.
    pub fn iter(&self) -> Iter<'_, T> {
        Iter { list: self, next: 0, block: Vec::new().into_iter(), over: false }
    }

    fn one(&self, operation: SequenceOperation) -> Result<Option<(T, u64)>, CallError> {
        match self.ask(operation)? {
            Answer::One(found) => {
                found.map(|(received, version)| Ok((received.open()?, version))).transpose()
            }
            _ => Err(self.reference.unexpected()),
        }
    }

    /// Elements, and the version of the list.
    fn many(&self, operation: SequenceOperation) -> Result<(Vec<T>, u64), CallError> {
        match self.ask(operation)? {
            Answer::Many(values, version) => {
                Ok((values.into_iter().map(Received::open).collect::<Result<_, _>>()?, version))
            }
            _ => Err(self.reference.unexpected()),
        }
    }
}

impl<T: Serialize + DeserializeOwned> List<T> {
    /// Changes the element at `index` to what `change` makes of it; the new value.
    ///
    /// No lock is held meanwhile: `change` is called again if another has changed the element since, or moved it.
    ///
    /// # Errors
    /// As for [`List::get`]; [`CallError::Index`] when there is none.
    pub fn update(&self, index: usize, mut change: impl FnMut(T) -> T) -> Result<T, CallError> {
        loop {
            let Some((old, version)) = self.one(SequenceOperation::Get(index as u64))? else {
                let object = self.reference.describe(&"list");
                return Err(CallError::Index { object, index: index as u64, len: self.len()? as u64 });
            };
            let new = change(old);
            let value = self.reference.encode(&new)?;
            if self.whether(SequenceOperation::Exchange(index as u64, version, value))? {
                return Ok(new);
            }
        }
    }

    /// Changes the list as a whole, to sort it, say; what `change` returned. All elements travel there and back.
    ///
    /// No lock is held meanwhile: `change` is called again, with the list as it is then, if another has changed it since.
    ///
    /// # Errors
    /// As for [`List::get`]; nothing has changed then, unless the manager died.
    pub fn update_all<R>(&self, mut change: impl FnMut(&mut Vec<T>) -> R) -> Result<R, CallError> {
        loop {
            let (mut values, version) = self.many(SequenceOperation::All)?;
            let result = change(&mut values);
            let values = self.encode_all(&values)?;
            if self.whether(SequenceOperation::Replace(version, values))? {
                return Ok(result);
            }
        }
    }
}

/// The elements of a [`List`].
#[derive(Debug)]
pub struct Iter<'a, T> {
    list: &'a List<T>,
    next: u64,
    block: std::vec::IntoIter<T>,
    over: bool,
}

impl<T: DeserializeOwned> Iterator for Iter<'_, T> {
    type Item = Result<T, CallError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(value) = self.block.next() {
            return Some(Ok(value));
        }
        if self.over {
            return None;
        }
        match self.list.many(SequenceOperation::Range(self.next, BLOCK)) {
            Ok((block, _)) => {
                self.next += block.len() as u64;
                self.over = (block.len() as u64) < BLOCK;
                self.block = block.into_iter();
                self.block.next().map(Ok)
            }
            Err(error) => {
                self.over = true;
                Some(Err(error))
            }
        }
    }
}

impl<'a, T: DeserializeOwned> IntoIterator for &'a List<T> {
    type Item = Result<T, CallError>;
    type IntoIter = Iter<'a, T>;

    fn into_iter(self) -> Iter<'a, T> {
        self.iter()
    }
}
