//! Descriptors on their way to another process.
//!
//! A handle that is serialised needs its descriptor at the other end. Where the channel can carry
//! descriptors (a Unix socket to a new process, a pipe), its sender wraps serialisation in [`collect`], and its
//! receiver wraps deserialisation in [`deliver`]; the bytes then hold the descriptor's place in the message.
//! Anywhere else (in a queue, in a file) the bytes name a descriptor that the sending process keeps open
//! for the receiver, which opens it through `/proc/PID/fd`.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{FileType, Mode, OFlags, open, stat};
use rustix::io::Errno;

use super::error::OpenError;
use super::header::{Header, ObjectId};
use crate::os::fork;
use crate::os::identity::Identity;

thread_local! {
    static FAILURE: RefCell<Option<OpenError>> = const { RefCell::new(None) };
    static OUTGOING: RefCell<Option<Outgoing>> = const { RefCell::new(None) };
    static INCOMING: RefCell<Option<Vec<OwnedFd>>> = const { RefCell::new(None) };
    static READ_AGAIN: Cell<bool> = const { Cell::new(false) };
}

/// What goes with the message that is being serialised.
#[derive(Default)]
struct Outgoing {
    descriptors: Vec<OwnedFd>,
    /// The places of the objects among them: many locks share one chunk, and a queue may occur more than once.
    places: HashMap<ObjectId, Transit>,
}

/// How a handle's bytes refer to its descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transit {
    /// The n-th descriptor that travels with the message.
    Attached(u32),
    /// A descriptor number in a process that keeps it open.
    Held {
        /// Whose descriptor.
        holder: Identity,
        /// Its number there.
        fd: u32,
    },
}

impl Transit {
    /// The size in bytes of the encoded form.
    pub const LEN: usize = 12;

    /// Twelve bytes: the holder's identity (0 for an attached one), then the number, little-endian.
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let (holder, number) = match self {
            Transit::Attached(index) => (0, index),
            Transit::Held { holder, fd } => (holder.to_bits(), fd),
        };
        let mut bytes = [0; Self::LEN];
        bytes[..8].copy_from_slice(&holder.to_le_bytes());
        bytes[8..].copy_from_slice(&number.to_le_bytes());
        bytes
    }

    /// Reads it back.
    ///
    /// # Errors
    /// [`OpenError::Malformed`] for an impossible holder.
    pub fn from_bytes(bytes: [u8; Self::LEN]) -> Result<Self, OpenError> {
        let mut holder = [0; 8];
        holder.copy_from_slice(&bytes[..8]);
        let holder = u64::from_le_bytes(holder);
        let mut number = [0; 4];
        number.copy_from_slice(&bytes[8..]);
        let number = u32::from_le_bytes(number);
        if holder == 0 {
            return Ok(Transit::Attached(number));
        }
        let holder = Identity::from_bits(holder).ok_or(OpenError::Malformed("impossible process"))?;
        Ok(Transit::Held { holder, fd: number })
    }
}

/// Restores what a nested or unwinding use found.
struct Restore<T: 'static>(&'static std::thread::LocalKey<RefCell<Option<T>>>, Option<T>);

impl<T> Drop for Restore<T> {
    fn drop(&mut self) {
        self.0.replace(self.1.take());
    }
}

/// Runs `serialise` with descriptors attached: duplicates of those that [`attach`] and [`send`] see are returned, to be
/// sent along with the bytes. An object that is sent several times has one.
pub fn collect<R>(serialise: impl FnOnce() -> R) -> (R, Vec<OwnedFd>) {
    let _restore = Restore(&OUTGOING, OUTGOING.replace(Some(Outgoing::default())));
    let result = serialise();
    (result, OUTGOING.take().unwrap_or_default().descriptors)
}

/// Runs `deserialise` with the descriptors that came along with the bytes.
pub fn deliver<R>(descriptors: Vec<OwnedFd>, deserialise: impl FnOnce() -> R) -> R {
    let _restore = Restore(&INCOMING, INCOMING.replace(Some(descriptors)));
    deserialise()
}

/// Adds a duplicate of the descriptor to the message that is being serialised; `None` outside [`collect`].
///
/// # Errors
/// Out of descriptors.
pub fn attach(fd: BorrowedFd<'_>) -> std::io::Result<Option<Transit>> {
    OUTGOING.with_borrow_mut(|outgoing| outgoing.as_mut().map(|outgoing| outgoing.add(fd)).transpose())
}

/// As [`attach`], once an object.
fn attach_object(id: ObjectId, fd: BorrowedFd<'_>) -> std::io::Result<Option<Transit>> {
    OUTGOING.with_borrow_mut(|outgoing| {
        let Some(outgoing) = outgoing else { return Ok(None) };
        if let Some(place) = outgoing.places.get(&id) {
            return Ok(Some(*place));
        }
        let place = outgoing.add(fd)?;
        outgoing.places.insert(id, place);
        Ok(Some(place))
    })
}

impl Outgoing {
    fn add(&mut self, fd: BorrowedFd<'_>) -> std::io::Result<Transit> {
        self.descriptors.push(fd.try_clone_to_owned()?);
        Ok(Transit::Attached((self.descriptors.len() - 1) as u32))
    }
}

