//! Descriptors on their way to another process.
//!
//! A handle that is serialised needs its descriptor at the other end. Where the channel can carry
//! descriptors (a Unix socket to a new process, a pipe), its sender wraps serialisation in [`collect`], and its
//! receiver wraps deserialisation in [`deliver`]; the bytes then hold the descriptor's place in the message.
//! Anywhere else (in a queue, in a file) the bytes name a descriptor that the sending process keeps open
//! for the receiver, which opens it through `/proc/PID/fd`.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use procession_sys::identity::Identity;
use procession_sys::procfs;
use procession_sys::scoped::Scoped;
use rustix::fs::{FileType, Mode, OFlags, fstat, open, stat};
use rustix::io::Errno;

use super::error::OpenError;
use super::fd_ref::FdRef;
use super::handed_out::{self, Exportable};
use super::header::{Header, ObjectId};
use super::{holders, tally};

thread_local! {
    static FAILURE: RefCell<Option<OpenError>> = const { RefCell::new(None) };
    static OUTGOING: Scoped<Outgoing> = const { Scoped::empty() };
    static INCOMING: Scoped<Vec<OwnedFd>> = const { Scoped::empty() };
    static READ_AGAIN: Scoped<Opened> = const { Scoped::empty() };
}

/// What goes with the message that is being serialised.
#[derive(Default)]
struct Outgoing {
    descriptors: Vec<OwnedFd>,
    /// The places of the objects among them: many locks share one chunk, and a queue may occur more than once.
    places: HashMap<ObjectId, FdRef>,
}

/// Runs `serialise` with descriptors attached: duplicates of those that [`attach`] and [`send`] see are returned, to be
/// sent along with the bytes. An object that is sent several times has one.
pub fn collect<R>(serialise: impl FnOnce() -> R) -> (R, Vec<OwnedFd>) {
    let outgoing = Scoped::enter(&OUTGOING, Outgoing::default());
    let result = serialise();
    (result, outgoing.leave().unwrap_or_default().descriptors)
}

/// Runs `deserialise` with the descriptors that came along with the bytes.
pub fn deliver<R>(descriptors: Vec<OwnedFd>, deserialise: impl FnOnce() -> R) -> R {
    let _incoming = Scoped::enter(&INCOMING, descriptors);
    deserialise()
}

/// Adds a duplicate of the descriptor to the message that is being serialised; `None` outside [`collect`].
///
/// # Errors
/// Out of descriptors.
pub fn attach(fd: BorrowedFd<'_>) -> std::io::Result<Option<FdRef>> {
    Scoped::with(&OUTGOING, |outgoing| {
        let Some(outgoing) = outgoing else { return Ok(None) };
        Ok(Some(outgoing.add(fd.try_clone_to_owned()?)))
    })
}

/// As [`attach`], once an object.
fn attach_object<T: Exportable>(object: &T) -> std::io::Result<Option<FdRef>> {
    let id = object.id();
    Scoped::with(&OUTGOING, |outgoing| {
        let Some(outgoing) = outgoing else { return Ok(None) };
        if let Some(place) = outgoing.places.get(&id) {
            return Ok(Some(*place));
        }
        let place = outgoing.add(object.to_attach()?);
        outgoing.places.insert(id, place);
        Ok(Some(place))
    })
}

impl Outgoing {
    fn add(&mut self, fd: OwnedFd) -> FdRef {
        self.descriptors.push(fd);
        FdRef::Attached((self.descriptors.len() - 1) as u32)
    }
}

/// A duplicate of the `index`-th descriptor that came with the message being deserialised.
///
/// # Errors
/// [`OpenError::NotAttached`] when there is none.
pub fn attached(index: u32) -> Result<OwnedFd, OpenError> {
    Scoped::with(&INCOMING, |incoming| {
        let fd = incoming.and_then(|fds| fds.get(index as usize)).ok_or(OpenError::NotAttached)?;
        fd.try_clone().map_err(OpenError::system("duplicating a descriptor"))
    })
}

/// Records why a handle could not be sent or opened, for [`failure`]: a serialiser passes on that something
/// failed, but not what. Returns the message for its own error.
pub fn fail(error: OpenError) -> String {
    let message = error.to_string();
    // A thread that ends loses the reason, not the failure.
    let _ = FAILURE.try_with(|failure| failure.replace(Some(error)));
    message
}

/// Takes what [`fail`] recorded last on this thread. Whoever is about to serialise takes, and drops, what an
/// earlier use may have left; whoever has failed to serialise takes the reason.
pub fn failure() -> Option<OpenError> {
    FAILURE.try_with(RefCell::take).ok().flatten()
}

/// How the handle of a shared object is to refer to its descriptor: attached inside [`collect`], else held open by this
/// process. An object that is sent several times in one message has one descriptor there.
///
/// # Errors
/// Out of descriptors.
pub fn send<T: Exportable + 'static>(object: &Arc<T>) -> std::io::Result<FdRef> {
    if let Some(attached) = attach_object(&**object)? {
        return Ok(attached);
    }
    let transit = handed_out::hand_out(&**object)?;
    tally::sent(|| Arc::clone(object) as Arc<dyn Exportable>);
    Ok(transit)
}

/// Declares that whoever was sent a handle of the object, and has not opened it, never will.
pub(crate) fn disown<T: Exportable>(object: &T) {
    object.header().note_all_opened();
}

/// Closes the descriptors that a forked child has inherited from its parent, which keeps them for others. Sending the first
/// handle does the same.
pub fn forget_parents() {
    handed_out::forget_parents();
}

