//! The objects that this process has open, so that opening one twice shares its mapping.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use procession_sys::fork;

use super::header::ObjectId;

/// Open objects of one kind by id. Holds none of them open.
///
/// [`Registry::insert`], [`Registry::get`] and [`Registry::is_open`] are called with the [`fork::gate`] held, so that no child is forked with the
/// table locked by a thread that it does not have.
#[derive(Debug)]
pub struct Registry<T> {
    open: Mutex<Option<HashMap<ObjectId, Weak<T>>>>,
}

impl<T> Registry<T> {
    /// An empty registry, for a static.
    pub const fn new() -> Self {
        Registry { open: Mutex::new(None) }
    }

    /// Records an object that this process made.
    pub fn insert(&self, id: ObjectId, object: &Arc<T>) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let open = open.get_or_insert_with(HashMap::new);
        if open.len() == open.capacity() {
            open.retain(|_, object| object.strong_count() > 0);
        }
        open.insert(id, Arc::downgrade(object));
    }

    /// The object, if this process has it open.
    pub fn get(&self, id: ObjectId) -> Option<Arc<T>> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.as_ref()?.get(&id)?.upgrade()
    }

    /// Whether this process has the object open. Like [`Registry::get`], but never the last to drop it.
    pub fn is_open(&self, id: ObjectId) -> bool {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.as_ref().and_then(|open| open.get(&id)).is_some_and(|object| object.strong_count() > 0)
    }

    /// The object if this process has it open, else what `open` opens.
    ///
    /// # Errors
    /// What `open` returned.
    pub fn get_or_open<E>(
        &self,
        id: ObjectId,
        open: impl FnOnce() -> Result<Arc<T>, E>,
    ) -> Result<Arc<T>, E> {
        let known = {
            let _gate = fork::gate();
            self.get(id)
        };
        if let Some(object) = known {
            return Ok(object);
        }
        // Two threads may both open the object: two mappings of the same memory, both right.
        let object = open()?;
        let _gate = fork::gate();
        self.insert(id, &object);
        Ok(object)
    }
}

impl<T> Default for Registry<T> {
    fn default() -> Self {
        Self::new()
    }
}