/// A duplicate of the `index`-th descriptor that came with the message being deserialised.
///
/// # Errors
/// [`OpenError::NotAttached`] when there is none.
pub fn attached(index: u32) -> Result<OwnedFd, OpenError> {
    INCOMING.with_borrow(|incoming| {
        let fd = incoming.as_ref().and_then(|fds| fds.get(index as usize)).ok_or(OpenError::NotAttached)?;
        fd.try_clone().map_err(OpenError::system("duplicating a descriptor"))
    })
}

/// Records why a handle could not be sent or opened, for [`failure`]: a serialiser passes on that something
/// failed, but not what. Returns the message for its own error.
pub fn fail(error: OpenError) -> String {
    let message = error.to_string();
    FAILURE.set(Some(error));
    message
}

/// Takes what [`fail`] recorded last on this thread. Whoever is about to serialise takes, and drops, what an
/// earlier use may have left; whoever has failed to serialise takes the reason.
pub fn failure() -> Option<OpenError> {
    FAILURE.take()
}

/// A descriptor that handles on their way refer to.
struct HandedOut {
    fd: OwnedFd,
    /// Whether this process has the object open for itself.
    is_open: fn(ObjectId) -> bool,
}

/// What this process keeps open for receivers, once an object. A forked child has no use for its parent's: their handles
/// name the parent.
struct Table {
    owner: Option<Identity>,
    kept: HashMap<ObjectId, HandedOut>,
    /// So many entries are worth a look at which of them can go.
    crowd: usize,
}

/// The least number of entries that is a crowd.
const CROWD: usize = 16;

/// How the handle of a shared object is to refer to its descriptor: attached inside [`collect`], else held open by this
/// process, once an object however often it is handed out, until all that was handed out has been opened and
/// the process has no handle to the object itself (`is_open`), or until it ends. Called with the object open.
///
/// # Errors
/// Out of descriptors.
pub fn send(
    id: ObjectId,
    fd: BorrowedFd<'_>,
    header: &Header,
    is_open: fn(ObjectId) -> bool,
) -> std::io::Result<Transit> {
    static TABLE: Mutex<Option<Table>> = Mutex::new(None);
    if let Some(attached) = attach_object(id, fd)? {
        return Ok(attached);
    }
    fork::watch()?;
    let _gate = fork::gate();
    let me = Identity::current();
    let mut table = TABLE.lock().unwrap_or_else(PoisonError::into_inner);
    let table = match &mut *table {
        Some(table) if table.owner == Some(me) => table,
        other => other.insert(Table { owner: Some(me), kept: HashMap::new(), crowd: CROWD }),
    };
    if table.kept.len() >= table.crowd {
        table.kept.retain(|id, object| (object.is_open)(*id) || !Header::all_opened(object.fd.as_fd()));
        table.crowd = (table.kept.len() * 2).max(CROWD);
    }
    let kept = match table.kept.entry(id) {
        Entry::Occupied(kept) => kept.into_mut(),
        Entry::Vacant(place) => place.insert(HandedOut { fd: fd.try_clone_to_owned()?, is_open }),
    };
    header.note_sent();
    Ok(Transit::Held { holder: me, fd: kept.fd.as_raw_fd() as u32 })
}

/// Runs `deserialise` without counting the handles in it as opened: the same bytes may be read again, so that their
/// sender has to keep what they refer to.
pub fn to_be_read_again<R>(deserialise: impl FnOnce() -> R) -> R {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            READ_AGAIN.set(self.0);
        }
    }
    let _restore = Restore(READ_AGAIN.replace(true));
    deserialise()
}

/// Counts a handle as opened, after [`receive`] or where its object was open already.
pub(crate) fn opened(transit: Transit, header: &Header) {
    if matches!(transit, Transit::Held { .. }) && !READ_AGAIN.get() {
        header.note_opened();
    }
}

/// Opens what [`send`] sent. The caller checks the object's header and id: the number may mean something
/// else by now.
///
/// # Errors
/// The sender is gone or does not have it, or the system refused.
pub fn receive(transit: Transit) -> Result<OwnedFd, OpenError> {
    let (holder, fd) = match transit {
        Transit::Attached(index) => return attached(index),
        Transit::Held { holder, fd } => (holder, fd),
    };
    let pid = holder.pid().as_raw_nonzero().get();
    if !holder.is_alive() {
        return Err(OpenError::Gone { pid });
    }
    let path = format!("/proc/{pid}/fd/{fd}");
    // A damaged handle may name anything; opening a device or a pipe could do something. NONBLOCK: nor does a lease that
    // its holder took make this process wait.
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    let opened = stat(&path).and_then(|about| match FileType::from_raw_mode(about.st_mode) {
        FileType::RegularFile => open(&path, flags, Mode::empty()),
        _ => Err(Errno::NXIO),
    });
    match opened {
        Ok(fd) => Ok(fd),
        Err(Errno::NOENT) if !holder.is_alive() => Err(OpenError::Gone { pid }),
        Err(Errno::NOENT | Errno::NXIO) => Err(OpenError::NotHeld { pid }),
        Err(error) => Err(OpenError::system("opening the sender's descriptor")(error)),
    }
}
