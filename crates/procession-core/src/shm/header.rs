//! What every mapping begins with.

use std::fmt;

use procession_sys::crash_point::{AtomicU32, AtomicU64, Ordering};
use procession_sys::identity;
use rustix::fd::BorrowedFd;

use super::error::OpenError;
use super::kind::Kind;

/// The first bytes of every object.
pub(super) const MARK: &[u8; 8] = b"PROCESSN";
/// The same, as the word that is stored.
const MAGIC: u64 = u64::from_ne_bytes(*MARK);
/// Changes with every change of any shared layout.
const VERSION: u32 = 4;

/// A random number that names one shared object on this machine.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ObjectId([u8; 16]);

impl ObjectId {
    /// A new id from the system's random numbers.
    pub fn random() -> Self {
        let mut bytes = [0; 16];
        let mut filled = 0;
        while filled < bytes.len() {
            // Can only be interrupted: up to 256 bytes come whole once the pool is ready.
            filled += rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())
                .unwrap_or(0);
        }
        ObjectId(bytes)
    }

    /// The id's bytes, as they stand in a handle.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0
    }

    /// The id as it stands in a header.
    fn words(self) -> [u64; 2] {
        let (low, high) = self.0.split_at(8);
        [low, high].map(|half| half.try_into().map_or(0, u64::from_ne_bytes))
    }

    fn from_words(words: [u64; 2]) -> Self {
        let bytes = words.map(u64::to_ne_bytes);
        ObjectId(std::array::from_fn(|i| bytes[i / 8][i % 8]))
    }

    /// Reads an id back.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        ObjectId(bytes)
    }
}

impl fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

/// The first 64 bytes of every shared object.
///
/// Its creator writes every other field, then `magic` with Release; nothing but `sent` and `opened` changes afterwards. Who finds
/// the magic with Acquire therefore finds a whole object. A creator that dies earlier leaves a mapping without
/// the magic, which is no object. All fields are atomics, as a peer may change what never should: each is read once.
#[repr(C, align(64))]
pub struct Header {
    magic: AtomicU64,
    version: AtomicU32,
    kind: AtomicU32,
    id: [AtomicU64; 2],
    pid_namespace: AtomicU64,
    /// How many handles were made that name a descriptor of their sender. Each sender adds one before the handle's bytes exist;
    /// dying in between leaves the sum too high, which keeps descriptors open that could be closed.
    sent: AtomicU64,
    /// How many of them were opened. Each receiver adds one once it has the object; dying before has the same effect.
    opened: AtomicU64,
    reserved: u64,
}

impl Header {
    /// The header of a new object, without its magic: [`Header::publish`] adds it when all else stands.
    ///
    /// # Errors
    /// What asking for the pid namespace reported.
    pub fn new(kind: Kind, id: ObjectId) -> std::io::Result<Self> {
        Ok(Header {
            magic: AtomicU64::new(0),
            version: AtomicU32::new(VERSION),
            kind: AtomicU32::new(kind as u32),
            id: id.words().map(AtomicU64::new),
            pid_namespace: AtomicU64::new(identity::pid_namespace()?),
            sent: AtomicU64::new(0),
            opened: AtomicU64::new(0),
            reserved: 0,
        })
    }

    /// Counts a handle that names a descriptor of this process.
    pub(super) fn note_sent(&self) {
        self.sent.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts such a handle as opened.
    pub(super) fn note_opened(&self) {
        self.opened.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts all such handles as opened.
    pub(super) fn note_all_opened(&self) {
        self.opened.store(self.sent.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Whether every such handle of the object in this file has been opened. False when the file cannot be read.
    pub(crate) fn all_opened(file: BorrowedFd<'_>) -> bool {
        let mut counts = [0; 16];
        let read = rustix::io::pread(file, &mut counts, std::mem::offset_of!(Header, sent) as u64);
        let (sent, opened) = counts.split_at(8);
        let count = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_ne_bytes);
        read == Ok(counts.len()) && count(opened) >= count(sent)
    }

    /// The id of the object in this file; `None` when there is none or the file cannot be read.
    pub(super) fn id_in(file: BorrowedFd<'_>) -> Option<ObjectId> {
        let mut start = [0; 32];
        let read = rustix::io::pread(file, &mut start, 0);
        let at = std::mem::offset_of!(Header, id);
        let id = start.get(at..at + 16)?.try_into().ok()?;
        (read == Ok(start.len()) && start.starts_with(MARK)).then_some(ObjectId(id))
    }

    /// Declares the object whole.
    pub fn publish(&self) {
        self.magic.store(MAGIC, Ordering::Release);
    }

    /// Whether [`Header::publish`] has been reached.
    pub fn is_published(&self) -> bool {
        self.magic.load(Ordering::Acquire) == MAGIC
    }

    /// Checks that this is a whole object of this version and `kind`, usable in this pid namespace; returns its id.
    ///
    /// # Errors
    /// Which of these does not hold.
    pub fn check(&self, kind: Kind) -> Result<ObjectId, OpenError> {
        if !self.is_published() {
            return Err(OpenError::NotAnObject("it does not begin with this library's mark"));
        }
        let version = self.version.load(Ordering::Relaxed);
        if version != VERSION {
            return Err(OpenError::Version { found: version, expected: VERSION });
        }
        let found = Kind::from_raw(self.kind.load(Ordering::Relaxed))
            .ok_or(OpenError::Damaged("unknown kind of object"))?;
        if found != kind {
            return Err(OpenError::Kind { found, expected: kind });
        }
        let namespace = identity::pid_namespace().map_err(OpenError::system("reading the pid namespace"))?;
        if self.pid_namespace.load(Ordering::Relaxed) != namespace {
            return Err(OpenError::PidNamespace);
        }
        Ok(ObjectId::from_words(std::array::from_fn(|i| self.id[i].load(Ordering::Relaxed))))
    }
}
