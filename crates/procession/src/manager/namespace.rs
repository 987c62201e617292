//! `Namespace`.

use std::marker::PhantomData;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::CallError;
use super::reference::{Reference, proxy};
use super::value::{Form, Received};
use super::wire::{Answer, Bytes, Encoded, Operation, TableOperation};

/// Named values of any types in a manager's process, as Python's `Manager().Namespace()`: a proxy, see
/// [the module](super) for what all proxies have in common.
///
/// Values are written as MessagePack, which tells numbers, texts and the like apart. Large bytes belong in a [`Dict`](super::Dict).
///
/// ```
/// use procession::{Lock, Manager, Queue};
///
/// let manager = Manager::new()?;
/// let namespace = manager.namespace()?;
/// namespace.set("limit", &10_u32)?;
/// namespace.set("names", &vec!["a", "b"])?;
/// namespace.set("tasks", &manager.queue::<u32>()?)?;
/// assert_eq!(namespace.get::<u32>("limit")?, Some(10));
/// assert_eq!(namespace.get::<Queue<u32>>("tasks")?.unwrap().len(), 0);
/// assert!(namespace.get::<Lock>("limit").is_err());
/// assert_eq!(namespace.names()?, ["limit", "names", "tasks"]);
/// # Ok::<(), procession::Error>(())
/// ```
pub struct Namespace {
    reference: Arc<Reference>,
    types: PhantomData<()>,
}

proxy!(Namespace, 3, "namespace");

impl Namespace {
    /// The value with the name, if there is one.
    ///
    /// # Errors
    /// [`CallError`]; [`CallError::Deserialize`] for a value of another type, where that matters: any integer that it fits into will do, say.
    pub fn get<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, CallError> {
        Ok(self.one(TableOperation::Get(self.key(name)?))?.map(|(value, _)| value))
    }

    /// Sets a value.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn set<T: Serialize + ?Sized>(&self, name: &str, value: &T) -> Result<(), CallError> {
        match self
            .ask(TableOperation::Set(self.key(name)?, self.reference.encode_as(Form::Described, value)?))?
        {
            Answer::Done => Ok(()),
            _ => Err(self.reference.unexpected()),
        }
    }

    /// Changes a value to what `change` makes of it (of `None`, if there is none); the new value. As
    /// [`Dict::update`](super::Dict::update).
    ///
    /// # Errors
    /// As for [`Namespace::get`].
    pub fn update<T: Serialize + DeserializeOwned>(
        &self,
        name: &str,
        mut change: impl FnMut(Option<T>) -> T,
    ) -> Result<T, CallError> {
        loop {
            let (old, version) = self.one(TableOperation::Get(self.key(name)?))?.unzip();
            let new = change(old);
            let value = self.reference.encode_as(Form::Described, &new)?;
            let exchange = TableOperation::Exchange(self.key(name)?, version.unwrap_or(0), value);
            match self.ask(exchange)? {
                Answer::Bool(true) => return Ok(new),
                Answer::Bool(false) => {}
                _ => return Err(self.reference.unexpected()),
            }
        }
    }

    /// Removes a value; whether there was one.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn remove(&self, name: &str) -> Result<bool, CallError> {
        match self.ask(TableOperation::Remove(self.key(name)?))? {
            Answer::One(removed) => Ok(removed.is_some()),
            _ => Err(self.reference.unexpected()),
        }
    }

    /// Whether there is a value with the name.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn contains(&self, name: &str) -> Result<bool, CallError> {
        match self.ask(TableOperation::Contains(self.key(name)?))? {
            Answer::Bool(is) => Ok(is),
            _ => Err(self.reference.unexpected()),
        }
    }

    /// All names, in the order in which they came.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn names(&self) -> Result<Vec<String>, CallError> {
        let Answer::Keys(keys) = self.ask(TableOperation::Keys)? else {
            return Err(self.reference.unexpected());
        };
        let names = keys.into_iter().map(|Bytes(bytes)| {
            Received::of_client(self.reference.client(), Encoded { bytes, ..Encoded::default() }).open()
        });
        names.collect()
    }

    fn key(&self, name: &str) -> Result<Bytes, CallError> {
        self.reference.key(name)
    }

    fn ask(&self, operation: TableOperation) -> Result<Answer<Received>, CallError> {
        self.reference.call(&"namespace", Operation::Table(operation), None)
    }

    fn one<T: DeserializeOwned>(&self, operation: TableOperation) -> Result<Option<(T, u64)>, CallError> {
        match self.ask(operation)? {
            Answer::One(found) => {
                found.map(|(received, version)| Ok((received.open_as(Form::Described)?, version))).transpose()
            }
            _ => Err(self.reference.unexpected()),
        }
    }
}
