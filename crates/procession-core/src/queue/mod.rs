//! The queue of byte messages: many producers, many consumers, any of which may die at any instruction.

mod delivery;
mod describe;
mod error;
mod get;
#[cfg(test)]
mod hostile;
mod join;
mod mapping;
mod message;
mod owned_block;
mod put;
mod watch;

use std::io;
use std::sync::atomic::{AtomicU64 as LocalAtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Weak};

use procession_sys::clock::{self, Deadline};
use procession_sys::presence::{self, Presence};
use procession_sys::{fork, memory};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};

pub use self::delivery::{Delivery, LentDelivery};
pub use self::error::{GetError, JoinError, PutError, TaskDoneError};
pub use self::get::{Batch, Part};
pub use self::mapping::MessageMapping;
pub use self::message::{Message, Reservation};
pub use crate::ring::{BEGINNING, Damaged, INLINE_MAX, MAX_MESSAGES, Peeked, RingError, WatchError};

use crate::ring::{ON_ITS_WAY, PRESENT, Ring, Settings};
use crate::shm::FdRef;
use crate::shm::handed_out::{self, Exportable};
use crate::shm::named::Name;
use crate::shm::registry::Registry;
use crate::shm::transfer;
use crate::shm::{CreateError, Header, Kind, ObjectId, OpenError, windows};
use crate::sync::atomic::Ordering;
use crate::sync::wait::Slept;
use crate::sync::{SLICE, Slices, Spinner, WaitQueue};

/// What a new queue is to be like.
#[derive(Clone, Copy, Debug, Default)]
pub struct QueueOptions {
    max_messages: Option<usize>,
    max_bytes: Option<u64>,
    joinable: bool,
    abandonable: bool,
    shape: u64,
}

impl QueueOptions {
    /// A queue without a bound on its messages or bytes but half of this machine's (or cgroup's)
    /// memory.
    pub fn new() -> Self {
        Self::default()
    }

    /// The most messages at a time: 1 to [`MAX_MESSAGES`]. Further puts wait for room.
    pub fn max_messages(mut self, max: usize) -> Self {
        self.max_messages = Some(max);
        self
    }

    /// The most bytes of memory that messages may take, rounded up to what memory comes in. Further
    /// puts wait for room. Without this bound they fail, at half of this machine's memory.
    pub fn max_bytes(mut self, max: u64) -> Self {
        self.max_bytes = Some(max);
        self
    }

    /// Whether unfinished tasks are counted, for [`Queue::task_done`], [`Queue::join`] and deliveries.
    pub fn joinable(mut self, joinable: bool) -> Self {
        self.joinable = joinable;
        self
    }

    /// Whether gets that wait fail with [`GetError::Abandoned`] when the queue is empty and no
    /// process is left to put.
    ///
    /// That is the case when no other process has the queue or a handle on its way to it. A process
    /// does not count while its only thread waits for a message without a deadline; the library's
    /// own threads are ignored. Nor does one that got the error and has not put or got since. So
    /// each of several consumers gets the error. Other threads of the caller do not keep it
    /// waiting. Each process with the queue holds a file lock, which the kernel drops at the
    /// process's end. The end is noticed within a second. The lock costs a descriptor, and nothing
    /// for messages.
    pub fn abandonable(mut self, abandonable: bool) -> Self {
        self.abandonable = abandonable;
        self
    }

    /// A number that describes the messages. A process that opens the queue gets it from
    /// [`Queue::shape`]. 0 by default.
    pub fn shape(mut self, shape: u64) -> Self {
        self.shape = shape;
        self
    }

    fn settings(&self) -> Result<Settings, CreateError> {
        let invalid = |problem: String| CreateError::Invalid { object: "a queue", problem };
        let max_messages = match self.max_messages {
            None => 0,
            Some(max) => {
                u32::try_from(max).ok().filter(|max| (1..=MAX_MESSAGES).contains(max)).ok_or_else(|| {
                    invalid(format!("a bound of {max} messages is not within 1 to {MAX_MESSAGES}"))
                })?
            }
        };
        let max_bytes = self.max_bytes.unwrap_or_else(|| memory::limit() / 2);
        if max_bytes < windows::FIRST {
            let least = windows::FIRST;
            return Err(invalid(format!("max_bytes of {max_bytes} is below the least, {least} bytes")));
        }
        Ok(Settings {
            max_messages,
            max_bytes,
            waits_for_bytes: self.max_bytes.is_some(),
            joinable: self.joinable,
            abandonable: self.abandonable,
            shape: self.shape,
        })
    }
}

