//! Pipes: values and bytes, the end of file, death, and handles that travel.

mod connection_support;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use connection_support::{Reaped, descriptors, python, rerun, role, start, watchdog};
use procession::connection::{Connection, Pipe, Receiver, RecvError, SendError, Sender, wait};
use procession::{Process, Queue};
use procession_core::os::socket;
use procession_core::shm::{OpenError, mailbox, transfer};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

/// An end, and the bare stream at the other.
fn bare() -> (Connection<(), ()>, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (OwnedFd::from(ours).try_into().unwrap(), theirs)
}

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
    let receiving = thread::spawn(move || {
        let mut from = [0_u64; 256];
        loop {
            match receiver.recv_bytes() {
                Ok(message) => {
                    assert!(message.len() <= LARGEST);
                    assert!(message.iter().all(|&byte| byte == message[0]));
                    from[usize::from(message[0])] += 1;
                }
                Err(RecvError::Closed) => return from,
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
        thread::sleep(Duration::from_millis(7 + u64::from(byte)));
        // Killed and reaped, then replaced.
        children.remove(0);
        children.push(child(byte));
    }
    drop((children, sender));
    let from = receiving.join().unwrap();
    assert!(from.iter().filter(|&&count| count > 0).count() > 3, "{from:?}");
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

#[test]
fn ends_travel_through_pipes() {
    let _watchdog = watchdog();
    let (a, b) = Pipe::duplex::<(Connection<u8, String>, Receiver<u8>), ()>().unwrap();
    let (ours, theirs) = Pipe::duplex::<String, u8>().unwrap();
    let (receiver, sender) = Pipe::one_way().unwrap();
    a.send(&(theirs, receiver)).unwrap();
    let (theirs, receiver) = b.recv().unwrap();
    ours.send(&"hello".into()).unwrap();
    assert_eq!(theirs.recv().unwrap(), "hello");
    theirs.send(&1).unwrap();
    sender.send(&2).unwrap();
    assert_eq!((ours.recv().unwrap(), receiver.recv().unwrap()), (1, 2));
    // The sent copies were dropped, so these are the only ones.
    drop((theirs, receiver));
    assert!(matches!(ours.recv(), Err(RecvError::Closed)));
    assert!(matches!(sender.send(&1), Err(SendError::Closed)));
}

#[test]
fn queues_travel_through_pipes_and_ends_through_queues() {
    let _watchdog = watchdog();
    type Inside = (Queue<Sender<u32>>, Vec<Queue<u32>>);
    if role().is_some() {
        let stdin = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
        let (ends, numbers) = Connection::<(), Inside>::try_from(stdin).unwrap().recv().unwrap();
        // Through the queue the end comes as a ticket, which the other process's mailbox honours.
        let end = ends.get().unwrap();
        for queue in numbers {
            end.send(&queue.get().unwrap()).unwrap();
        }
        return;
    }
    let (ours, theirs) = Pipe::duplex::<Inside, ()>().unwrap();
    let stdin = Stdio::from(OwnedFd::from(theirs));
    let mut child = Reaped(rerun("child").stdin(stdin).spawn().unwrap());
    let ends = Queue::unbounded().unwrap();
    let numbers: Vec<_> = (0..3).map(|_| Queue::unbounded().unwrap()).collect();
    let (receiver, sender) = Pipe::one_way().unwrap();
    ends.put(&sender).unwrap();
    drop(sender);
    for (number, queue) in numbers.iter().enumerate() {
        queue.put(&(number as u32)).unwrap();
    }
    ours.send(&(ends, numbers)).unwrap();
    for number in 0..3 {
        assert_eq!(receiver.recv().unwrap(), number);
    }
    assert!(matches!(receiver.recv(), Err(RecvError::Closed)));
    assert!(child.0.wait().unwrap().success());
}

#[test]
fn more_ends_than_one_call_can_carry() {
    let _watchdog = watchdog();
    let (a, b) = Pipe::duplex::<Vec<Connection<u16, u16>>, ()>().unwrap();
    let (ours, theirs) = Pipe::duplex::<u16, u16>().unwrap();
    let copy = || {
        let copied = rustix::io::fcntl_dupfd_cloexec(&theirs, 0).unwrap();
        Connection::<u16, u16>::try_from(copied).unwrap()
    };
    a.send(&(0..260).map(|_| copy()).collect()).unwrap();
    let received = b.recv().unwrap();
    assert_eq!(received.len(), 260);
    for (number, end) in received.iter().enumerate() {
        end.send(&(number as u16)).unwrap();
        assert_eq!(ours.recv().unwrap(), number as u16);
    }
}

#[test]
fn an_end_is_not_taken_for_another() {
    let _watchdog = watchdog();
    let (receiver, sender) = Pipe::one_way::<Sender<u8>>().unwrap();
    let wrong: Connection<Receiver<u8>, ()> = OwnedFd::from(sender).try_into().unwrap();
    wrong.send(&Pipe::one_way::<u8>().unwrap().0).unwrap();
    match receiver.recv().unwrap_err() {
        RecvError::Handle { cause: OpenError::Malformed(_), .. } => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_end_received_in_part_does_not_travel() {
    let _watchdog = watchdog();
    let (ours, mut theirs) = bare();
    theirs.write_all(b"\0\0").unwrap();
    assert!(matches!(ours.recv_timeout(Duration::ZERO), Err(RecvError::Timeout)));
    let (_receiver, sender) = Pipe::one_way().unwrap();
    match sender.send(&ours).unwrap_err() {
        SendError::Handle { cause: OpenError::System { .. }, .. } => {}
        other => panic!("{other:?}"),
    }
}

/// Reads an end's handle from bytes that came without descriptors.
fn open(bytes: &[u8]) -> Result<Connection<String, String>, OpenError> {
    let _stale = transfer::failure();
    postcard::from_bytes(bytes).map_err(|error| transfer::failure().unwrap_or_else(|| panic!("{error}")))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap()).collect()
}

#[test]
fn an_end_travels_as_bytes_to_another_process_once() {
    let _watchdog = watchdog();
    if let Some(role) = role() {
        match role.split_once(' ').unwrap() {
            ("first", handle) => {
                let end = open(&unhex(handle)).unwrap();
                let word = end.recv().unwrap();
                end.send(&format!("{word} to you")).unwrap();
            }
            (_, handle) => assert!(matches!(open(&unhex(handle)), Err(OpenError::NotHeld { .. }))),
        }
        return;
    }
    let (ours, theirs) = Pipe::duplex::<String, String>().unwrap();
    let bytes = postcard::to_stdvec(&theirs).unwrap();
    drop(theirs);
    let mut child = Reaped(rerun(&format!("first {}", hex(&bytes))).spawn().unwrap());
    ours.send(&"hello".into()).unwrap();
    assert_eq!(ours.recv().unwrap(), "hello to you");
    assert!(matches!(ours.recv(), Err(RecvError::Closed)));
    assert!(child.0.wait().unwrap().success());
    let pid = std::process::id() as i32;
    assert!(matches!(open(&bytes), Err(OpenError::NotHeld { pid: holder }) if holder == pid));
    assert!(mailbox::is_running());
    assert!(rerun(&format!("second {}", hex(&bytes))).status().unwrap().success());
}

/// In a process of its own: prints an end's handle and waits for the test's end.
fn hold() {
    let (_ours, theirs) = Pipe::duplex::<String, String>().unwrap();
    println!("handle {}", hex(&postcard::to_stdvec(&theirs).unwrap()));
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

fn holder() -> (Reaped, Vec<u8>) {
    let mut child = Reaped(rerun("hold").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap());
    let lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
    let handle = lines.map(Result::unwrap).find_map(|line| Some(line.split_once("handle ")?.1.to_owned()));
    (child, unhex(&handle.unwrap()))
}

#[test]
fn a_dead_holder_is_an_error() {
    let _watchdog = watchdog();
    if role().is_some() {
        return hold();
    }
    let (mut child, bytes) = holder();
    let pid = child.0.id() as i32;
    child.0.kill().unwrap();
    child.0.wait().unwrap();
    assert!(matches!(open(&bytes), Err(OpenError::Gone { pid: gone }) if gone == pid));
}

#[test]
fn a_dead_holders_forked_child_keeps_nobody_waiting() {
    let _watchdog = watchdog();
    if role().is_some() {
        let (_ours, theirs) = Pipe::duplex::<String, String>().unwrap();
        let handle = postcard::to_stdvec(&theirs).unwrap();
        // It has the mailbox's socket and does not know it.
        // SAFETY: the child makes system calls only.
        if unsafe { libc::fork() } == 0 {
            // SAFETY: as above; the buffer is a local byte.
            unsafe {
                let mut byte = 0_u8;
                while libc::read(0, (&raw mut byte).cast(), 1) > 0 {}
                libc::_exit(0)
            }
        }
        println!("handle {}", hex(&handle));
        loop {
            thread::park();
        }
    }
    let (mut child, bytes) = holder();
    let pid = child.0.id() as i32;
    let _ends_the_forked_child = child.0.stdin.take();
    child.0.kill().unwrap();
    child.0.wait().unwrap();
    let begun = Instant::now();
    assert!(matches!(open(&bytes), Err(OpenError::Gone { pid: gone }) if gone == pid));
    assert!(begun.elapsed() < mailbox::PATIENCE);
}

/// Stops all of a child's threads.
fn stop(child: &Reaped) {
    let pid = rustix::process::Pid::from_child(&child.0);
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::UNTRACED).unwrap();
}

#[test]
fn a_holder_that_dies_while_asked_is_an_error() {
    let _watchdog = watchdog();
    if role().is_some() {
        return hold();
    }
    let (mut child, bytes) = holder();
    stop(&child);
    thread::scope(|scope| {
        let opening = scope.spawn(|| open(&bytes).unwrap_err());
        thread::sleep(Duration::from_millis(300));
        assert!(!opening.is_finished());
        child.0.kill().unwrap();
        assert!(matches!(opening.join().unwrap(), OpenError::Gone { .. }));
    });
}

#[test]
fn a_stopped_holder_is_an_error_in_the_end() {
    let _watchdog = watchdog();
    if role().is_some() {
        return hold();
    }
    let (child, bytes) = holder();
    stop(&child);
    let begun = Instant::now();
    match open(&bytes).unwrap_err() {
        OpenError::System { cause, .. } => assert_eq!(cause.kind(), std::io::ErrorKind::TimedOut),
        other => panic!("{other:?}"),
    }
    assert!(begun.elapsed() >= mailbox::PATIENCE);
}

#[test]
fn a_forked_child_closes_its_parents_mailbox_and_has_its_own() {
    let _watchdog = watchdog();
    if role().is_none() {
        assert!(rerun("fork").status().unwrap().success());
        return;
    }
    let (ours, theirs) = Pipe::duplex::<String, String>().unwrap();
    let parents = postcard::to_stdvec(&theirs).unwrap();
    let (report, reporter) = Pipe::one_way::<Vec<u8>>().unwrap();
    // SAFETY: the child only uses memory and locks that no other thread of this process touches, and leaves
    // with `_exit`.
    if unsafe { libc::fork() } == 0 {
        mailbox::forget_parents();
        assert!(!mailbox::is_running());
        drop((ours, report));
        reporter.send(&postcard::to_stdvec(&theirs).unwrap()).unwrap();
        drop(theirs);
        assert!(mailbox::is_running());
        // Until the parent is done.
        wait(&[&reporter], None).unwrap();
        // SAFETY: ends the process without running the test harness's clean-up.
        unsafe { libc::_exit(0) }
    }
    drop((theirs, reporter));
    let from_child = open(&report.recv().unwrap()).unwrap();
    from_child.send(&"child's".into()).unwrap();
    assert_eq!(ours.recv().unwrap(), "child's");
    drop(from_child);
    let own = open(&parents).unwrap();
    own.send(&"own".into()).unwrap();
    assert_eq!(ours.recv().unwrap(), "own");
    drop(own);
    assert!(matches!(ours.recv(), Err(RecvError::Closed)));
    drop(report);
    rustix::process::wait(rustix::process::WaitOptions::empty()).unwrap();
}

#[test]
fn handles_that_find_no_descriptors_are_lost_and_the_next_message_is_not() {
    let _watchdog = watchdog();
    if role().is_none() {
        assert!(rerun("limited").status().unwrap().success());
        return;
    }
    let (a, b) = Pipe::duplex::<Option<Sender<u8>>, ()>().unwrap();
    let (_receiver, sender) = Pipe::one_way::<u8>().unwrap();
    a.send(&Some(sender)).unwrap();
    a.send(&None).unwrap();
    let open = descriptors() as u64;
    let hard = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: Some(open.saturating_sub(4)), maximum: hard }).unwrap();
    let mut taken = Vec::new();
    while let Ok(fd) = rustix::io::fcntl_dupfd_cloexec(&a, 0) {
        taken.push(fd);
    }
    assert!(matches!(b.recv(), Err(RecvError::HandlesLost)));
    assert!(b.recv().unwrap().is_none());
}

#[test]
fn no_descriptor_is_left_behind() {
    let _watchdog = watchdog();
    if role().is_none() {
        assert!(rerun("count").status().unwrap().success());
        return;
    }
    let cycle = || {
        let (a, b) = Pipe::duplex::<Receiver<u8>, u8>().unwrap();
        let (receiver, sender) = Pipe::one_way::<u8>().unwrap();
        a.send(&receiver).unwrap();
        let bytes = postcard::to_stdvec(&sender).unwrap();
        let moved: Sender<u8> = postcard::from_bytes(&bytes).unwrap();
        moved.send(&1).unwrap();
        assert_eq!(b.recv().unwrap().recv().unwrap(), 1);
        // Never received: closed with the pipe.
        a.send(&receiver).unwrap();
        // Received as bytes: the descriptors are dropped.
        a.send(&receiver).unwrap();
        assert!(b.recv_bytes().unwrap().len() > 20);
    };
    cycle();
    let before = descriptors();
    (0..1000).for_each(|_| cycle());
    assert_eq!(descriptors(), before);
}

/// The mailbox's thread is the library's own: it neither keeps a program from forking, nor does a forked child
/// keep what its parent has in the mailbox.
#[test]
fn a_program_that_sent_a_pipe_through_a_queue_can_fork() {
    let _watchdog = watchdog();
    Process::spawn(
        |()| {
            let (receiver, sender) = Pipe::one_way::<u32>().unwrap();
            let queue = Queue::<Sender<u32>>::unbounded().unwrap();
            queue.put(&sender).unwrap();
            drop(sender);
            let child = Process::fork(|| std::thread::sleep(Duration::from_secs(100))).unwrap();
            let sender = queue.get().unwrap();
            sender.send(&7).unwrap();
            drop(sender);
            assert_eq!(receiver.recv().unwrap(), 7);
            assert!(matches!(receiver.recv(), Err(RecvError::Closed)), "the child has the other end");
            assert!(child.is_alive());
            child.kill().unwrap();
        },
        (),
    )
    .unwrap()
    .join()
    .unwrap();
}