/// Handles that were opened, but whose message may be read again. Their sender keeps what they refer to until
/// [`Opened::settle`].
#[derive(Default)]
#[must_use = "their sender keeps a descriptor for each until they are settled"]
pub struct Opened {
    objects: Vec<Arc<dyn Exportable>>,
    others: Vec<Settling>,
}

type Settling = Box<dyn FnOnce() + Send + Sync>;

impl Opened {
    /// Whether there were none.
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty() && self.others.is_empty()
    }

    /// Declares that nobody will read the message again. A process that dies before it says so leaves the sender with a
    /// descriptor that it could close.
    pub fn settle(self) {
        self.objects.iter().for_each(|object| object.header().note_opened());
        self.others.into_iter().for_each(|settled| settled());
    }
}

/// Runs `settled` once nobody will read again the message that is being deserialised: now, or inside
/// [`to_be_read_again`] when it is settled, if it ever is. For handles that are no objects of this crate.
pub fn when_settled(settled: impl FnOnce() + Send + Sync + 'static) {
    if !may_be_read_again() {
        return settled();
    }
    Scoped::with(&READ_AGAIN, |opened| {
        if let Some(opened) = opened {
            opened.others.push(Box::new(settled));
        }
    });
}

/// Whether the message that is being deserialised may be read again: it is inside of [`to_be_read_again`].
pub fn may_be_read_again() -> bool {
    Scoped::is_set(&READ_AGAIN)
}

/// Whether descriptors go along with what is being serialised: it is inside of [`collect`].
pub fn carries_descriptors() -> bool {
    Scoped::is_set(&OUTGOING)
}

/// Runs `deserialise` without counting the handles in it as opened: the same bytes may be read again, so that their
/// sender has to keep what they refer to.
pub fn to_be_read_again<R>(deserialise: impl FnOnce() -> R) -> (R, Opened) {
    let opened = Scoped::enter(&READ_AGAIN, Opened::default());
    let result = deserialise();
    (result, opened.leave().unwrap_or_default())
}

/// Counts a handle as opened, after [`receive`] or where its object was open already.
pub(crate) fn opened<T: Exportable + 'static>(transit: FdRef, object: &Arc<T>) {
    if matches!(transit, FdRef::Attached(_)) {
        return;
    }
    Scoped::with(&READ_AGAIN, |opened| match opened {
        Some(opened) => opened.objects.push(Arc::clone(object) as Arc<dyn Exportable>),
        None => object.header().note_opened(),
    });
}

/// Opens the object of a handle. If its sender has ended, any living process that has the object
/// open serves: the sender's [`keeper`](super::keeper), say.
///
/// # Errors
/// As [`receive`].
pub fn receive_object(transit: FdRef, id: ObjectId) -> Result<OwnedFd, OpenError> {
    let received = receive(transit);
    let elsewhere = match (&received, transit) {
        (_, FdRef::Attached(_)) => false,
        (Ok(fd), _) => Header::id_in(fd.as_fd()) != Some(id),
        (Err(OpenError::Gone { .. } | OpenError::NotHeld { .. }), _) => true,
        (Err(_), _) => false,
    };
    let found = if elsewhere { holders::find(id) } else { None };
    found.map_or(received, Ok)
}

/// Opens what [`send`] sent. The caller checks the object's header and id: the number may mean something
/// else by now.
///
/// # Errors
/// The sender is gone or does not have it, or the system refused.
pub fn receive(transit: FdRef) -> Result<OwnedFd, OpenError> {
    let (holder, fd) = match transit {
        FdRef::Attached(index) => return attached(index),
        FdRef::Held { holder, fd } => (holder, fd),
    };
    let pid = holder.pid_number();
    if !holder.is_alive() {
        return Err(OpenError::Gone { pid });
    }
    let opened = if procfs::has_our_pids() { open_by_path(pid, fd) } else { Err(Errno::NOENT) };
    match opened {
        Ok(fd) => Ok(fd),
        Err(Errno::NOENT | Errno::NXIO) if !holder.is_alive() => Err(OpenError::Gone { pid }),
        Err(Errno::NOENT) if !procfs::shows(holder.pid()) => duplicate(holder, fd),
        Err(Errno::NOENT | Errno::NXIO) => Err(OpenError::NotHeld { pid }),
        Err(error) => Err(OpenError::system(OPENING)(error)),
    }
}

const OPENING: &str = "opening the sender's descriptor";

fn open_by_path(pid: u32, fd: u32) -> Result<OwnedFd, Errno> {
    let path = format!("/proc/{pid}/fd/{fd}");
    // A damaged handle may name anything; opening a device or a pipe could do something. NONBLOCK: nor does a lease that
    // its holder took make this process wait.
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    match FileType::from_raw_mode(stat(&path)?.st_mode) {
        FileType::RegularFile => open(&path, flags, Mode::empty()),
        _ => Err(Errno::NXIO),
    }
}

/// A duplicate of the descriptor of a process that `/proc` does not show.
fn duplicate(holder: Identity, fd: u32) -> Result<OwnedFd, OpenError> {
    let pid = holder.pid_number();
    match holder.duplicate_descriptor(fd) {
        Ok(fd) => match fstat(&fd).map(|about| FileType::from_raw_mode(about.st_mode)) {
            Ok(FileType::RegularFile) => Ok(fd),
            _ => Err(OpenError::NotHeld { pid }),
        },
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(OpenError::system(OPENING)(error)),
        Err(_) if holder.is_alive() => Err(OpenError::NotHeld { pid }),
        Err(_) => Err(OpenError::Gone { pid }),
    }
}