/// A handle to a queue in shared memory. Clones, forked children and the holders of sent handles use the same queue;
/// it is gone with the last of them.
#[derive(Clone)]
pub struct Queue {
    shared: Arc<Shared>,
}

/// One process's view of a queue.
struct Shared {
    ring: Ring,
    /// Dropped after the ring, and with it the lock that says this process uses the name.
    name: Option<Name>,
    /// By which others know that this process has the queue, if it is abandonable.
    presence: Option<Presence>,
    /// How many of this process's handles are not used any more.
    retired: AtomicUsize,
    put_spinner: Spinner,
    get_spinner: Spinner,
    /// When this process may sweep again, in ms of the monotonic clock: a stopped process kept it
    /// from that.
    no_sweep_before: LocalAtomicU64,
}

static OPEN: Registry<Shared> = Registry::new();

const PRESENT_AT: &str = "locking its file, as each process does that has an abandonable queue";

fn present(error: io::Error) -> OpenError {
    OpenError::system(PRESENT_AT)(error)
}

/// The bytes of a handle.
pub const HANDLE_LEN: usize = 16 + FdRef::LEN;

impl Queue {
    /// Makes a queue.
    ///
    /// # Errors
    /// [`CreateError`]: an impossible option, or the system refused.
    pub fn create(options: &QueueOptions) -> Result<Self, CreateError> {
        let settings = options.settings()?;
        let fd = memory::create(c"procession-queue", windows::FIRST)
            .map_err(CreateError::system(Kind::Queue, "creating a memfd"))?;
        Self::over(Ring::create(fd, settings)?, None)
    }

    /// Makes a queue that unrelated processes of this user can open by name.
    ///
    /// # Errors
    /// [`CreateError`]; [`CreateError::Taken`] when a living process uses the name. What processes that all died
    /// left under the name is removed.
    pub fn create_named(name: &str, options: &QueueOptions) -> Result<Self, CreateError> {
        let settings = options.settings()?;
        let make = || {
            Name::create(name, Kind::Queue, |fd| {
                memory::grow(&fd, windows::FIRST)
                    .map_err(CreateError::system(Kind::Queue, "sizing its file"))?;
                Ring::create(fd, settings)
            })
        };
        let (ring, name) = make().or_else(|error| match error {
            CreateError::Taken { .. } => {
                // It may be this process that keeps it, for handles that have arrived meanwhile.
                handed_out::look();
                make()
            }
            error => Err(error),
        })?;
        Self::over(ring, Some(name))
    }

    /// Opens the queue of that name.
    ///
    /// # Errors
    /// [`OpenError`]; [`OpenError::NotFound`] when no living process uses it.
    pub fn open_named(name: &str) -> Result<Self, OpenError> {
        let (fd, name) = Name::open(name)?;
        let ring = Ring::open(fd)?;
        let id = ring.id();
        let shared = OPEN.get_or_open(id, || Shared::new(ring, Some(name)).map_err(present).map(Arc::new))?;
        Ok(Queue { shared })
    }

    fn over(ring: Ring, name: Option<Name>) -> Result<Self, CreateError> {
        let shared = Shared::new(ring, name);
        let shared = Arc::new(shared.map_err(CreateError::system(Kind::Queue, PRESENT_AT))?);
        let _gate = fork::gate();
        OPEN.insert(shared.ring.id(), &shared);
        Ok(Queue { shared })
    }

    /// The bytes by which another process can open this queue: see [`transfer`].
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn to_handle(&self) -> std::io::Result<[u8; HANDLE_LEN]> {
        let id = self.shared.ring.id();
        let transit = transfer::send(&self.shared)?;
        let mut handle = [0; HANDLE_LEN];
        handle[..16].copy_from_slice(&id.to_bytes());
        handle[16..].copy_from_slice(&transit.to_bytes());
        Ok(handle)
    }

