//! Names that lead to something else, handles that somebody made up, and messages that are none.

use std::ffi::CString;
use std::fs::{File, Permissions};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use procession_sys::clock::Deadline;
use procession_sys::identity::Identity;
use proptest::collection::vec;
use proptest::prelude::*;

use super::fd_ref::FdRef;
use super::header::Header;
use super::mailbox::Ticket;
use super::named::Name;
use super::posix::{SharedMemory, SharedMemoryError};
use super::transfer::deliver;
use super::{CreateError, ObjectId, OpenError};
use crate::hostile::{elsewhere, scribble, target};
use crate::queue::{Queue, QueueOptions};
use crate::shm::windows;

/// A name of this test's own, whose file goes with it.
struct Spot {
    name: String,
    path: PathBuf,
}

impl Spot {
    fn new() -> Self {
        Self::at("procession.")
    }

    /// One without the prefix of this library's objects.
    fn plain() -> Self {
        Self::at("")
    }

    fn at(prefix: &str) -> Self {
        let name = format!("hostile-{:032x}", u128::from_ne_bytes(ObjectId::random().to_bytes()));
        let path = PathBuf::from(format!("/dev/shm/{prefix}{name}"));
        Spot { name, path }
    }

    fn file(&self, bytes: &[u8], mode: u32) -> File {
        let mut options = File::options();
        let file = options.read(true).write(true).create_new(true).open(&self.path).unwrap();
        file.set_permissions(Permissions::from_mode(mode)).unwrap();
        file.write_all_at(bytes, 0).unwrap();
        file
    }

    fn open(&self) -> Result<Queue, OpenError> {
        Queue::open_named(&self.name)
    }

    fn create(&self) -> Result<Queue, CreateError> {
        Queue::create_named(&self.name, &QueueOptions::new())
    }

    /// Neither opened nor made, with this said about it.
    fn is_refused(&self, problem: &str) {
        match (self.open(), self.create()) {
            (Err(open), Err(create)) => {
                assert!(matches!(open, OpenError::Name { .. }), "{open:?}");
                assert!(matches!(create, CreateError::Name { .. }), "{create:?}");
                assert!(
                    open.to_string().contains(problem) && create.to_string().contains(problem),
                    "{open}; {create}"
                );
            }
            other => panic!("{other:?}"),
        }
        assert!(self.path.symlink_metadata().is_ok(), "what is not ours was removed");
    }
}

impl Drop for Spot {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
        let _ = std::fs::remove_dir(&self.path);
    }
}

fn make_fifo(path: &std::path::Path) {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: a C string.
    assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
}

/// Runs `body` as another user, if this one may become one.
fn as_another_user(body: impl FnOnce()) {
    // SAFETY: asks for a number; changes this process's, in a child made for it.
    unsafe {
        if libc::geteuid() == 0 {
            assert_eq!(libc::setresuid(65_534, 65_534, 65_534), 0);
        }
    }
    body();
}

#[test]
fn a_name_that_is_something_else() {
    let spot = Spot::new();
    std::fs::create_dir(&spot.path).unwrap();
    spot.is_refused("something else");

    let spot = Spot::new();
    make_fifo(&spot.path);
    spot.is_refused("something else");

    let spot = Spot::new();
    let _socket = UnixListener::bind(&spot.path).unwrap();
    spot.is_refused("something else");

    let (spot, other) = (Spot::new(), Spot::new());
    let queue = other.create().unwrap();
    symlink(&other.path, &spot.path).unwrap();
    spot.is_refused("a link");
    queue.put(b"x", Deadline::Now).unwrap();

    let spot = Spot::new();
    spot.file(&[], 0o666);
    spot.is_refused("others than its owner");
}

