//! The keeper: a process that holds an exited sender's descriptors for the receivers of its
//! handles.
//!
//! A handle in a queue names a descriptor of its sender. A sender that exits while some of its
//! handles have not been opened forks a *keeper*: a small process that has nothing but these
//! descriptors. Receivers find them by the object's id (`holders`), or at the sender's mailbox,
//! which the keeper continues to serve. The keeper ends when all have been opened. It also ends
//! when no process can receive them any more: see `receivable.rs`. The sender's own exit waits for
//! nothing.
//!
//! A process that is killed, or ends by `_exit`, leaves no keeper.
//!
//! The keeper is made by a bare `clone` in a process with any number of threads. So it makes system
//! calls only: it allocates nothing, takes no lock and never panics. Its memory, but for code,
//! stack and plan, is given back, and nothing is left mapped that is shared.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use procession_sys::clock::Deadline;
use procession_sys::{process, signals, socket};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use rustix::fs::{Mode, OFlags, open, readlinkat_raw};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use rustix::net::{
    RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, accept_with, recvmsg,
    sendmsg,
};

use super::handed_out;
use super::header::{Header, ObjectId};
use super::mailbox::{self, HERE, NOT_HERE};
use super::named;
use super::receivable::{self, Carriers, Graph, KEEPER};

/// How long descriptors of handles that went elsewhere than into a queue are kept. Their receivers
/// are unknown.
const ELSEWHERE: Duration = Duration::from_secs(10);
/// How often the keeper looks for processes that have the queues, at the most.
const SEARCH: Duration = Duration::from_secs(1);
/// So many searches in a row must agree before a descriptor is closed. A handle of a queue that
/// carries it may be between two processes during one.
const AGREEING: u32 = 2;
/// The longest pause between two looks at what has been opened.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// How long a receiver at the mailbox may take to say what it wants.
const PRESENTING: Duration = Duration::from_secs(1);

/// A descriptor that is kept.
#[derive(Clone, Copy)]
struct Kept {
    /// Below 0 once it has been closed.
    fd: RawFd,
    /// Which object it is, if it is one.
    id: Option<ObjectId>,
    /// Its number at the mailbox, if it is a socket.
    number: Option<[u8; 16]>,
    carriers: Carriers,
    /// How many searches in a row have found no process that has a carrier.
    missed: u32,
}

impl Kept {
    fn new(fd: RawFd, number: Option<[u8; 16]>, carriers: &[ObjectId]) -> Self {
        let carriers = std::array::from_fn(|i| carriers.get(i).copied());
        Kept { fd, id: Header::id_in(borrow(fd)), number, carriers, missed: 0 }
    }

    fn went_elsewhere(&self) -> bool {
        self.carriers[0].is_none()
    }

    /// Closes the descriptor, and removes the object's name if that was its last use.
    fn close(&mut self) {
        let fd = std::mem::replace(&mut self.fd, -1);
        let mut space = [MaybeUninit::uninit(); 256];
        let path = path_of(fd, &mut space);
        // SAFETY: the keeper's own, used nowhere else from now on.
        unsafe { libc::close(fd) };
        if let Some(path) = path {
            named::remove_if_unused(path, Deadline::after(Duration::from_secs(1)));
        }
    }
}

/// Has [`leave`] called when this process exits. Once a program: forked processes inherit it.
///
/// # Errors
/// Out of memory.
#[inline]
pub(super) fn register() -> io::Result<()> {
    static REGISTERED: AtomicU32 = AtomicU32::new(0);
    if REGISTERED.load(Ordering::Relaxed) == 0 && REGISTERED.swap(1, Ordering::Relaxed) == 0 {
        process::at_exit(at_exit).inspect_err(|_| REGISTERED.store(0, Ordering::Relaxed))?;
    }
    Ok(())
}

extern "C" fn at_exit() {
    if let Some(first) = FIRST.get() {
        first();
    }
    leave();
}

static FIRST: OnceLock<fn()> = OnceLock::new();

