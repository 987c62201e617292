//! The descriptors that this process keeps open for the receivers of its handles.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};

use procession_sys::clock::now_ms;
use procession_sys::fork;
use procession_sys::identity::Identity;

use super::fd_ref::FdRef;
use super::header::{Header, ObjectId};
use super::keeper;
use super::named::Name;
use super::receivable::CARRIERS;

/// A shared object, as far as its handles need to know it.
pub trait Exportable: Send + Sync {
    /// Which one.
    fn id(&self) -> ObjectId;
    /// Its file.
    fn fd(&self) -> BorrowedFd<'_>;
    /// What goes to another process with a handle.
    ///
    /// # Errors
    /// Out of descriptors.
    fn to_attach(&self) -> io::Result<OwnedFd> {
        self.fd().try_clone_to_owned()
    }
    /// A descriptor to keep for the receiver of a handle.
    ///
    /// # Errors
    /// Out of descriptors.
    fn to_keep(&self) -> io::Result<OwnedFd> {
        self.fd().try_clone_to_owned()
    }
    /// Where its handles are counted.
    fn header(&self) -> &Header;
    /// Its name, if it has one.
    fn name(&self) -> Option<Name> {
        None
    }
    /// Whether this process has the object open for itself. Asked with the [`fork::gate`] held; drops no object.
    fn is_open(id: ObjectId) -> bool
    where
        Self: Sized;
}

/// What handles on their way refer to.
struct HandedOut {
    fd: OwnedFd,
    /// Dropped after the descriptor: a name that nobody uses any more goes with its last user, which this may be.
    _name: Option<Name>,
    /// [`Exportable::is_open`]
    is_open: fn(ObjectId) -> bool,
    /// The queues that its handles were put into, the last ones of them. None where they went
    /// elsewhere.
    carriers: Vec<ObjectId>,
}

impl HandedOut {
    /// Whether nobody needs it: all that was handed out has been opened, and the process has no handle of its own, of which
    /// it could have made others that are counted nowhere (bytes that are read more than once).
    fn is_done(&self, id: ObjectId) -> bool {
        !(self.is_open)(id) && Header::all_opened(self.fd.as_fd())
    }
}

/// Once an object. A forked child has no use for its parent's: their handles name the parent.
struct Table {
    owner: Identity,
    kept: HashMap<ObjectId, HandedOut>,
    /// So many entries are worth a look at which of them can go.
    crowd: usize,
    /// When somebody looked last, in milliseconds of the monotonic clock.
    looked: u64,
}

/// The least number of entries that is a crowd.
const CROWD: usize = 16;
/// After so many ms a handful is worth a look too.
const LONG: u64 = 1000;

/// Used with the fork gate held.
static TABLE: Mutex<Option<Table>> = Mutex::new(None);

impl Table {
    fn of(me: Identity) -> Self {
        Table { owner: me, kept: HashMap::new(), crowd: CROWD, looked: now_ms() }
    }

    /// Takes out what nobody needs, to be dropped without the gate.
    fn look(&mut self) -> Vec<HandedOut> {
        let done = self.kept.extract_if(|id, object| object.is_done(*id)).map(|(_, object)| object).collect();
        for object in self.kept.values_mut().filter(|object| Header::all_opened(object.fd.as_fd())) {
            object.carriers.clear();
        }
        self.crowd = self.kept.len() + (self.kept.len() / 2).max(CROWD);
        self.looked = now_ms();
        done
    }
}

/// Keeps the object open, once however often it is handed out, until all that was handed out has been opened and the process
/// has no handle to the object itself, or until it ends.
///
/// # Errors
/// Out of descriptors.
pub(super) fn hand_out<T: Exportable>(object: &T) -> io::Result<FdRef> {
    fork::watch()?;
    keeper::register()?;
    let me = Identity::current();
    let mut done = Vec::new();
    let gate = fork::gate();
    let mut table = TABLE.lock().unwrap_or_else(PoisonError::into_inner);
    let of_parent = table.take_if(|table| table.owner != me);
    let entries = table.get_or_insert_with(|| Table::of(me));
    if entries.kept.len() >= entries.crowd || now_ms().saturating_sub(entries.looked) >= LONG {
        done = entries.look();
    }
    let id = object.id();
    let duplicate = match entries.kept.entry(id) {
        Entry::Occupied(kept) => Ok(kept.get().fd.as_raw_fd()),
        Entry::Vacant(place) => object.to_keep().map(|fd| {
            let number = fd.as_raw_fd();
            let (_name, is_open) = (object.name(), T::is_open);
            place.insert(HandedOut { fd, _name, is_open, carriers: Vec::new() });
            number
        }),
    };
    let result = duplicate.map(|number| {
        object.header().note_sent();
        FdRef::Held { holder: me, fd: number as u32 }
    });
    drop((table, gate));
    // Without the gate: a name may have to wait for another process.
    drop((done, of_parent));
    result
}

/// Notes that a handle of the object was put into the queue `carrier`.
pub(super) fn carried(id: ObjectId, carrier: ObjectId) {
    let _gate = fork::gate();
    let mut table = TABLE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(table) = table.as_mut().filter(|table| table.owner == Identity::current()) else { return };
    if let Some(object) = table.kept.get_mut(&id) {
        note_carrier(&mut object.carriers, carrier);
    }
}

/// Adds a carrier. It replaces the oldest where there are too many.
pub(super) fn note_carrier(carriers: &mut Vec<ObjectId>, carrier: ObjectId) {
    if !carriers.contains(&carrier) {
        if carriers.len() == CARRIERS {
            carriers.remove(0);
        }
        carriers.push(carrier);
    }
}

/// The descriptors of the objects of which handles were handed out and not opened, with what
/// carries those.
pub(super) fn unopened() -> Vec<(RawFd, Vec<ObjectId>)> {
    let _gate = fork::gate();
    let table = TABLE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(table) = table.as_ref().filter(|table| table.owner == Identity::current()) else {
        return Vec::new();
    };
    let unopened = table.kept.values().filter(|object| !Header::all_opened(object.fd.as_fd()));
    unopened.map(|object| (object.fd.as_raw_fd(), object.carriers.clone())).collect()
}

/// Lets go of an object whose last handle in this process is being dropped, if all that was handed out has been opened. Also
/// called where the gate or the table is locked, and then leaves it to the next look.
pub(crate) fn let_go(id: ObjectId) {
    let taken = {
        let Some(_gate) = fork::try_gate() else { return };
        let Ok(mut table) = TABLE.try_lock() else { return };
        let Some(table) = &mut *table else { return };
        match table.kept.entry(id) {
            Entry::Occupied(kept) if table.owner == Identity::current() && kept.get().is_done(id) => {
                Some(kept.remove())
            }
            _ => None,
        }
    };
    drop(taken);
}

/// Lets go of all that nobody needs any more.
pub(crate) fn look() {
    let done = {
        let _gate = fork::gate();
        let mut table = TABLE.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *table {
            Some(table) if table.owner == Identity::current() => table.look(),
            _ => Vec::new(),
        }
    };
    drop(done);
}

/// Closes what a forked child has inherited of its parent's.
pub(super) fn forget_parents() {
    let of_parent = {
        let _gate = fork::gate();
        let me = Identity::current();
        TABLE.lock().unwrap_or_else(PoisonError::into_inner).take_if(|table| table.owner != me)
    };
    drop(of_parent);
}