#[test]
fn a_name_of_another_user() {
    let spot = Spot::new();
    let file = spot.file(&[7; 100], 0o600);
    // SAFETY: asks for a number.
    if unsafe { libc::geteuid() } != 0 {
        eprintln!("skipped: only root can give a file to another user");
        return;
    }
    std::os::unix::fs::fchown(&file, Some(65_534), Some(65_534)).unwrap();
    spot.is_refused("another user");
    // The other way round: without the rights that root has.
    let ours = Spot::new();
    let _queue = ours.create().unwrap();
    target("shm::hostile::a_name_of_another_user", 1, Just(ours.name.clone()), |name| {
        as_another_user(|| {
            let refused = Queue::open_named(name);
            // The program that runs the case made a queue of another name.
            assert!(
                matches!(refused, Err(OpenError::Name { .. } | OpenError::NotFound { .. })),
                "{refused:?}"
            );
        });
    });
    let spot = Spot::plain();
    let file = spot.file(&[7; 100], 0o600);
    std::os::unix::fs::fchown(&file, Some(65_534), Some(65_534)).unwrap();
    assert!(matches!(SharedMemory::open(&spot.name), Err(SharedMemoryError::OtherOwner { .. })));
}

#[test]
fn a_name_whose_file_is_no_whole_object() {
    // In use, so that it is looked at: what nobody uses is not there.
    let made = |change: &dyn Fn(&File)| {
        let spot = Spot::new();
        let queue = spot.create().unwrap();
        let file = File::options().read(true).write(true).open(&spot.path).unwrap();
        change(&file);
        let opened = spot.open();
        std::mem::forget(queue);
        opened
    };
    let store = |at: u64, value: u32| move |file: &File| scribble(file, at, &value.to_le_bytes());
    assert!(matches!(made(&store(0, 7)), Err(OpenError::NotAnObject(_))));
    assert!(matches!(made(&store(8, 0)), Err(OpenError::Version { found: 0, .. })));
    assert!(matches!(made(&store(12, 2)), Err(OpenError::Kind { .. })));
    assert!(matches!(made(&store(12, 77)), Err(OpenError::Damaged(_))));
    assert!(matches!(made(&store(32, 1)), Err(OpenError::PidNamespace)));
    assert!(matches!(made(&store(128, u32::MAX)), Err(OpenError::Damaged(_))));
    for len in [0, 1, 63, 4096, windows::FIRST - 1] {
        let opened = made(&|file| file.set_len(len).unwrap());
        assert!(matches!(opened, Err(OpenError::NotAnObject(_))), "{len}: {opened:?}");
    }
    let nobody = Spot::new();
    assert!(matches!(nobody.open(), Err(OpenError::NotFound { .. })));
    nobody.file(&[1; 300_000], 0o600);
    assert!(matches!(nobody.open(), Err(OpenError::NotFound { .. })));
    assert!(matches!(nobody.create(), Err(CreateError::Name { .. })));
    for name in ["", "a/b", "a\0b", &"x".repeat(201)] {
        assert!(matches!(Name::open(name), Err(OpenError::Name { .. })), "{name:?}");
    }
}

#[test]
fn a_shared_memory_that_is_something_else() {
    let refused = |spot: &Spot| SharedMemory::open(&spot.name);
    let spot = Spot::plain();
    assert!(matches!(refused(&spot), Err(SharedMemoryError::NotFound { .. })));
    std::fs::create_dir(&spot.path).unwrap();
    assert!(matches!(refused(&spot), Err(SharedMemoryError::NotMemory { .. })));
    let spot = Spot::plain();
    make_fifo(&spot.path);
    assert!(matches!(refused(&spot), Err(SharedMemoryError::NotMemory { .. })));
    let spot = Spot::plain();
    symlink("/etc/passwd", &spot.path).unwrap();
    assert!(matches!(refused(&spot), Err(SharedMemoryError::NotMemory { .. })));
    let spot = Spot::plain();
    spot.file(&[], 0o600);
    assert!(matches!(refused(&spot), Err(SharedMemoryError::Empty { .. })));
}

#[test]
fn names_of_any_bytes() {
    let header = Just(0).prop_map(|_| {
        let header = Header::new(super::Kind::Queue, ObjectId::random()).unwrap();
        header.publish();
        // SAFETY: the header's bytes, all of them initialised: its fields leave no gaps.
        unsafe { std::mem::transmute::<Header, [u8; 64]>(header) }
    });
    let changes = vec((0..64usize, any::<u8>()), 0..3);
    let rest = (vec((0..9000u64, any::<u64>()), 0..10), 0..600_000u64);
    target(
        "shm::hostile::names_of_any_bytes",
        300,
        (header, changes, rest),
        |(header, changes, (words, size))| {
            let spot = Spot::new();
            let queue = spot.create().unwrap();
            let file = File::options().read(true).write(true).open(&spot.path).unwrap();
            let mut header = *header;
            for (at, byte) in changes {
                header[*at] ^= byte;
            }
            // Nothing of this process's own is truncated: it has not mapped what it opens.
            std::mem::forget(queue);
            file.set_len((*size).max(windows::FIRST)).unwrap();
            scribble(&file, 0, &header);
            for (at, word) in words {
                scribble(&file, *at, &word.to_le_bytes());
            }
            if let Ok(queue) = spot.open() {
                let _ = (queue.put(&[1; 50], Deadline::Now), queue.get_message(Deadline::Now), queue.len());
                let _ =
                    (queue.put(&[1; 50_000], Deadline::Now), queue.get_message(Deadline::Now), queue.trim());
            }
        },
    );
}