    /// Declares that whoever was sent a handle, and has not opened it, never will: its process has ended, say. So nothing is kept for it
    /// any longer than this process has the queue itself.
    pub fn disown_handles(&self) {
        transfer::disown(&*self.shared);
    }

    /// Opens the queue of a handle. A queue that this process has open already is the same mapping.
    ///
    /// # Errors
    /// [`OpenError`]: no living process has the queue open, or the handle leads to something else.
    pub fn from_handle(handle: &[u8]) -> Result<Self, OpenError> {
        let handle: &[u8; HANDLE_LEN] =
            handle.try_into().map_err(|_| OpenError::Malformed("wrong length"))?;
        let (id, transit) = handle.split_at(16);
        let id = ObjectId::from_bytes(id.try_into().map_err(|_| OpenError::Malformed("length"))?);
        let transit = FdRef::from_bytes(transit.try_into().map_err(|_| OpenError::Malformed("length"))?)?;
        let shared = OPEN.get_or_open(id, || {
            let received = transfer::receive_object(transit, id)?;
            // It may hold the lock of a handle on its way: until this process has a lock of its
            // own, and not by a mapping.
            let (fd, _on_its_way) = if Ring::is_abandonable(received.as_fd()) {
                (presence::open_again(received.as_fd()).map_err(present)?, Some(received))
            } else {
                (received, None)
            };
            let name = Name::of(fd.as_fd()).map_err(OpenError::system("locking its name"))?;
            if name.is_none() && !memory::cannot_shrink(&fd) {
                return Err(OpenError::NotAnObject("its memory could be taken away while it is used"));
            }
            let ring = Ring::open(fd)?;
            if ring.id() != id {
                return Err(match transit {
                    FdRef::Held { holder, .. } => OpenError::NotHeld { pid: holder.pid_number() },
                    FdRef::Attached(_) => OpenError::NotAttached,
                });
            }
            Shared::new(ring, name).map_err(present).map(Arc::new)
        })?;
        shared.attend();
        transfer::opened(transit, &shared);
        Ok(Queue { shared })
    }

    /// The queue's id, the same in every process.
    pub fn id(&self) -> ObjectId {
        self.shared.ring.id()
    }

    /// What its creator said that messages are like, by [`QueueOptions::shape`].
    pub fn shape(&self) -> u64 {
        self.shared.ring.settings().shape
    }

    /// Messages that are put and not taken, exact at an instant during the call.
    pub fn len(&self) -> u64 {
        self.shared.ring.len()
    }

    /// Whether there is no message, exact at an instant during the call.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether there are as many messages as the bound allows; never without a bound.
    pub fn is_full(&self) -> bool {
        self.shared.ring.is_full()
    }

    /// The bound on messages, if there is one.
    pub fn max_messages(&self) -> Option<u32> {
        Some(self.shared.ring.settings().max_messages).filter(|max| *max != 0)
    }

    /// Whether puts wait for room in bytes: the queue was made with a bound on them.
    pub fn waits_for_bytes(&self) -> bool {
        self.shared.ring.settings().waits_for_bytes
    }

    /// The bound on bytes.
    pub fn max_bytes(&self) -> u64 {
        self.shared.ring.settings().max_bytes
    }

    /// Whether unfinished tasks are counted.
    pub fn is_joinable(&self) -> bool {
        self.shared.ring.settings().joinable
    }

    /// Whether gets fail when no process is left to put.
    pub fn is_abandonable(&self) -> bool {
        self.shared.presence.is_some()
    }

    /// Says that this handle will not be used any more, which is kept open all the same. When no
    /// other handle of this process is used, others need not wait for it to put.
    pub fn retire(&self) -> Retired {
        let retired = self.shared.retired.fetch_add(1, Relaxed) + 1;
        if let Some(presence) = &self.shared.presence
            && retired >= Arc::strong_count(&self.shared)
        {
            presence.retire();
        }
        Retired(Arc::downgrade(&self.shared))
    }

    /// Whether a get that waited now would fail with [`GetError::Abandoned`]. If so, this process
    /// counts as told.
    ///
    /// # Errors
    /// [`Damaged`].
    pub fn is_abandoned(&self) -> Result<bool, Damaged> {
        self.shared.mend()?;
        self.shared.look_around(true)?;
        self.shared.learn_of_the_end()
    }

