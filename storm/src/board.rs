//! What the processes write down, in mapped files that outlive them. Nothing here uses the library that is tested.
//!
//! A *board* has one slot for each process of a turn, and a few words that all share. Beside it each process has a *log* of
//! its own: a file of entries, of which those below the slot's `entries` count.

use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use procession_sys::identity::Identity;
use rustix::fs::ftruncate;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::time::{ClockId, clock_gettime};

use crate::roles::{DOINGS, NAMES};

/// Processes that one turn can have.
pub(crate) const SLOTS: usize = 16_384;
/// Entries that one process can write; one that has written so many ends, and another takes its place.
pub(crate) const ENTRIES: usize = 1 << 20;
/// What is free of a log below this makes its process end.
const RESERVE: u64 = 4096;

/// The words that all processes of a turn share.
#[repr(C, align(64))]
pub(crate) struct Head {
    /// Not 0 when the processes are to finish what they do and end. Written by the supervisor.
    pub(crate) stop: AtomicU64,
    /// Slots that are taken. Grown by whoever starts a process.
    pub(crate) slots: AtomicU64,
    /// Who is inside the section that a lock guards: a slot's number plus 1, or 0. Written inside it.
    pub(crate) section: AtomicU64,
    /// A counter that the lock guards. Written inside the section.
    pub(crate) counter: AtomicU64,
    /// A second one, of what has been taken of the first. Written inside the section.
    pub(crate) taken: AtomicU64,
    /// How often all parties of a barrier met. Written by the one that runs its action.
    pub(crate) generation: AtomicU64,
}

/// What one process says of itself. Written by that process but where something else is said.
#[repr(C, align(64))]
pub(crate) struct Slot {
    /// Its `Identity` as bits, 0 until it began.
    pub(crate) identity: AtomicU64,
    /// 1 when it ended as it should.
    pub(crate) ended: AtomicU64,
    /// Not 0 when it was killed or is about to be. Written by the supervisor, before the kill.
    pub(crate) killed: AtomicU64,
    /// When it last got on, in µs of the monotonic clock.
    pub(crate) beat: AtomicU64,
    /// What it does, as a number of [`crate::roles::Doing`].
    pub(crate) doing: AtomicU64,
    /// Entries in its log that count.
    pub(crate) entries: AtomicU64,
    /// Above 16 bits, how many of its puts returned; below, how many more are under way.
    pub(crate) put: AtomicU64,
    /// How many messages the get that is under way may still take, or has taken and not noted.
    pub(crate) taking: AtomicU64,
    /// The task, as its id plus 1, that it is about to declare done; 0 for none.
    pub(crate) finishing: AtomicU64,
    /// The value of [`Head::counter`] that it is about to store; 0 for none.
    pub(crate) intent: AtomicU64,
    /// How often it took or gave back a permit: odd while it has one.
    pub(crate) inside: AtomicU64,
    /// The slot of the process that started it, plus 1; 0 for the supervisor. Written by that process.
    pub(crate) parent: AtomicU64,
    /// Which role it has, as a number of [`crate::roles::NAMES`]. Written by whoever started it.
    pub(crate) role: AtomicU64,
    /// 1 when it is a daemon. Written by whoever started it.
    pub(crate) daemon: AtomicU64,
    pad: [u64; 2],
}

impl Slot {
    /// The puts that returned, and those under way.
    pub(crate) fn puts(&self) -> (u64, u64) {
        let word = self.put.load(Acquire);
        (word >> 16, word & 0xffff)
    }
}

/// A file of words that all processes map.
struct Mapping {
    start: NonNull<u64>,
    words: usize,
}

impl Mapping {
    fn of(path: &Path, words: usize) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let bytes = words * size_of::<u64>();
        ftruncate(&file, bytes as u64)?;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice; nothing of this process lies there.
        let start = unsafe { mmap(std::ptr::null_mut(), bytes, access, MapFlags::SHARED, &file, 0)? };
        Ok(Mapping { start: NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?, words })
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: so many words are mapped from here, aligned to a page, as long as `self`; all access to the file is by
        // atomics, and nothing truncates it while it is in use.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast(), self.words) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `of` with this size; references into it borrow `self`.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), self.words * size_of::<u64>()) };
        debug_assert!(unmapped.is_ok());
    }
}

const HEAD_WORDS: usize = size_of::<Head>() / size_of::<u64>();
const SLOT_WORDS: usize = size_of::<Slot>() / size_of::<u64>();

/// The board of a turn, mapped.
pub(crate) struct Board {
    folder: PathBuf,
    mapping: Mapping,
}

