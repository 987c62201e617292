//! `Dict<K, V>`.

use std::borrow::Borrow;
use std::marker::PhantomData;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::CallError;
use super::reference::{Reference, proxy};
use super::value::{Received, check_readable};
use super::wire::{Answer, Bytes, Encoded, Operation, TableOperation};

/// A dictionary in a manager's process, as Python's `Manager().dict()`: a proxy, see [the module](super) for what all
/// proxies have in common.
///
/// Each call is one step that no other interferes with. Two calls are two steps: to change a value depending on
/// what it is, use [`Dict::update`]. Entries are listed in the order in which their keys came, as in Python.
///
/// Keys are compared by their serialised bytes, which for numbers, texts, and what is made of them means as `Eq` does; not
/// for a key type with an `Eq` of its own making, nor for one with a hash table in it. A key cannot have handles in it.
///
/// ```
/// use procession::{Manager, Process};
/// use procession::manager::Dict;
///
/// fn count((counts, word): (Dict<String, u32>, String)) {
///     counts.update(&word, |n| n.unwrap_or(0) + 1).expect("update");
/// }
///
/// let manager = Manager::new()?;
/// let counts = manager.dict()?;
/// for word in ["one", "two", "one"] {
///     Process::spawn(count, (counts.clone(), word.to_owned()))?.join()?;
/// }
/// assert_eq!(counts.items()?, [("one".to_owned(), 2), ("two".to_owned(), 1)]);
/// # Ok::<(), procession::Error>(())
/// ```
pub struct Dict<K, V> {
    reference: Arc<Reference>,
    types: PhantomData<fn() -> (K, V)>,
}

proxy!(Dict<K, V>, 1, "dict");

impl<K, V> Dict<K, V> {
    /// How many entries there are.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn len(&self) -> Result<usize, CallError> {
        match self.ask(TableOperation::Len)? {
            Answer::Count(len) => Ok(usize::try_from(len).unwrap_or(usize::MAX)),
            _ => Err(self.reference.unexpected()),
        }
    }

    /// Whether there is no entry.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn is_empty(&self) -> Result<bool, CallError> {
        Ok(self.len()? == 0)
    }

    /// Removes all entries.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn clear(&self) -> Result<(), CallError> {
        self.done(TableOperation::Clear)
    }

    fn ask(&self, operation: TableOperation) -> Result<Answer<Received>, CallError> {
        self.reference.call(&"dict", Operation::Table(operation), None)
    }

    fn done(&self, operation: TableOperation) -> Result<(), CallError> {
        match self.ask(operation)? {
            Answer::Done => Ok(()),
            _ => Err(self.reference.unexpected()),
        }
    }
}

impl<K: Serialize, V> Dict<K, V> {
    /// Whether there is an entry with the key.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn contains_key<Q: Serialize + ?Sized>(&self, key: &Q) -> Result<bool, CallError>
    where
        K: Borrow<Q>,
    {
        match self.ask(TableOperation::Contains(self.reference.key(key)?))? {
            Answer::Bool(is) => Ok(is),
            _ => Err(self.reference.unexpected()),
        }
    }
}

impl<K: Serialize + DeserializeOwned, V: Serialize + DeserializeOwned> Dict<K, V> {
    /// Sets the value of a key.
    ///
    /// # Errors
    /// [`CallError`]; [`CallError::Serialize`] also for types that could not be read back.
    pub fn set<Q: Serialize + ?Sized>(&self, key: &Q, value: &V) -> Result<(), CallError>
    where
        K: Borrow<Q>,
    {
        let (key, value) = self.entry(key, value)?;
        self.done(TableOperation::Set(key, value))
    }

    /// Sets the values of many keys in one step.
    ///
    /// # Errors
    /// [`CallError`]; nothing has changed then, unless the manager died.
    pub fn extend<'a>(&self, entries: impl IntoIterator<Item = (&'a K, &'a V)>) -> Result<(), CallError>
    where
        K: 'a,
        V: 'a,
    {
        let entries = entries.into_iter().map(|(key, value)| self.entry(key, value));
        let entries = entries.collect::<Result<_, _>>()?;
        self.done(TableOperation::Extend(entries))
    }

    fn entry<Q: Serialize + ?Sized>(&self, key: &Q, value: &V) -> Result<(Bytes, Encoded), CallError> {
        check_readable::<K>()?;
        Ok((self.reference.key(key)?, self.reference.encode(value)?))
    }
}

impl<K: Serialize, V: DeserializeOwned> Dict<K, V> {
    /// The value of a key, if it has one.
    ///
    /// # Errors
    /// [`CallError`]; [`CallError::Deserialize`] for a value of another type.
    pub fn get<Q: Serialize + ?Sized>(&self, key: &Q) -> Result<Option<V>, CallError>
    where
        K: Borrow<Q>,
    {
        Ok(self.one(TableOperation::Get(self.reference.key(key)?))?.map(|(value, _)| value))
    }

