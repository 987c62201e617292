//! Handles that travel through pipes, and ends of pipes that travel.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use procession::connection::{Connection, Pipe, Receiver, RecvError, SendError, Sender, wait};
use procession::{Process, Queue};
use procession_core::shm::{OpenError, mailbox, transfer};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use test_support::{Reaped, descriptors, rerun, role, watchdog};

use crate::bare;

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
    let pid = std::process::id();
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
    let pid = child.0.id();
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
    let pid = child.0.id();
    let _ends_the_forked_child = child.0.stdin.take();
    child.0.kill().unwrap();
    child.0.wait().unwrap();
    // One that lost its patience would be an error of the system.
    assert!(matches!(open(&bytes), Err(OpenError::Gone { pid: gone }) if gone == pid));
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
