//! SharedMemory: names, errors, and Python at the other end.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use procession::shared::{SharedMemory, SharedMemoryError};
use test_support::{fork, watchdog};

fn name(what: &str) -> String {
    format!("procession_test_{}_{what}", std::process::id())
}

fn bytes(memory: &SharedMemory, offset: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    memory.read(offset, &mut bytes);
    bytes
}

#[test]
fn two_handles_see_the_same_bytes() {
    let memory = SharedMemory::create(&name("same"), 100).unwrap();
    let other = SharedMemory::open(&format!("/{}", memory.name())).unwrap();
    assert_eq!((memory.size(), other.size()), (100, 100));
    assert_eq!(bytes(&memory, 0, 100), [0; 100]);
    memory.write(90, b"0123456789");
    assert_eq!(bytes(&other, 95, 5), b"56789");
    // SAFETY: nobody writes while the slice is used.
    assert_eq!(unsafe { &other.as_slice()[90..92] }, b"01");
    // SAFETY: nobody else uses the memory meanwhile.
    unsafe { other.as_mut_slice()[0] = 7 };
    fork(|| assert_eq!(bytes(&memory, 0, 1), [7])).join();
    let copy: SharedMemory = postcard::from_bytes(&postcard::to_stdvec(&memory).unwrap()).unwrap();
    assert_eq!(bytes(&copy, 0, 1), [7]);
    memory.unlink().unwrap();
    assert!(matches!(memory.unlink(), Err(SharedMemoryError::NotFound { .. })));
    assert_eq!(bytes(&other, 90, 1), b"0");
}

#[test]
fn errors_have_types() {
    let taken = SharedMemory::create(&name("taken"), 1).unwrap();
    assert!(matches!(SharedMemory::create(taken.name(), 1), Err(SharedMemoryError::Taken { .. })));
    taken.unlink().unwrap();
    assert!(matches!(SharedMemory::open(taken.name()), Err(SharedMemoryError::NotFound { .. })));
    assert!(matches!(
        SharedMemory::create(&name("zero"), 0),
        Err(SharedMemoryError::InvalidSize { size: 0 })
    ));
    assert!(matches!(
        SharedMemory::create(&name("max"), usize::MAX),
        Err(SharedMemoryError::InvalidSize { .. })
    ));
    assert!(matches!(SharedMemory::create(&name("large"), 1 << 60), Err(SharedMemoryError::System { .. })));
    assert!(matches!(SharedMemory::open(&name("large")), Err(SharedMemoryError::NotFound { .. })));
    for wrong in ["", "/", ".", "..", "a/b", "a\0b", &"x".repeat(256)] {
        assert!(
            matches!(SharedMemory::create(wrong, 1), Err(SharedMemoryError::InvalidName { .. })),
            "{wrong:?}"
        );
        assert!(matches!(SharedMemory::open(wrong), Err(SharedMemoryError::InvalidName { .. })));
    }
    let empty = name("empty");
    std::fs::write(format!("/dev/shm/{empty}"), b"").unwrap();
    let opened = SharedMemory::open(&empty);
    std::fs::remove_file(format!("/dev/shm/{empty}")).unwrap();
    assert!(matches!(opened, Err(SharedMemoryError::Empty { .. })));
}

#[test]
fn killed_makers_leave_it_whole_or_not_at_all() {
    let _dog = watchdog();
    for round in 0..300_u32 {
        let name = name("killed");
        let mut maker = fork(|| {
            loop {
                SharedMemory::create(&name, 100_000).unwrap().unlink().unwrap();
            }
        });
        std::thread::sleep(std::time::Duration::from_micros(u64::from(round % 100) * 20));
        maker.stop();
        maker.kill();
        match SharedMemory::open(&name) {
            Ok(memory) => {
                assert_eq!(memory.size(), 100_000);
                memory.unlink().unwrap();
            }
            Err(error) => assert!(matches!(error, SharedMemoryError::NotFound { .. }), "{error}"),
        }
    }
}

#[test]
fn it_belongs_to_one_user() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
    let memory = SharedMemory::create(&name("user"), 1).unwrap();
    let path = format!("/dev/shm/{}", memory.name());
    let metadata = std::fs::metadata(&path).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    // Only root can give a file away; for others the mode above is what keeps users apart.
    if metadata.uid() == 0 {
        chown(&path, Some(1), None).unwrap();
        let opened = SharedMemory::open(memory.name());
        chown(&path, Some(0), None).unwrap();
        assert!(matches!(opened, Err(SharedMemoryError::OtherOwner { .. })));
    }
    memory.unlink().unwrap();
}

#[test]
fn a_range_out_of_bounds_panics() {
    let memory = SharedMemory::create_unnamed(10).unwrap();
    memory.unlink().unwrap();
    assert!(memory.name().starts_with("psm_"));
    for (offset, len) in [(11, 0), (10, 1), (0, 11), (usize::MAX, 2)] {
        let read = || bytes(&memory, offset, len);
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(read)).is_err());
    }
    assert_eq!(bytes(&memory, 10, 0), []);
}

#[test]
fn python_opens_what_rust_made() {
    let _dog = watchdog();
    let memory = SharedMemory::create(&name("to_python"), 5000).unwrap();
    memory.write(0, b"from rust");
    let script = r#"
import sys
from multiprocessing import shared_memory, resource_tracker
memory = shared_memory.SharedMemory(sys.argv[1])
resource_tracker.unregister(memory._name, "shared_memory")
assert memory.size == 5000, memory.size
assert bytes(memory.buf[:9]) == b"from rust"
memory.buf[4990:5000] = b"and python"
memory.close()
"#;
    let status = Command::new("python3").args(["-c", script, memory.name()]).status().unwrap();
    let end = bytes(&memory, 4990, 10);
    memory.unlink().unwrap();
    assert!(status.success());
    assert_eq!(end, b"and python");
}

#[test]
fn rust_opens_what_python_made() {
    let _dog = watchdog();
    let script = r#"
from multiprocessing import shared_memory
memory = shared_memory.SharedMemory(create=True, size=300)
memory.buf[:11] = b"from python"
print(memory.name, flush=True)
input()
assert bytes(memory.buf[290:300]) == b"and rust  "
memory.close()
memory.unlink()
"#;
    let mut python = Command::new("python3")
        .args(["-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut name = String::new();
    BufReader::new(python.stdout.take().unwrap()).read_line(&mut name).unwrap();
    let memory = SharedMemory::open(name.trim()).unwrap();
    assert_eq!(memory.size(), 300);
    assert_eq!(bytes(&memory, 0, 11), b"from python");
    memory.write(290, b"and rust  ");
    python.stdin.take().unwrap().write_all(b"\n").unwrap();
    assert!(python.wait().unwrap().success());
    assert!(matches!(SharedMemory::open(memory.name()), Err(SharedMemoryError::NotFound { .. })));
}
