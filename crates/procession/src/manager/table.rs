//! The managers that this process knows, and the references that its forked children share with it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use procession_core::os::fork;
use procession_core::os::identity::Identity;

use super::client::Remote;
use super::reference::Reference;
use super::wire::Token;

/// Used with the fork gate held.
static TABLE: Mutex<Option<Table>> = Mutex::new(None);

struct Table {
    owner: Identity,
    remotes: HashMap<Token, Weak<Remote>>,
    lent: Vec<Lent>,
}

/// What a forked child has copies of. Its parent keeps it while the child lives: the child may not have used it yet, and so
/// have no reference of its own.
struct Lent {
    child: Identity,
    _references: Vec<Arc<Reference>>,
}

/// Nothing in `change` takes the gate or drops a reference or a remote.
fn locked<R>(change: impl FnOnce(&mut Table) -> R) -> R {
    let gate = fork::gate();
    let mut table = TABLE.lock().unwrap_or_else(PoisonError::into_inner);
    let me = Identity::current();
    let new = || Table { owner: me, remotes: HashMap::new(), lent: Vec::new() };
    let table_of_this = table.get_or_insert_with(new);
    let mut of_parent = Vec::new();
    if table_of_this.owner != me {
        table_of_this.owner = me;
        of_parent = std::mem::take(&mut table_of_this.lent);
    }
    let result = change(table_of_this);
    drop((table, gate));
    drop(of_parent);
    result
}

/// The one view of a manager, which `make` makes if there is none.
pub(super) fn remote(manager: Token, make: impl FnOnce() -> Remote) -> Arc<Remote> {
    locked(|table| {
        if let Some(known) = table.remotes.get(&manager).and_then(Weak::upgrade) {
            return known;
        }
        table.remotes.retain(|_, remote| remote.strong_count() > 0);
        let new = Arc::new(make());
        table.remotes.insert(manager, Arc::downgrade(&new));
        new
    })
}

/// The view of a manager, if there is one.
pub(super) fn known(manager: Token) -> Option<Arc<Remote>> {
    locked(|table| table.remotes.get(&manager).and_then(Weak::upgrade))
}

fn remotes() -> Vec<Arc<Remote>> {
    locked(|table| table.remotes.values().filter_map(Weak::upgrade).collect())
}

/// Drops what was kept for forked children that have ended.
pub(super) fn sweep() {
    let over = locked(|table| match table.lent.is_empty() {
        true => Vec::new(),
        false => table.lent.extract_if(.., |lent| !lent.child.is_alive()).collect::<Vec<_>>(),
    });
    drop(over);
}

/// All proxies of a process that is about to fork.
pub(crate) struct Inheritance(Vec<Arc<Reference>>);

/// To be called before a fork, by a thread that holds no lock of this library.
pub(crate) fn before_fork() -> Inheritance {
    sweep();
    Inheritance(remotes().iter().flat_map(|remote| remote.references()).collect())
}

impl Inheritance {
    /// In the parent: the child with this pid has copies.
    pub(crate) fn go_to(self, pid: u32) {
        let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
        // A child that has ended already has none.
        let child = pid.and_then(|pid| Identity::of_pid(pid).ok());
        if let (Some(child), false) = (child, self.0.is_empty()) {
            locked(|table| table.lent.push(Lent { child, _references: self.0 }));
        }
    }
}

/// In a forked child: closes the copies of its parent's connections.
pub(crate) fn forget_parents() {
    for remote in remotes() {
        remote.forget_parents();
    }
}
