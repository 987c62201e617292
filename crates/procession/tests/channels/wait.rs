//! Waiting for several things at once.

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use procession::connection::{Pipe, Waitable, wait};
use procession::{JoinableQueue, Queue, SimpleQueue};
use procession_sys::identity::Identity;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, setrlimit};
use test_support::{rerun, role, watchdog};

#[test]
fn all_that_are_ready_are_named() {
    let _watchdog = watchdog();
    let pipes: Vec<_> = (0..4).map(|_| Pipe::duplex::<u8, u8>().unwrap()).collect();
    let ours: Vec<&dyn Waitable> = pipes.iter().map(|(ours, _)| ours as &dyn Waitable).collect();
    assert!(wait(&ours, Some(Duration::ZERO)).unwrap().is_empty());
    pipes[3].1.send(&1).unwrap();
    assert_eq!(wait(&ours, None).unwrap(), [3]);
    pipes[1].1.send(&1).unwrap();
    assert_eq!(wait(&ours, Some(Duration::MAX)).unwrap(), [1, 3]);
    assert_eq!(wait(&[ours[1], ours[1]], None).unwrap(), [0, 1]);
    pipes[3].0.recv().unwrap();
    assert_eq!(wait(&ours, None).unwrap(), [1]);
    assert!(wait(&[], None).unwrap().is_empty());
}

#[test]
fn a_timeout_is_waited_for() {
    let _watchdog = watchdog();
    let (receiver, _sender) = Pipe::one_way::<u8>().unwrap();
    let begun = Instant::now();
    let timeout = Duration::from_millis(50);
    assert!(wait(&[&receiver], Some(timeout)).unwrap().is_empty());
    assert!(begun.elapsed() >= timeout);
}

#[test]
fn the_end_of_either_side_is_ready() {
    let _watchdog = watchdog();
    let (receiver, sender) = Pipe::one_way::<u8>().unwrap();
    assert!(wait(&[&sender, &receiver], Some(Duration::ZERO)).unwrap().is_empty());
    let dropping = thread::spawn(move || drop(receiver));
    assert_eq!(wait(&[&sender], None).unwrap(), [0]);
    dropping.join().unwrap();
    let (receiver, sender) = Pipe::one_way::<u8>().unwrap();
    let dropping = thread::spawn(move || drop(sender));
    assert_eq!(wait(&[&receiver], None).unwrap(), [0]);
    dropping.join().unwrap();
}

#[test]
fn pipes_sockets_and_processes_are_waited_for_together() {
    let _watchdog = watchdog();
    let (receiver, _sender) = Pipe::one_way::<u8>().unwrap();
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut child = Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
    let sentinel = Identity::of_pid(Pid::from_child(&child)).unwrap().open().unwrap();
    let all: [&dyn Waitable; 3] = [&receiver, &server, &sentinel];
    assert!(wait(&all, Some(Duration::from_millis(10))).unwrap().is_empty());
    let _client = std::net::TcpStream::connect(server.local_addr().unwrap()).unwrap();
    assert_eq!(wait(&all, None).unwrap(), [1]);
    drop(child.stdin.take());
    while wait(&all, None).unwrap() != [1, 2] {
        thread::sleep(Duration::from_millis(1));
    }
    child.wait().unwrap();
}

#[test]
fn more_than_select_could_hold() {
    let _watchdog = watchdog();
    if role().is_none() {
        assert!(rerun("many").status().unwrap().success());
        return;
    }
    let hard = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: hard, maximum: hard }).unwrap();
    let pipes: Vec<_> = (0..1500).map(|_| Pipe::one_way::<u8>().unwrap()).collect();
    let all: Vec<&dyn Waitable> = pipes.iter().map(|(receiver, _)| receiver as &dyn Waitable).collect();
    pipes[1499].1.send(&1).unwrap();
    assert_eq!(wait(&all, None).unwrap(), [1499]);
}

#[test]
fn queues_are_waited_for_together_with_pipes() {
    let _watchdog = watchdog();
    let (receiver, sender) = Pipe::one_way::<u8>().unwrap();
    let queue = Queue::<u32>::unbounded().unwrap();
    let simple = SimpleQueue::<String>::new().unwrap();
    let tasks = JoinableQueue::<u32>::unbounded().unwrap();
    let all: [&dyn Waitable; 4] = [&queue, &receiver, &simple, &tasks];
    assert!(wait(&all, Some(Duration::from_millis(5))).unwrap().is_empty());
    simple.put(&"one".to_owned()).unwrap();
    assert_eq!(wait(&all, None).unwrap(), [2]);
    sender.send(&1).unwrap();
    queue.put(&1).unwrap();
    assert_eq!(wait(&all, None).unwrap(), [0, 1, 2]);
    simple.get().unwrap();
    queue.get().unwrap();
    receiver.recv().unwrap();
    assert!(wait(&all, Some(Duration::ZERO)).unwrap().is_empty());
    let putting = thread::spawn({
        let tasks = tasks.clone();
        move || tasks.put(&7).unwrap()
    });
    assert_eq!(wait(&all, None).unwrap(), [3]);
    putting.join().unwrap();
    let task = tasks.get().unwrap();
    assert!(wait(&all, Some(Duration::ZERO)).unwrap().is_empty());
    drop(task);
    assert_eq!(wait(&all, None).unwrap(), [3]);
    queue.shutdown(false).unwrap();
    assert_eq!(wait(&all, None).unwrap(), [0, 3]);
}
