//! Pipes: values and bytes, the end of file, and death.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use procession::connection::{Connection, Pipe, Receiver, RecvError, SendError, Sender};
use procession_sys::socket;
use serde::{Deserialize, Serialize};
use test_support::{Reaped, eventually, python, rerun, role, start, watchdog};

use crate::bare;

#[derive(Serialize, Deserialize, PartialEq, Debug)]
struct Job {
    name: String,
    sizes: Vec<u64>,
    parent: Option<Box<Job>>,
}

#[test]
fn values_go_both_ways() {
    let _watchdog = watchdog();
    let (client, server) = Pipe::duplex::<Job, Result<u64, String>>().unwrap();
    let job = |name: &str| Job {
        name: name.into(),
        sizes: vec![1, u64::MAX],
        parent: Some(Box::new(Job { name: "p".into(), sizes: vec![], parent: None })),
    };
    client.send(&job("a")).unwrap();
    client.send(&job("b")).unwrap();
    assert_eq!(server.recv().unwrap(), job("a"));
    assert_eq!(server.recv().unwrap(), job("b"));
    server.send(&Err("no".into())).unwrap();
    assert_eq!(client.recv().unwrap(), Err("no".into()));
}

#[test]
fn messages_of_all_sizes_arrive_whole() {
    let _watchdog = watchdog();
    let (a, b) = Pipe::duplex::<Vec<u8>, ()>().unwrap();
    let sizes = [0, 1, 3, 4, 64 << 10, (64 << 10) + 1, 1 << 20, 100_000_000];
    let content = |size: usize| (0..size).map(|i| (i * 7 + i / 251) as u8).collect::<Vec<u8>>();
    let sender = thread::spawn(move || {
        for size in sizes {
            a.send_bytes(&content(size)).unwrap();
            a.send(&content(size.min(1 << 20))).unwrap();
        }
    });
    for size in sizes {
        assert!(b.recv_bytes().unwrap() == content(size), "{size} bytes");
        assert!(b.recv().unwrap() == content(size.min(1 << 20)), "{size} bytes");
    }
    sender.join().unwrap();
    assert!(matches!(b.recv_bytes(), Err(RecvError::Closed)));
}

#[test]
fn the_end_of_file_comes_after_the_messages() {
    let _watchdog = watchdog();
    let (receiver, sender) = Pipe::one_way::<u32>().unwrap();
    sender.send(&1).unwrap();
    sender.send(&2).unwrap();
    drop(sender);
    assert_eq!((receiver.recv().unwrap(), receiver.recv().unwrap()), (1, 2));
    assert!(receiver.poll(Duration::ZERO).unwrap());
    for _ in 0..2 {
        assert!(matches!(receiver.recv(), Err(RecvError::Closed)));
    }
}

#[test]
fn sending_to_nobody_is_an_error() {
    let _watchdog = watchdog();
    let (receiver, sender) = Pipe::one_way::<u32>().unwrap();
    drop(receiver);
    assert!(matches!(sender.send(&1), Err(SendError::Closed)));
    assert!(matches!(sender.send_bytes(&[]), Err(SendError::Closed)));
    // Closed with a message unread: the other side must not take that for anything else.
    let (a, b) = Pipe::duplex::<u32, u32>().unwrap();
    a.send(&1).unwrap();
    b.send(&2).unwrap();
    drop(b);
    assert_eq!(a.recv().unwrap(), 2);
    assert!(matches!(a.recv(), Err(RecvError::Closed)));
    assert!(matches!(a.send(&1), Err(SendError::Closed)));
}

#[test]
fn a_receiver_that_goes_while_much_is_sent_ends_the_sending() {
    let _watchdog = watchdog();
    let (receiver, sender) = Pipe::one_way::<()>().unwrap();
    let sending = thread::spawn(move || sender.send_bytes(&vec![0; 10 << 20]));
    assert!(receiver.poll(Duration::from_secs(200)).unwrap());
    drop(receiver);
    assert!(matches!(sending.join().unwrap(), Err(SendError::Closed)));
}