impl Board {
    /// The board in this folder, made if it is not there.
    pub(crate) fn open(folder: &Path) -> io::Result<Self> {
        let mapping = Mapping::of(&folder.join("board"), HEAD_WORDS + SLOTS * SLOT_WORDS)?;
        Ok(Board { folder: folder.to_owned(), mapping })
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn head(&self) -> &Head {
        let words = &self.mapping.words()[..HEAD_WORDS];
        // SAFETY: as many words as a head has, aligned to a page; all of it is atomics, for which any bits are valid.
        unsafe { &*words.as_ptr().cast() }
    }

    pub(crate) fn slot(&self, number: u64) -> &Slot {
        let words = &self.mapping.words()[HEAD_WORDS..][number as usize * SLOT_WORDS..][..SLOT_WORDS];
        // SAFETY: as many words as a slot has, at a multiple of 64 bytes from a page (a head's size is one too); all of it is
        // atomics or unused words, for which any bits are valid.
        unsafe { &*words.as_ptr().cast() }
    }

    /// How many slots are taken.
    pub(crate) fn count(&self) -> u64 {
        self.head().slots.load(Acquire).min(SLOTS as u64)
    }

    /// What every process that is not known to have ended or been killed does, and since when.
    pub(crate) fn describe(&self) -> String {
        let mut text = String::new();
        for number in 0..self.count() {
            let slot = self.slot(number);
            if slot.ended.load(Acquire) != 0 || slot.killed.load(Acquire) != 0 {
                continue;
            }
            let name = |names: &[&'static str], word: &AtomicU64| {
                names.get(word.load(Acquire) as usize).copied().unwrap_or("?")
            };
            let (role, doing) = (name(&NAMES, &slot.role), name(&DOINGS, &slot.doing));
            let who = match Identity::from_bits(slot.identity.load(Acquire)) {
                None => "not begun".to_owned(),
                Some(identity) if identity.is_alive() => format!("pid {}", identity.pid()),
                Some(identity) => format!("pid {}, dead", identity.pid()),
            };
            let since = now().saturating_sub(slot.beat.load(Acquire)) / 1000;
            text += &format!("process {number}, {role} ({who}): {doing}, without progress for {since} ms\n");
        }
        let head = self.head();
        let words = [&head.stop, &head.section, &head.counter, &head.taken, &head.generation];
        let [stop, section, counter, taken, generation] = words.map(|word| word.load(Acquire));
        text += &format!(
            "stop {stop}, section {section}, counter {counter}, taken {taken}, generation {generation}\n"
        );
        text
    }

    /// A slot for a process that is about to be started; `None` when all are taken.
    pub(crate) fn take_slot(&self, role: usize, parent: Option<u64>, daemon: bool) -> Option<u64> {
        // The new slot counts at once; until its words are stored it reads as that of a process that has not begun.
        let number = self.head().slots.fetch_add(1, Relaxed);
        if number >= SLOTS as u64 {
            return None;
        }
        let slot = self.slot(number);
        slot.role.store(role as u64, Relaxed);
        slot.beat.store(now(), Relaxed);
        slot.daemon.store(daemon.into(), Relaxed);
        slot.parent.store(parent.map_or(0, |parent| parent + 1), Release);
        Some(number)
    }
}

/// A process's log, mapped.
pub(crate) struct Log(Mapping);

impl Log {
    pub(crate) fn open(board: &Board, slot: u64) -> io::Result<Self> {
        Mapping::of(&board.folder.join(format!("log-{slot}")), ENTRIES).map(Log)
    }

    /// Writes an entry. A death leaves it written and counted, or neither.
    pub(crate) fn add(&self, slot: &Slot, entry: u64) {
        let count = slot.entries.load(Relaxed);
        self.0.words()[count as usize].store(entry, Relaxed);
        slot.entries.store(count + 1, Release);
    }

    /// Whether so few entries are left that the process should end.
    pub(crate) fn is_nearly_full(slot: &Slot) -> bool {
        slot.entries.load(Relaxed) + RESERVE > ENTRIES as u64
    }
}

/// What a process has logged.
pub(crate) fn entries(board: &Board, number: u64) -> io::Result<Vec<u64>> {
    let count = board.slot(number).entries.load(Acquire) as usize;
    if count == 0 {
        return Ok(Vec::new());
    }
    let log = Log::open(board, number)?;
    Ok(log.0.words()[..count].iter().map(|entry| entry.load(Relaxed)).collect())
}

/// µs of the monotonic clock, the same in all processes.
pub(crate) fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1000
}