    /// How many bytes of memory the queue takes now, kept for later messages or in use.
    pub fn memory_used(&self) -> u64 {
        self.shared.ring.control().memory.used.load(Ordering::Relaxed)
    }

    /// Of [`Queue::memory_used`], what is in use: by messages that are put or being put, or taken and not yet dropped, and the ring
    /// itself.
    pub fn memory_in_use(&self) -> u64 {
        let memory = &self.shared.ring.control().memory;
        memory.used.load(Ordering::Relaxed).saturating_sub(memory.cached.load(Ordering::Relaxed))
    }

    /// Gives memory back to the system that is kept for later large messages, or that dead processes' messages have.
    ///
    /// It need not be called: both are found when memory is short or nothing has come for a while.
    ///
    /// # Errors
    /// [`Damaged`].
    pub fn trim(&self) -> Result<(), RingError> {
        self.trim_until(Deadline::Never)
    }

    /// As [`Queue::trim`], unless a process that is stopped has a lock; whether it was done.
    ///
    /// # Errors
    /// [`Damaged`].
    pub fn try_trim(&self) -> Result<bool, RingError> {
        match self.trim_until(Deadline::Now) {
            Ok(()) => Ok(true),
            Err(RingError::Busy) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn trim_until(&self, deadline: Deadline) -> Result<(), RingError> {
        self.shared.ring.sweep(deadline)?;
        self.shared.shrink()?;
        self.shared.ring.trim(deadline)
    }

    /// Ends the queue for all processes: further puts fail, gets take what is there and then fail; a delivery that another process
    /// holds counts as there, unless the caller's process holds one too. With
    /// `immediate`, gets fail at once and what is queued is discarded; its tasks count as done. Sleepers wake.
    ///
    /// A process killed here has either shut the queue down or not; what one killed while it discards leaves is discarded
    /// by whoever waits in [`Queue::join`], where the task in its hands may be reported as lost.
    ///
    /// # Errors
    /// [`Damaged`].
    pub fn shutdown(&self, immediate: bool) -> Result<(), RingError> {
        let ring = &self.shared.ring;
        let control = ring.control();
        {
            let _locks = ring.lock_both_and_signal(Deadline::Never)?;
            let state = if immediate { 2 } else { 1 };
            if control.settings.shutdown.load(Ordering::Relaxed) < state {
                control.settings.shutdown.store(state, Ordering::Release);
            }
        }
        if immediate {
            self.shared.discard_all()?;
        }
        control.waiting.not_empty.wake(u32::MAX);
        control.waiting.not_full.wake(u32::MAX);
        control.waiting.bytes_free.wake(u32::MAX);
        control.waiting.all_done.wake(u32::MAX);
        Ok(())
    }
}

/// A handle that is not used any more, from [`Queue::retire`]. Dropped before or after the handle.
#[derive(Debug)]
pub struct Retired(Weak<Shared>);

impl Drop for Retired {
    fn drop(&mut self) {
        if let Some(shared) = self.0.upgrade() {
            shared.retired.fetch_sub(1, Relaxed);
        }
    }
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue")
            .field("id", &self.id())
            .field("len", &self.len())
            .field("max_messages", &self.max_messages())
            .field("abandonable", &self.is_abandonable())
            .finish_non_exhaustive()
    }
}

impl Exportable for Shared {
    fn id(&self) -> ObjectId {
        self.ring.id()
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.ring.fd()
    }

    fn to_attach(&self) -> io::Result<OwnedFd> {
        self.to_send(PRESENT)
    }

    fn to_keep(&self) -> io::Result<OwnedFd> {
        self.to_send(ON_ITS_WAY)
    }

    fn header(&self) -> &Header {
        &self.ring.control().header
    }

    fn name(&self) -> Option<Name> {
        self.name.clone()
    }

    fn is_open(id: ObjectId) -> bool {
        OPEN.is_open(id)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        handed_out::let_go(self.ring.id());
    }
}

impl Shared {
    fn new(ring: Ring, name: Option<Name>) -> io::Result<Self> {
        let presence = ring.settings().abandonable.then(|| Presence::new(ring.fd(), PRESENT)).transpose()?;
        let retired = AtomicUsize::new(0);
        Ok(Shared {
            ring,
            name,
            presence,
            retired,
            put_spinner: Spinner::new(),
            get_spinner: Spinner::new(),
            no_sweep_before: LocalAtomicU64::new(0),
        })
    }