#[test]
fn a_sender_killed_in_a_message_is_told_from_the_end() {
    let _watchdog = watchdog();
    let truncated_after = |written: &str| {
        let (receiver, sender) = Pipe::one_way::<u32>().unwrap();
        let script = format!("import os; os.write(0, {written}); os.kill(os.getpid(), 9)");
        let mut child = start(python(&script).stdin(Stdio::from(OwnedFd::from(sender))));
        child.wait().unwrap();
        let first = receiver.recv_bytes();
        assert!(matches!(receiver.recv_bytes(), Err(RecvError::Closed)));
        first.unwrap_err()
    };
    match truncated_after("b'\\0\\0\\3\\xe8' + b'x' * 10") {
        RecvError::Truncated { received: 10, expected: Some(1000) } => {}
        other => panic!("{other:?}"),
    }
    for header in ["b'\\0\\0'", "b'\\xff\\xff\\xff\\xff\\0'"] {
        match truncated_after(header) {
            RecvError::Truncated { received: 0, expected: None } => {}
            other => panic!("{other:?}"),
        }
    }
    // A length is only a claim: nothing is allocated for 2^62 bytes.
    match truncated_after("b'\\xff\\xff\\xff\\xff\\x40' + b'\\0' * 7 + b'x'") {
        RecvError::Truncated { received: 1, expected: Some(length) } if length == 1 << 62 => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn processes_killed_while_they_share_an_end_leave_no_part_of_a_small_message() {
    let _watchdog = watchdog();
    const LARGEST: usize = socket::ATOMIC - 4;
    if let Some(role) = role() {
        let byte: u8 = role.parse().unwrap();
        let sender = Sender::<()>::try_from(std::io::stdin().as_fd().try_clone_to_owned().unwrap()).unwrap();
        for count in 0.. {
            let size = if count % 3 == 0 { LARGEST } else { 1 + count * 1237 % LARGEST };
            if sender.send_bytes(&vec![byte; size]).is_err() {
                return;
            }
        }
    }
    let (receiver, sender) = Pipe::one_way::<()>().unwrap();
    let from: Arc<[AtomicU64; 256]> = Arc::new([const { AtomicU64::new(0) }; 256]);
    let counts = Arc::clone(&from);
    let receiving = thread::spawn(move || {
        loop {
            match receiver.recv_bytes() {
                Ok(message) => {
                    assert!(message.len() <= LARGEST);
                    assert!(message.iter().all(|&byte| byte == message[0]));
                    counts[usize::from(message[0])].fetch_add(1, Relaxed);
                }
                Err(RecvError::Closed) => return,
                Err(error) => panic!("{error}"),
            }
        }
    });
    let sender = OwnedFd::from(sender);
    let child = |byte: u8| {
        let stdin = Stdio::from(sender.try_clone().unwrap());
        Reaped(rerun(&byte.to_string()).stdin(stdin).stdout(Stdio::null()).spawn().unwrap())
    };
    let mut children: Vec<_> = (0..3).map(child).collect();
    for byte in 3..40 {
        // Some are killed before they send, and some amid it.
        if byte % 3 == 0 {
            eventually("it sends", || from[usize::from(byte - 3)].load(Relaxed) > 0);
        }
        thread::sleep(Duration::from_millis(7 + u64::from(byte)));
        // Killed and reaped, then replaced.
        children.remove(0);
        children.push(child(byte));
    }
    drop((children, sender));
    receiving.join().unwrap();
}

#[test]
fn framing_is_cpythons() {
    let _watchdog = watchdog();
    let (ours, mut theirs) = bare();
    ours.send_bytes(b"abc").unwrap();
    let mut frame = [0; 7];
    theirs.read_exact(&mut frame).unwrap();
    assert_eq!(&frame, b"\0\0\0\x03abc");
    theirs.write_all(b"\xff\xff\xff\xff\0\0\0\0\0\0\0\x05hello\0\0\0\0").unwrap();
    assert_eq!(ours.recv_bytes().unwrap(), b"hello");
    assert_eq!(ours.recv_bytes().unwrap(), b"");
    theirs.write_all(b"GET ").unwrap();
    theirs.write_all(b"\x80\0\0\0").unwrap();
    // "GET " is a length, of a message that does not come.
    assert!(matches!(ours.recv_bytes_max(1000), Err(RecvError::TooLong { .. })));
    let (ours, mut theirs) = bare();
    theirs.write_all(b"\x80\0\0\0").unwrap();
    for _ in 0..2 {
        assert!(matches!(ours.recv_bytes(), Err(RecvError::NotAMessage { length: i32::MIN })));
    }
}

#[test]
fn python_reads_and_writes_messages_on_an_inherited_end() {
    let _watchdog = watchdog();
    let (ours, theirs) = Pipe::duplex::<(), ()>().unwrap();
    let script = "from multiprocessing.connection import Connection
c = Connection(0)
while True:
    try: c.send_bytes(c.recv_bytes() + b'!')
    except EOFError: break";
    let mut child = start(python(script).stdin(Stdio::from(OwnedFd::from(theirs))));
    for size in [0, 1, 20_000, 3_000_000] {
        let message = vec![b'm'; size];
        ours.send_bytes(&message).unwrap();
        assert!(ours.recv_bytes().unwrap() == [&message[..], b"!"].concat(), "{size} bytes");
    }
    drop(ours);
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_timeout_keeps_what_has_come() {
    let _watchdog = watchdog();
    let (ours, mut theirs) = bare();
    let soon = Duration::from_millis(10);
    assert!(!ours.poll(soon).unwrap());
    assert!(matches!(ours.recv_timeout(Duration::ZERO), Err(RecvError::Timeout)));
    for part in [&b"\0"[..], b"\0\0\x04a", b"b"] {
        theirs.write_all(part).unwrap();
        assert!(matches!(ours.recv_timeout(soon), Err(RecvError::Timeout)));
    }
    theirs.write_all(b"cd\0\0\0\x01e").unwrap();
    assert_eq!(ours.recv_bytes().unwrap(), b"abcd");
    assert!(ours.poll(soon).unwrap());
    assert_eq!(ours.recv_bytes().unwrap(), b"e");
}

#[test]
fn a_timeout_holds_while_another_thread_receives() {
    let _watchdog = watchdog();
    let (a, b) = Pipe::duplex::<u8, u8>().unwrap();
    thread::scope(|scope| {
        let other = scope.spawn(|| a.recv());
        assert!(matches!(a.recv_timeout(Duration::from_millis(20)), Err(RecvError::Timeout)));
        assert!(!a.poll(Duration::from_millis(20)).unwrap());
        b.send(&5).unwrap();
        assert_eq!(other.join().unwrap().unwrap(), 5);
    });
}

#[test]
fn a_message_over_the_limit_is_skipped() {
    let _watchdog = watchdog();
    let (ours, mut theirs) = bare();
    theirs.write_all(b"\0\0\0\x0ahello").unwrap();
    assert!(matches!(ours.recv_bytes_max(9), Err(RecvError::TooLong { length: 10, max: 9 })));
    // The rest of it is nothing to receive.
    theirs.write_all(b"worl").unwrap();
    assert!(!ours.poll(Duration::from_millis(10)).unwrap());
    theirs.write_all(b"d\0\0\0\x02hi").unwrap();
    assert!(ours.poll(Duration::from_millis(10)).unwrap());
    assert_eq!(ours.recv_bytes_max(2).unwrap(), b"hi");
    theirs.write_all(b"\0\0\0\x0a").unwrap();
    assert!(matches!(ours.recv_bytes_max(0), Err(RecvError::TooLong { .. })));
    drop(theirs);
    assert!(ours.poll(Duration::ZERO).unwrap());
    assert!(matches!(ours.recv_bytes(), Err(RecvError::Closed)));
}

#[test]
fn a_message_over_the_buffer_is_in_the_error() {
    let _watchdog = watchdog();
    let (a, b) = Pipe::duplex::<(), ()>().unwrap();
    let mut buffer = [b'.'; 4];
    a.send_bytes(b"abc").unwrap();
    assert_eq!(b.recv_bytes_into(&mut buffer).unwrap(), 3);
    assert_eq!(&buffer, b"abc.");
    a.send_bytes(b"abcde").unwrap();
    match b.recv_bytes_into(&mut buffer).unwrap_err() {
        RecvError::BufferTooShort { message, room: 4 } => assert_eq!(message, b"abcde"),
        other => panic!("{other:?}"),
    }
    a.send_bytes(b"").unwrap();
    assert_eq!(b.recv_bytes_into(&mut []).unwrap(), 0);
}

#[test]
fn a_message_of_another_type_is_an_error_and_the_next_one_works() {
    let _watchdog = watchdog();
    let (a, b) = Pipe::duplex::<(), String>().unwrap();
    let numbers: Connection<(u64, u64), ()> = OwnedFd::from(a).try_into().unwrap();
    numbers.send_bytes(b"\xff\xff").unwrap();
    let strings: Connection<(), String> = OwnedFd::from(b).try_into().unwrap();
    match strings.recv().unwrap_err() {
        RecvError::Deserialize { length: 2, type_name, .. } => assert!(type_name.contains("String")),
        other => panic!("{other:?}"),
    }
    numbers.send(&(0, 0)).unwrap();
    assert!(matches!(strings.recv(), Err(RecvError::Trailing { length: 2, rest: 1, .. })));
    numbers.send_bytes(b"\x02ok").unwrap();
    assert_eq!(strings.recv().unwrap(), "ok");
}

#[test]
fn a_value_that_cannot_be_serialised_sends_nothing() {
    #[derive(Deserialize)]
    struct Stubborn(bool);
    impl Serialize for Stubborn {
        fn serialize<Z: serde::Serializer>(&self, serializer: Z) -> Result<Z::Ok, Z::Error> {
            match self.0 {
                true => Err(serde::ser::Error::custom("no")),
                false => serializer.serialize_u8(7),
            }
        }
    }
    let _watchdog = watchdog();
    let (receiver, sender) = UnixStream::pair().unwrap();
    let receiver: Receiver<u8> = OwnedFd::from(receiver).try_into().unwrap();
    let sender: Sender<Stubborn> = OwnedFd::from(sender).try_into().unwrap();
    assert!(matches!(sender.send(&Stubborn(true)), Err(SendError::Serialize { .. })));
    sender.send(&Stubborn(false)).unwrap();
    assert_eq!(receiver.recv().unwrap(), 7);
}

#[test]
fn threads_that_share_an_end_send_whole_messages() {
    let _watchdog = watchdog();
    let (receiver, sender) = Pipe::one_way::<()>().unwrap();
    thread::scope(|scope| {
        for byte in 0..4_u8 {
            let sender = &sender;
            scope.spawn(move || {
                for size in 0..100 {
                    sender.send_bytes(&vec![byte; 1 + size * 3000]).unwrap();
                }
            });
        }
        let mut next = [0; 4];
        for _ in 0..400 {
            let message = receiver.recv_bytes().unwrap();
            let sender = message[0];
            assert!(message.iter().all(|&byte| byte == sender));
            assert_eq!(message.len(), 1 + next[usize::from(sender)] * 3000);
            next[usize::from(sender)] += 1;
        }
    });
}
