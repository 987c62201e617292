//! What each client has.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fd::OwnedFd;

use super::objects::{Hosted, Stored};
use crate::manager::value::HandleTransport;
use crate::manager::wire::{Number, Token};

/// A process that uses the manager.
pub(super) struct Session {
    pub(super) token: Token,
    pub(super) transport: HandleTransport,
    /// Becomes readable when the process ends, if it is one of this machine.
    pub(super) process: Option<OwnedFd>,
    holdings: Mutex<Holdings>,
}

/// What a session has.
struct Holdings {
    /// Each object, and how often it has it. `None` once it has ended and nobody reads what it sent before.
    references: Option<References>,
    readers: usize,
    ended: bool,
}

type References = HashMap<Number, (Arc<Hosted>, u64)>;

impl Holdings {
    /// What is to be dropped, if it is over.
    fn take_if_over(&mut self) -> Option<References> {
        if self.ended && self.readers == 0 { self.references.take() } else { None }
    }
}

/// While there is one, what the client sent before its end may be unread, and its session keeps what that may name.
pub(super) struct Reading<'a>(&'a Session);

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        let over = {
            let mut holdings = self.0.holdings();
            holdings.readers -= 1;
            holdings.take_if_over()
        };
        drop(over);
    }
}

impl Session {
    pub(super) fn new(token: Token, transport: HandleTransport, process: Option<OwnedFd>) -> Session {
        let holdings = Holdings { references: Some(HashMap::new()), readers: 0, ended: false };
        Session { token, transport, process, holdings: Mutex::new(holdings) }
    }

    fn holdings(&self) -> MutexGuard<'_, Holdings> {
        self.holdings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request is to be read.
    pub(super) fn reading(&self) -> Reading<'_> {
        self.holdings().readers += 1;
        Reading(self)
    }

    /// Whether the client's end has been noticed.
    pub(super) fn has_ended(&self) -> bool {
        self.holdings().ended
    }

    /// One more reference.
    pub(super) fn grant(&self, object: &Arc<Hosted>) {
        if let Some(references) = &mut self.holdings().references {
            references.entry(object.number).or_insert_with(|| (Arc::clone(object), 0)).1 += 1;
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
        if let Some(references) = &mut self.holdings().references {
            for (number, count) in given_back {
                if let Entry::Occupied(mut entry) = references.entry(*number) {
                    entry.get_mut().1 = entry.get().1.saturating_sub((*count).into());
                    if entry.get().1 == 0 {
                        over.push(entry.remove());
                    }
                }
            }
        }
        drop(over);
    }

    /// It has no references once what it sent has been read.
    fn end(&self) {
        let over = {
            let mut holdings = self.holdings();
            holdings.ended = true;
            holdings.take_if_over()
        };
        drop(over);
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