    /// The descriptor for a handle: of an abandonable queue, one that tells others of the handle by
    /// a lock.
    fn to_send(&self, byte: u32) -> io::Result<OwnedFd> {
        match &self.presence {
            Some(_) => presence::lock_again(self.ring.fd(), byte),
            None => self.ring.fd().try_clone_to_owned(),
        }
    }

    /// Makes this process count as a producer again, before it puts or takes.
    #[inline]
    fn attend(&self) {
        if let Some(presence) = &self.presence
            && presence.is_away()
        {
            presence.come_back();
        }
    }

    /// Wakes the consumers of a queue that has been shut down: this may have been the last delivery that they could inherit.
    fn tell_of_the_end(&self) -> Result<(), Damaged> {
        if self.ring.shutdown_state() != 0 {
            self.ring.control().waiting.not_empty.wake(u32::MAX);
            if unless_busy(self.ring.lock_both_and_signal(Deadline::Now))?.is_none() {
                // The sweep signals processes that wait by a descriptor.
                self.ring.want_sweep();
            }
        }
        Ok(())
    }

    /// Looks for what a death left behind, if somebody noticed one. No lock may be held.
    #[inline]
    fn mend(&self) -> Result<(), Damaged> {
        if self.ring.control().settings.sweep_wanted.load(Ordering::Relaxed) == 0 {
            Ok(())
        } else {
            self.mend_slow()
        }
    }

    #[cold]
    fn mend_slow(&self) -> Result<(), Damaged> {
        if self.may_sweep() && unless_busy(self.ring.sweep_if_wanted(Deadline::Now))?.is_none() {
            self.put_off_sweeps();
        }
        Ok(())
    }

    /// Sweeps, unless a process that makes no progress holds one of the locks. Then the next
    /// process that finds them free sweeps.
    fn sweep_briefly(&self) -> Result<(), Damaged> {
        if self.may_sweep() && unless_busy(self.ring.sweep(Deadline::Now))?.is_none() {
            self.put_off_sweeps();
        }
        Ok(())
    }

    fn may_sweep(&self) -> bool {
        clock::now_ms() >= self.no_sweep_before.load(Relaxed)
    }

    /// While another process is stopped inside, each attempt takes some milliseconds.
    fn put_off_sweeps(&self) {
        self.no_sweep_before.store(clock::now_ms() + SLICE.as_millis() as u64, Relaxed);
    }
}

/// The result, or `None` if a process that makes no progress holds a lock.
fn unless_busy<T>(done: Result<T, RingError>) -> Result<Option<T>, Damaged> {
    match done {
        Ok(done) => Ok(Some(done)),
        Err(RingError::Damaged(damaged)) => Err(damaged),
        Err(_) => Ok(None),
    }
}

/// Waits until something is `there`, looking first and then sleeping in `queue`; `each_sleep` runs between sleeps and is told
/// whether the last one was for a whole slice, without a wake. Whether there was something before the deadline.
fn wait_until<E>(
    queue: &WaitQueue,
    spinner: &Spinner,
    deadline: Deadline,
    there: impl Fn() -> u32,
    mut each_sleep: impl FnMut(bool) -> Result<(), E>,
) -> Result<bool, E> {
    if deadline == Deadline::Now {
        return Ok(there() != 0);
    }
    let ready = || there() != 0;
    if spinner.spin_for(&there) {
        return Ok(true);
    }
    let mut slices = Slices::default();
    loop {
        let ticket = queue.prepare();
        if WaitQueue::settle(&ready) {
            spinner.came_soon();
            return Ok(true);
        }
        loop {
            let slept = queue.sleep_for(slices.next(), ticket, deadline);
            if ready() {
                return Ok(true);
            }
            match slept {
                Slept::Woken => break,
                Slept::Undisturbed => {
                    slices.undisturbed();
                    each_sleep(true)?;
                }
                Slept::PastDeadline => return Ok(false),
            }
        }
        each_sleep(false)?;
    }
}