/// Has `first` called before [`leave`] when this process exits. For what may take its time: until
/// then this process itself answers those that ask for what it has sent. The first call decides.
pub fn leave_after(first: fn()) {
    let _first_stays = FIRST.set(first);
}

/// Leaves the descriptors of handles that have not been opened to a keeper. For a process that is
/// about to end, which hands out nothing from now on; called by itself at a normal exit.
pub fn leave() {
    let mut kept: Vec<Kept> =
        handed_out::unopened().into_iter().map(|(fd, carriers)| Kept::new(fd, None, &carriers)).collect();
    let mut listener = -1;
    if let Some((mailbox, sockets)) = mailbox::leave_to_keeper() {
        listener = mailbox;
        kept.extend(
            sockets.into_iter().map(|(fd, number, carrier)| Kept::new(fd, Some(number), carrier.as_slice())),
        );
    }
    if kept.is_empty() {
        return;
    }
    if !kept.iter().any(Kept::went_elsewhere) {
        search(&mut kept);
        if kept.iter().all(|kept| kept.missed != 0) {
            return;
        }
    }
    if let Err(error) = start(&mut kept, listener) {
        let count = kept.len();
        eprintln!(
            "procession: process {} ends, and what {count} handles refer to that it sent and nobody has opened is lost: \
             a process to keep it could not be made: {error}",
            process::getpid(),
        );
    }
}

fn start(kept: &mut [Kept], listener: RawFd) -> io::Result<()> {
    kept.sort_unstable_by_key(|kept| kept.fd);
    let edges = receivable::show(kept.iter().map(|kept| (kept.id, kept.carriers)))?;
    let len = size_of_val(kept);
    // Shared, so that it is told apart from memory of the allocator beside it.
    // SAFETY: a new mapping of the kernel's choosing, page-aligned and large enough for the
    // entries; it is never unmapped here, for the process ends.
    let plan = unsafe {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let plan = mmap_anonymous(std::ptr::null_mut(), len, access, MapFlags::SHARED)?.cast::<Kept>();
        plan.copy_from_nonoverlapping(kept.as_ptr(), kept.len());
        std::slice::from_raw_parts_mut(plan, kept.len())
    };
    signals::with_all_blocked(|| {
        // SAFETY: the child has a copy of this thread and its stack alone. It never returns from
        // `keep`, which makes system calls only. No signal is sent to this process at its end.
        match unsafe { libc::syscall(libc::SYS_clone, 0_u64, 0_u64, 0_u64, 0_u64, 0_u64) } {
            ..0 => Err(io::Error::last_os_error()),
            0 => keep(plan, listener, edges.as_fd()),
            _ => Ok(()),
        }
    })
}

/// Lives as the keeper.
fn keep(plan: &mut [Kept], listener: RawFd, edges: BorrowedFd<'_>) -> ! {
    become_nobodys();
    close_others(plan, [listener, edges.as_raw_fd()]);
    give_memory_back(plan.as_ptr() as usize);
    let began = Instant::now();
    let mut pause = Duration::from_millis(10);
    let mut searched = began;
    let mut next_search = SEARCH;
    loop {
        pause_or_serve(plan, listener, pause);
        pause = (pause + pause / 2).min(LONGEST_PAUSE);
        if searched.elapsed() >= next_search {
            let begin = Instant::now();
            search(plan);
            searched = Instant::now();
            // Where there are very many processes, looking at them shall take a hundredth of the
            // time.
            next_search = SEARCH.max((searched - begin).saturating_mul(100));
        }
        let forgotten = began.elapsed() >= ELSEWHERE;
        for (index, kept) in plan.iter_mut().enumerate().filter(|(_, kept)| kept.fd >= 0) {
            let is_opened = kept.number.is_none() && Header::all_opened(borrow(kept.fd));
            let is_lost = kept.missed >= AGREEING && !kept.went_elsewhere();
            if is_opened || is_lost || forgotten && kept.went_elsewhere() {
                receivable::withdraw(edges, index);
                kept.close();
            }
        }
        if plan.iter().all(|kept| kept.fd < 0) {
            process::exit_now(0);
        }
    }
}