    /// Removes the entry with the key; its value, if there was one.
    ///
    /// # Errors
    /// As for [`Dict::get`]; the entry is removed all the same if its value cannot be read.
    pub fn remove<Q: Serialize + ?Sized>(&self, key: &Q) -> Result<Option<V>, CallError>
    where
        K: Borrow<Q>,
    {
        Ok(self.one(TableOperation::Remove(self.reference.key(key)?))?.map(|(value, _)| value))
    }

    fn one(&self, operation: TableOperation) -> Result<Option<(V, u64)>, CallError> {
        match self.ask(operation)? {
            Answer::One(found) => {
                found.map(|(received, version)| Ok((received.open()?, version))).transpose()
            }
            _ => Err(self.reference.unexpected()),
        }
    }
}

impl<K: Serialize + DeserializeOwned, V: Serialize + DeserializeOwned> Dict<K, V> {
    /// Sets the value of a key; the value that it had before. [`Dict::set`] is faster where that is large.
    ///
    /// # Errors
    /// As for [`Dict::get`]; the value is set all the same if the old one cannot be read.
    pub fn insert<Q: Serialize + ?Sized>(&self, key: &Q, value: &V) -> Result<Option<V>, CallError>
    where
        K: Borrow<Q>,
    {
        let (key, value) = self.entry(key, value)?;
        Ok(self.one(TableOperation::Swap(key, value))?.map(|(old, _)| old))
    }

    /// The value of a key, which is set to `value` first if it had none. Python's `setdefault`.
    ///
    /// # Errors
    /// As for [`Dict::get`].
    pub fn get_or_insert<Q: Serialize + ?Sized>(&self, key: &Q, value: &V) -> Result<V, CallError>
    where
        K: Borrow<Q>,
    {
        let (key, value) = self.entry(key, value)?;
        let found = self.one(TableOperation::GetOrInsert(key, value))?;
        found.map(|(value, _)| value).ok_or_else(|| self.reference.unexpected())
    }

    /// Changes the value of a key to what `change` makes of it (of `None`, if there is none); the new value.
    ///
    /// No lock is held meanwhile: `change` is called again if another has changed the value since. So nobody ever waits for
    /// who is in here, and a process that is killed here has changed it or not.
    ///
    /// # Errors
    /// As for [`Dict::get`].
    pub fn update<Q: Serialize + ?Sized>(
        &self,
        key: &Q,
        mut change: impl FnMut(Option<V>) -> V,
    ) -> Result<V, CallError>
    where
        K: Borrow<Q>,
    {
        check_readable::<K>()?;
        let key = self.reference.key(key)?;
        loop {
            let (old, version) = self.one(TableOperation::Get(key.clone()))?.unzip();
            let new = change(old);
            let value = self.reference.encode(&new)?;
            let exchange = TableOperation::Exchange(key.clone(), version.unwrap_or(0), value);
            match self.ask(exchange)? {
                Answer::Bool(true) => return Ok(new),
                Answer::Bool(false) => {}
                _ => return Err(self.reference.unexpected()),
            }
        }
    }
}

impl<K: DeserializeOwned, V> Dict<K, V> {
    /// All keys.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn keys(&self) -> Result<Vec<K>, CallError> {
        match self.ask(TableOperation::Keys)? {
            Answer::Keys(keys) => keys.into_iter().map(|key| self.read_key(key)).collect(),
            _ => Err(self.reference.unexpected()),
        }
    }

    fn read_key(&self, Bytes(bytes): Bytes) -> Result<K, CallError> {
        let encoded = Encoded { bytes, ..Encoded::default() };
        Received::of_client(self.reference.client(), encoded).open()
    }
}

impl<K, V: DeserializeOwned> Dict<K, V> {
    /// All values.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn values(&self) -> Result<Vec<V>, CallError> {
        match self.ask(TableOperation::Values)? {
            Answer::Many(values, _) => values.into_iter().map(Received::open).collect(),
            _ => Err(self.reference.unexpected()),
        }
    }
}

impl<K: DeserializeOwned, V: DeserializeOwned> Dict<K, V> {
    /// All entries, as they are at one time.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn items(&self) -> Result<Vec<(K, V)>, CallError> {
        match self.ask(TableOperation::Items)? {
            Answer::Pairs(pairs) => {
                pairs.into_iter().map(|(key, value)| Ok((self.read_key(key)?, value.open()?))).collect()
            }
            _ => Err(self.reference.unexpected()),
        }
    }
}
