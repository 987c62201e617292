//! The managers that this process knows, and the references that its forked children share with it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use procession_sys::clock::now_ms;
use procession_sys::fork;
use procession_sys::identity::Identity;

use super::client::ManagerClient;
use super::reference::Reference;
use super::wire::Token;
use crate::process::{self, Hooks};

/// Used with the fork gate held.
static TABLE: Mutex<Option<Table>> = Mutex::new(None);

struct Table {
    owner: Identity,
    /// Also such as nothing here refers to any more, so that who receives one proxy after another need not connect each time.
    clients: HashMap<Token, Arc<ManagerClient>>,
    lent: Vec<Lent>,
    /// When somebody looked last which children have ended, in milliseconds of the monotonic clock.
    looked: u64,
}

/// How many managers stay known that nothing here refers to.
const UNUSED: usize = 4;
/// How often it is worth a look which children have ended, in milliseconds.
const LOOK: u64 = 100;

/// What a forked child has copies of. Its parent keeps it while the child lives: the child may not have used it yet, and so
/// have no reference of its own.
struct Lent {
    child: Identity,
    _references: Vec<Arc<Reference>>,
}

/// Nothing in `change` takes the gate or drops a reference or a client.
fn locked<R>(change: impl FnOnce(&mut Table) -> R) -> R {
    let gate = fork::gate();
    let mut table = TABLE.lock().unwrap_or_else(PoisonError::into_inner);
    let me = Identity::current();
    let new = || Table { owner: me, clients: HashMap::new(), lent: Vec::new(), looked: 0 };
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
pub(super) fn client(manager: Token, make: impl FnOnce() -> ManagerClient) -> Arc<ManagerClient> {
    let (client, forgotten) = locked(|table| {
        if let Some(known) = table.clients.get(&manager) {
            return (Arc::clone(known), None);
        }
        let mut unused = table.clients.iter().filter(|(_, client)| Arc::strong_count(client) == 1);
        let forgotten = unused.nth(UNUSED).map(|(manager, _)| *manager);
        let forgotten = forgotten.and_then(|manager| table.clients.remove(&manager));
        let new = Arc::new(make());
        table.clients.insert(manager, Arc::clone(&new));
        (new, forgotten)
    });
    drop(forgotten);
    client
}

/// The view of a manager, if there is one.
pub(super) fn known(manager: Token) -> Option<Arc<ManagerClient>> {
    locked(|table| table.clients.get(&manager).cloned())
}

/// Forgets a manager that has ended.
pub(super) fn forget(manager: Token) {
    drop(locked(|table| table.clients.remove(&manager)));
}

fn clients() -> Vec<Arc<ManagerClient>> {
    locked(|table| table.clients.values().cloned().collect())
}

/// Drops what was kept for forked children that have ended, if it is time to look.
pub(super) fn sweep() {
    sweep_unless(|table, now| now - table.looked < LOOK);
}

/// A child has ended: drops what was kept for it.
fn child_ended() {
    sweep_unless(|_, _| false);
}

fn sweep_unless(too_soon: impl FnOnce(&Table, u64) -> bool) {
    let over = locked(|table| {
        let now = now_ms();
        if table.lent.is_empty() || too_soon(table, now) {
            return Vec::new();
        }
        table.looked = now;
        table.lent.extract_if(.., |lent| !lent.child.is_alive()).collect::<Vec<_>>()
    });
    drop(over);
}

/// All proxies of a process that is about to fork.
struct Inheritance(Vec<Arc<Reference>>);

static HOOKS: Hooks = Hooks {
    before_fork: || {
        sweep();
        let all = Inheritance(clients().iter().flat_map(|client| client.references()).collect());
        Box::new(|child| all.go_to(child))
    },
    in_child: forget_parents,
    child_ended,
};

/// Keeps this table right in forked processes from now on. To be called before it has a manager.
///
/// # Errors
/// Out of memory.
pub(super) fn watch_forks() -> std::io::Result<()> {
    fork::watch()?;
    process::register_hooks(&HOOKS);
    Ok(())
}

impl Inheritance {
    /// In the parent: the child with this pid has copies.
    fn go_to(self, pid: u32) {
        let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
        // A child that has ended already has none.
        let child = pid.and_then(|pid| Identity::of_pid(pid).ok());
        if let (Some(child), false) = (child, self.0.is_empty()) {
            locked(|table| table.lent.push(Lent { child, _references: self.0 }));
        }
    }
}

/// In a forked child: closes the copies of its parent's sockets.
fn forget_parents() {
    for client in clients() {
        client.forget_parents();
    }
}