/// Finds which descriptors no process can receive: no process has a queue open that carries them,
/// nor may receive one.
fn search(plan: &mut [Kept]) {
    // Without memory for a search, any may be received.
    let graph = Graph::new().ok().map(|mut graph| {
        for (index, kept) in plan.iter().enumerate().filter(|(_, kept)| kept.fd >= 0) {
            graph.add(index, kept.id, &kept.carriers);
        }
        graph.search();
        graph
    });
    for (index, kept) in plan.iter_mut().enumerate() {
        let is_receivable = graph.as_ref().is_none_or(|graph| graph.is_receivable(index));
        kept.missed = if is_receivable { 0 } else { kept.missed.saturating_add(1) };
    }
}

/// Leaves the sender's session, so that neither a terminal's signals nor the sender's handlers
/// reach the keeper.
fn become_nobodys() {
    // SAFETY: system calls without pointers, but for local actions and sets of signals, and
    // constant names.
    unsafe {
        for signal in 1..=64 {
            let ignored = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGPIPE].contains(&signal);
            // The kernel's `sigaction`: a handler, and no flags, restorer or mask. The C library's
            // takes a lock for SIGABRT, which a thread that this process does not have may hold.
            let action = [if ignored { libc::SIG_IGN } else { libc::SIG_DFL }, 0, 0, 0];
            let no_old_one = std::ptr::null_mut::<u8>();
            libc::syscall(libc::SYS_rt_sigaction, signal, action.as_ptr(), no_old_one, 8_usize);
        }
        libc::setsid();
        libc::prctl(libc::PR_SET_NAME, KEEPER.as_ptr());
        libc::chdir(c"/".as_ptr());
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
    }
}

/// Closes all descriptors but those of the plan, which is in their order, and these.
fn close_others(plan: &[Kept], others: [RawFd; 2]) {
    let mut first = 0;
    loop {
        let kept = plan.iter().map(|kept| kept.fd).chain(others).filter(|fd| *fd >= first).min();
        let last = match kept {
            Some(kept) => kept as u32,
            None => u32::MAX,
        };
        if last > first as u32 {
            let last = if kept.is_some() { last - 1 } else { last };
            // SAFETY: copies of the sender's descriptors, which nothing in this process uses.
            unsafe { libc::syscall(libc::SYS_close_range, first as u32, last, 0) };
        }
        match kept {
            Some(kept) => first = kept + 1,
            None => return,
        }
    }
}

/// Unmaps what is shared with other processes, but for the plan, and frees the pages of the
/// sender's heap.
fn give_memory_back(plan: usize) {
    let here = 0_u8;
    // SAFETY: it returns an address.
    let thread_local = unsafe { libc::__errno_location() } as usize;
    let used = [plan, &raw const here as usize, thread_local];
    let Ok(maps) = open("/proc/self/maps", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) else { return };
    let mut line = [0; 128];
    let mut len = 0;
    let mut buffer = [0; 1024];
    while let Ok(read @ 1..) = rustix::io::read(&maps, &mut buffer) {
        for byte in buffer.iter().take(read) {
            if *byte == b'\n' {
                give_back(line.get(..len).unwrap_or_default(), &used);
                len = 0;
            } else if let Some(place) = line.get_mut(len) {
                *place = *byte;
                len += 1;
            }
        }
    }
}

