//! What each client has.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fd::OwnedFd;

use super::objects::{Hosted, Stored};
use crate::manager::value::Carriage;
use crate::manager::wire::{Number, Token};

/// A process that uses the manager.
pub(super) struct Session {
    pub(super) token: Token,
    pub(super) carriage: Carriage,
    /// Becomes readable when the process ends, if it is one of this machine.
    pub(super) process: Option<OwnedFd>,
    /// Its references: each object, and how often it has it. `None` once it has ended.
    objects: Mutex<Option<References>>,
}

type References = HashMap<Number, (Arc<Hosted>, u64)>;

impl Session {
    pub(super) fn new(token: Token, carriage: Carriage, process: Option<OwnedFd>) -> Session {
        Session { token, carriage, process, objects: Mutex::new(Some(HashMap::new())) }
    }

    fn objects(&self) -> MutexGuard<'_, Option<References>> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more reference.
    pub(super) fn grant(&self, object: &Arc<Hosted>) {
        if let Some(objects) = &mut *self.objects() {
            objects.entry(object.number).or_insert_with(|| (Arc::clone(object), 0)).1 += 1;
        }
    }

    /// One more reference to all that a value refers to.
    pub(super) fn grant_all(&self, value: &Stored, granted: &mut Vec<(Number, u32)>) {
        for object in value.objects() {
            self.grant(object);
            granted.push((object.number, 1));
        }
    }

    /// Takes references back.
    pub(super) fn let_go(&self, given_back: &[(Number, u32)]) {
        let mut over = Vec::new();
        if let Some(objects) = &mut *self.objects() {
            for (number, count) in given_back {
                if let Entry::Occupied(mut entry) = objects.entry(*number) {
                    entry.get_mut().1 = entry.get().1.saturating_sub((*count).into());
                    if entry.get().1 == 0 {
                        over.push(entry.remove());
                    }
                }
            }
        }
        drop(over);
    }

    /// It has no references from now on.
    fn end(&self) {
        let objects = self.objects().take();
        drop(objects);
    }
}

/// All sessions.
#[derive(Default)]
pub(super) struct Sessions(Mutex<HashMap<Token, Arc<Session>>>);

impl Sessions {
    fn lock(&self) -> MutexGuard<'_, HashMap<Token, Arc<Session>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, session: &Arc<Session>) {
        self.lock().insert(session.token, Arc::clone(session));
    }

    pub(super) fn find(&self, token: Token) -> Option<Arc<Session>> {
        self.lock().get(&token).cloned()
    }

    pub(super) fn end(&self, session: &Session) {
        self.lock().remove(&session.token);
        session.end();
    }
}
