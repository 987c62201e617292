//! The objects that a manager keeps, and who keeps them: sessions, values that refer to them, names, and tickets of handles
//! that are on their way. An object goes with the last of these.

use std::collections::HashMap;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};

use procession_sys::scoped::Scoped;
use serde::{Serialize, Serializer};

use super::sequence::Sequence;
use super::service::Served;
use super::table::Table;
use crate::manager::wire::{Encoded, Kind, Number, Refusal};

/// An object. Whoever has an `Arc` of it keeps it.
pub(super) struct Hosted {
    pub(super) number: Number,
    pub(super) kind: Kind,
    state: Mutex<State>,
    objects: Arc<Objects>,
}

/// What an object consists of.
pub(super) enum State {
    Table(Table),
    Sequence(Sequence),
    Service(Box<dyn Served>),
    /// Taken out by its end.
    Over,
}

impl Hosted {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // A handler that panics leaves its object to the next call.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, state: State) {
        if panic::catch_unwind(AssertUnwindSafe(|| drop(state))).is_err() {
            tracing::warn!(kind = %self.kind, "an object panicked at its end");
        }
    }
}

thread_local! {
    /// What is to be dropped after what is being dropped: a chain of objects, each in the one before, may be long.
    static ENDED: Scoped<Vec<State>> = const { Scoped::empty() };
}

impl Drop for Hosted {
    fn drop(&mut self) {
        self.objects.lock().all.remove(&self.number);
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        let state = std::mem::replace(state, State::Over);
        let mut next = Scoped::with(&ENDED, |ended| match ended {
            Some(ended) => {
                ended.push(state);
                None
            }
            None => Some(state),
        });
        if next.is_none() {
            return;
        }
        let _ended = Scoped::enter(&ENDED, Vec::new());
        while let Some(state) = next {
            self.end(state);
            next = Scoped::with(&ENDED, |ended| ended.and_then(Vec::pop));
        }
    }
}

/// All objects of a manager.
#[derive(Default)]
pub(super) struct Objects {
    index: Mutex<Index>,
}

#[derive(Default)]
struct Index {
    last: Number,
    all: HashMap<Number, Weak<Hosted>>,
}

impl Objects {
    fn lock(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new object.
    pub(super) fn add(self: &Arc<Self>, kind: Kind, state: State) -> Arc<Hosted> {
        let mut index = self.lock();
        index.last += 1;
        let number = index.last;
        let hosted = Hosted { number, kind, state: Mutex::new(state), objects: Arc::clone(self) };
        let hosted = Arc::new(hosted);
        index.all.insert(number, Arc::downgrade(&hosted));
        hosted
    }

    /// An object by its number.
    pub(super) fn find(&self, number: Number) -> Result<Arc<Hosted>, Refusal> {
        self.lock().all.get(&number).and_then(Weak::upgrade).ok_or(Refusal::Gone)
    }

    /// Those with these numbers that there are.
    pub(super) fn find_all(&self, numbers: &[Number]) -> Vec<Arc<Hosted>> {
        let index = self.lock();
        numbers.iter().filter_map(|number| index.all.get(number).and_then(Weak::upgrade)).collect()
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.lock().all.len()
    }

    /// Drops the objects of registered types, the oldest first, but for those that are handling a request. Who calls one from now
    /// on waits for the end of the process.
    pub(super) fn end_services(&self) {
        let mut objects: Vec<_> = self.lock().all.values().filter_map(Weak::upgrade).collect();
        objects.retain(|object| matches!(object.kind, Kind::Service(_)));
        objects.sort_unstable_by_key(|object| object.number);
        for object in &objects {
            let mut state = match object.state.try_lock() {
                Ok(state) => state,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => continue,
            };
            let over = std::mem::replace(&mut *state, State::Over);
            std::mem::forget(state);
            object.end(over);
        }
    }

    /// A value to be kept, with the objects that it refers to.
    pub(super) fn keep(&self, encoded: Encoded) -> Result<Stored, Refusal> {
        let objects = encoded.objects.iter().map(|number| self.find(*number)).collect::<Result<_, _>>()?;
        Ok(Stored(Arc::new(Kept { encoded, objects })))
    }
}

/// A value that a manager keeps.
#[derive(Clone)]
pub(super) struct Stored(Arc<Kept>);

struct Kept {
    encoded: Encoded,
    objects: Vec<Arc<Hosted>>,
}

impl Stored {
    /// What it refers to.
    pub(super) fn objects(&self) -> &[Arc<Hosted>] {
        &self.0.objects
    }
}

/// As [`Encoded`].
impl Serialize for Stored {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.encoded.serialize(serializer)
    }
}