/// Gives back what a line of `/proc/self/maps` (perhaps its beginning only) tells of: `start-end
/// rwxp offset device inode path`.
fn give_back(line: &[u8], used: &[usize]) {
    let mut fields = line.split(|byte| *byte == b' ').filter(|field| !field.is_empty());
    let (Some(range), Some(access), Some(inode)) = (fields.next(), fields.next(), fields.nth(2)) else {
        return;
    };
    let mut ends = range.split(|byte| *byte == b'-').map(from_hex);
    let (Some(Some(start)), Some(Some(end))) = (ends.next(), ends.next()) else { return };
    if used.iter().any(|address| (start..end).contains(address)) {
        return;
    }
    let is_heap = matches!(fields.next(), None | Some(b"[heap]"));
    // SAFETY: nothing in this process refers to shared mappings other than the plan. Memory without
    // a file is the heap, other threads' stacks, and the zeroed data of libraries. The keeper's
    // code uses only its stack and its thread's own data, which `used` excepts. Freed memory reads
    // as zero.
    unsafe {
        let (address, len) = (std::ptr::with_exposed_provenance_mut(start), end - start);
        if access.ends_with(b"s") {
            let _ = munmap(address, len);
        } else if access.starts_with(b"rw") && inode == b"0" && is_heap {
            // Refused for memory that is locked: that stays.
            let _ = madvise(address, len, Advice::LinuxDontNeed);
        }
    }
}

fn from_hex(digits: &[u8]) -> Option<usize> {
    usize::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

/// Where the file of a named object lies.
fn path_of(fd: RawFd, space: &mut [MaybeUninit<u8>]) -> Option<&Path> {
    let mut name = [0; 32];
    let mut rest = &mut name[..];
    io::Write::write_fmt(&mut rest, format_args!("/proc/self/fd/{fd}\0")).ok()?;
    let link = std::ffi::CStr::from_bytes_until_nul(&name).ok()?;
    let (path, _) = readlinkat_raw(rustix::fs::CWD, link, space).ok()?;
    path.starts_with(b"/dev/shm/").then(|| Path::new(std::ffi::OsStr::from_bytes(path)))
}

/// Waits so long, or until a receiver has been answered.
fn pause_or_serve(plan: &mut [Kept], listener: RawFd, pause: Duration) {
    let timeout = timespec(pause);
    let has_sockets = plan.iter().any(|kept| kept.fd >= 0 && kept.number.is_some());
    if listener < 0 || !has_sockets {
        let _ = poll(&mut [], Some(&timeout));
        return;
    }
    let listener = borrow(listener);
    if matches!(poll(&mut [PollFd::new(&listener, PollFlags::IN)], Some(&timeout)), Ok(1..))
        && let Ok(receiver) = accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
    {
        serve(plan, &receiver);
    }
}

/// Answers a receiver that presents a number, as the sender's mailbox would.
fn serve(plan: &mut [Kept], receiver: &OwnedFd) {
    // Not rustix's form: it cannot express the pid 0 of another namespace.
    if !socket::peer_credentials(receiver).is_ok_and(|peer| peer.uid == socket::effective_user()) {
        return;
    }
    let mut number = [0; 16];
    let mut have = 0;
    let until = Instant::now() + PRESENTING;
    while let Some(room @ [_, ..]) = number.get_mut(have..) {
        let left = timespec(until.saturating_duration_since(Instant::now()));
        if !matches!(poll(&mut [PollFd::new(receiver, PollFlags::IN)], Some(&left)), Ok(1..)) {
            return;
        }
        match recvmsg(receiver, &mut [IoSliceMut::new(room)], &mut Default::default(), RecvFlags::DONTWAIT) {
            Ok(received) if received.bytes > 0 => have += received.bytes,
            _ => return,
        }
    }
    let asked = plan.iter_mut().find(|kept| kept.fd >= 0 && kept.number == Some(number));
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    let Some(kept) = asked else {
        let _ = sendmsg(receiver, &[IoSlice::new(&[NOT_HERE])], &mut control, flags);
        return;
    };
    let descriptor = [borrow(kept.fd)];
    control.push(SendAncillaryMessage::ScmRights(&descriptor));
    if sendmsg(receiver, &[IoSlice::new(&[HERE])], &mut control, flags).is_ok() {
        kept.close();
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec { tv_sec: duration.as_secs() as i64, tv_nsec: duration.subsec_nanos().into() }
}

fn borrow<'a>(fd: RawFd) -> BorrowedFd<'a> {
    // SAFETY: a descriptor of the plan or the listening socket, which the keeper closes after its
    // last use.
    unsafe { BorrowedFd::borrow_raw(fd) }
}