#[test]
fn handles_of_any_bytes() {
    let random = prop::option::weighted(0.2, vec(any::<u8>(), 0..60));
    let strategy = (vec((0..28usize, any::<u8>(), any::<u8>()), 0..5), random, 0..40u32);
    target("shm::hostile::handles_of_any_bytes", 400, strategy, |(changes, random, number)| {
        let queue = Queue::create(&QueueOptions::new()).unwrap();
        let mut bytes = queue.to_handle().unwrap().to_vec();
        for (at, byte, bit) in changes {
            bytes[*at] = if *bit < 200 { bytes[*at] ^ 1 << (bit % 8) } else { *byte };
        }
        if changes.len() == 4 {
            // Whatever this process has under that number.
            bytes[24..28].copy_from_slice(&number.to_le_bytes());
        }
        if let Some(random) = random {
            bytes.clone_from(random);
        }
        let open = |bytes: &[u8]| {
            if let Ok(queue) = Queue::from_handle(bytes) {
                let _ = (queue.put(b"x", Deadline::Now), queue.get_message(Deadline::Now));
            }
            let _ = Ticket::from_bytes(bytes).map(super::mailbox::receive);
        };
        open(&bytes);
        // Not known to this process, and with descriptors of all sorts.
        drop(queue);
        deliver(of_all_sorts(), || open(&bytes));
        for index in 0..9 {
            let attached = FdRef::Attached(index).to_bytes();
            bytes.resize(28, 0);
            bytes[16..].copy_from_slice(&attached);
            deliver(of_all_sorts(), || open(&bytes));
        }
    });
}

/// Descriptors that a peer may send in place of an object's.
fn of_all_sorts() -> Vec<std::os::fd::OwnedFd> {
    let (socket, _) = std::os::unix::net::UnixStream::pair().unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    let sparse = procession_sys::memory::create(c"sparse", 1 << 45).unwrap();
    let small = procession_sys::memory::create(c"small", 10).unwrap();
    let unsealed = rustix::fs::memfd_create(c"unsealed", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&unsealed, windows::FIRST).unwrap();
    let pidfd = Identity::current().open().unwrap();
    let directory = File::open("/dev/shm").unwrap();
    let device = File::open("/dev/zero").unwrap();
    vec![
        socket.into(),
        reader.into(),
        writer.into(),
        sparse,
        small,
        unsealed,
        pidfd,
        directory.into(),
        device.into(),
    ]
}

#[test]
fn a_peer_with_a_lease_makes_nobody_wait() {
    let queue = Queue::create(&QueueOptions::new()).unwrap();
    let handle = queue.to_handle().unwrap();
    let fd = u32::from_le_bytes(handle[24..].try_into().unwrap());
    assert!(fd as i32 > 2 && FdRef::from_bytes(handle[16..].try_into().unwrap()).is_ok());
    target("shm::hostile::a_peer_with_a_lease_makes_nobody_wait", 1, Just(()), |()| {
        let spot = Spot::plain();
        let file = spot.file(&[1; 100], 0o600);
        // SAFETY: of a descriptor that is open; the signal that breaks it is ignored.
        let leased = unsafe {
            libc::signal(libc::SIGIO, libc::SIG_IGN);
            libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK) == 0
        };
        // The holder of a lease opens the file without waiting; another does not.
        elsewhere(true, || {
            let opened = SharedMemory::open(&spot.name);
            assert!(!leased || matches!(opened, Err(SharedMemoryError::System { .. })), "{opened:?}");
        });
    });
}
