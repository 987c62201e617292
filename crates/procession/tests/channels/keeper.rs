//! What a process that ends by itself leaves behind for the receivers of its handles, and how long.

use std::collections::BTreeSet;
use std::sync::OnceLock;
use std::time::Duration;

use procession::process::{self, Fork};
use procession::{JoinableQueue, Process, Queue, RawArray, Sender};
use test_support::{Resources, eventually, memfds, processes, watchdog};

type Numbers = RawArray<u32>;

fn numbers() -> Numbers {
    RawArray::from_slice(&[7; 1000]).unwrap()
}

/// The memfds that this process has open.
fn own() -> BTreeSet<u64> {
    memfds(std::process::id())
}

/// The keepers that have one of these memfds.
fn keepers(of: &BTreeSet<u64>) -> Vec<u32> {
    let named = processes().into_iter().filter(|(_, process)| process.name == "procession-keep");
    named.map(|(pid, _)| pid).filter(|pid| !memfds(*pid).is_disjoint(of)).collect()
}

/// Puts an array and returns its memfd.
fn put(queue: Queue<Numbers>) -> BTreeSet<u64> {
    let before = own();
    queue.put(&numbers()).unwrap();
    &own() - &before
}

/// Runs a function in a process of its own, until it has ended.
fn run<A, R>(function: fn(A) -> R, argument: A) -> R
where
    A: serde::Serialize + serde::de::DeserializeOwned + 'static,
    R: serde::Serialize + serde::de::DeserializeOwned + 'static,
{
    Process::spawn(function, argument).unwrap().join().unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn a_keeper_ends_when_its_handles_have_been_opened() {
    let _watchdog = watchdog();
    let queue = Queue::unbounded().unwrap();
    let kept = run(put, queue.clone());
    eventually("it is kept", || keepers(&kept).len() == 1);
    let array = queue.try_get().unwrap();
    assert_eq!(array.to_vec(), [7; 1000]);
    eventually("the keeper ends", || keepers(&kept).is_empty());
    assert_eq!(array.to_vec(), [7; 1000]);
}

#[test]
fn a_keeper_ends_when_nobody_has_the_queue() {
    let _watchdog = watchdog();
    let queue = Queue::unbounded().unwrap();
    let kept = run(put, queue.clone());
    eventually("it is kept", || keepers(&kept).len() == 1);
    drop(queue);
    eventually("the keeper ends", || keepers(&kept).is_empty());
}

#[test]
fn a_keeper_ends_when_the_last_receiver_is_killed() {
    let _watchdog = watchdog();
    let queue = Queue::unbounded().unwrap();
    let ready = Queue::unbounded().unwrap();
    let holder = |(queue, ready): (Queue<Numbers>, Queue<()>)| {
        ready.put(&()).unwrap();
        std::thread::sleep(Duration::from_secs(600));
        drop(queue);
    };
    let holder = Process::spawn(holder, (queue.clone(), ready.clone())).unwrap();
    ready.get().unwrap();
    let kept = run(put, queue);
    eventually("it is kept by the keeper alone", || keepers(&kept).len() == 1);
    // Long enough for searches: the holder is found.
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(keepers(&kept).len(), 1);
    holder.kill().unwrap();
    eventually("the keeper ends", || keepers(&kept).is_empty());
}

#[test]
fn a_process_that_has_nobody_to_send_to_leaves_no_keeper() {
    let _watchdog = watchdog();
    let kept = run(|()| put(Queue::unbounded().unwrap()), ());
    assert!(keepers(&kept).is_empty());
}

#[test]
fn handles_in_a_queue_in_a_queue_outlive_their_senders() {
    let _watchdog = watchdog();
    type Outer = Queue<Queue<Numbers>>;
    let (first, second) = (Outer::unbounded().unwrap(), Outer::unbounded().unwrap());
    let make = |first: Outer| first.put(&Queue::unbounded().unwrap()).unwrap();
    run(make, first.clone());
    let fill = |(first, second): (Outer, Outer)| {
        let inner = first.get().unwrap();
        inner.put(&numbers()).unwrap();
        second.put(&inner).unwrap();
    };
    run(fill, (first, second.clone()));
    // For as long as several searches take: the inner queue lies in the outer one only.
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(second.try_get().unwrap().try_get().unwrap().to_vec(), [7; 1000]);
}

#[test]
fn keepers_of_queues_in_each_others_queues_end() {
    let _watchdog = watchdog();
    #[derive(serde::Serialize, serde::Deserialize)]
    struct Knot(Queue<Knot>);
    let before = own();
    let (one, two) = (Queue::<Knot>::unbounded().unwrap(), Queue::<Knot>::unbounded().unwrap());
    let kept = &own() - &before;
    let send = |(to, what): (Queue<Knot>, Queue<Knot>)| to.put(&Knot(what)).unwrap();
    run(send, (one.clone(), two.clone()));
    run(send, (two.clone(), one.clone()));
    eventually("each is kept", || keepers(&kept).len() == 2);
    drop(two);
    // For as long as several searches take: each handle may be received.
    std::thread::sleep(Duration::from_millis(3500));
    assert_eq!(keepers(&kept).len(), 2);
    drop(one);
    eventually("the keepers end", || keepers(&kept).is_empty());
}

#[test]
fn a_keeper_keeps_what_may_be_received_through_another() {
    let _watchdog = watchdog();
    type Outer = Queue<Queue<Numbers>>;
    let chain = || {
        let outer = Outer::unbounded().unwrap();
        let before = own();
        let inner = Queue::unbounded().unwrap();
        let mut kept = &own() - &before;
        run(
            |(outer, inner): (Outer, Queue<Numbers>)| outer.put(&inner).unwrap(),
            (outer.clone(), inner.clone()),
        );
        kept.extend(run(put, inner.clone()));
        eventually("both are kept", || keepers(&kept).len() == 2);
        drop(inner);
        (outer, kept)
    };
    let ((received, _), (dropped, kept)) = (chain(), chain());
    std::thread::sleep(Duration::from_millis(3500));
    assert_eq!(received.try_get().unwrap().try_get().unwrap().to_vec(), [7; 1000]);
    assert_eq!(keepers(&kept).len(), 2);
    drop(dropped);
    eventually("the keepers end", || keepers(&kept).is_empty());
}

#[test]
fn a_task_that_is_handed_out_again_has_its_handles() {
    let _watchdog = watchdog();
    let tasks = JoinableQueue::<Numbers>::unbounded().unwrap();
    run(|tasks: JoinableQueue<Numbers>| tasks.put(&numbers()).unwrap(), tasks.clone());
    let work = |tasks: JoinableQueue<Numbers>| -> () {
        let _task = tasks.get().unwrap();
        procession_sys::process::kill_self()
    };
    for _ in 0..3 {
        Process::spawn(work, tasks.clone()).unwrap().join().unwrap_err();
    }
    let task = tasks.get().unwrap();
    assert_eq!(task.to_vec(), [7; 1000]);
    task.done().unwrap();
}

#[test]
fn forked_processes_leave_keepers_too() {
    let _watchdog = watchdog();
    // In a process without the test's threads.
    run(
        |()| {
            let queue = Queue::unbounded().unwrap();
            match process::fork().unwrap() {
                Fork::Child => {
                    queue.put(&numbers()).unwrap();
                    process::exit(0)
                }
                Fork::Parent(child) => assert_eq!(child.wait().unwrap().code(), Some(0)),
            }
            assert_eq!(queue.try_get().unwrap().to_vec(), [7; 1000]);
        },
        (),
    );
}

#[test]
fn an_end_of_a_pipe_is_closed_when_nobody_can_receive_it() {
    let _watchdog = watchdog();
    let (receiver, sender) = procession::Pipe::one_way::<u32>().unwrap();
    let queue = Queue::unbounded().unwrap();
    run(
        |(queue, sender): (Queue<Sender<u32>>, Sender<u32>)| queue.put(&sender).unwrap(),
        (queue.clone(), sender),
    );
    assert!(!receiver.poll(Duration::from_millis(2500)).unwrap(), "the keeper has the other end");
    drop(queue);
    assert!(receiver.recv().is_err(), "nobody has it");
}

#[test]
fn a_process_that_waits_for_children_at_its_exit_hands_out_meanwhile() {
    let _watchdog = watchdog();
    const COUNT: u32 = 32;
    static ENDING: OnceLock<Queue<()>> = OnceLock::new();
    extern "C" fn tell() {
        // Without a buffer of the thread, whose data is gone by now.
        ENDING.get().unwrap().put_bytes(&[]).unwrap();
    }
    type Queues = (Queue<Sender<u32>>, Queue<()>);
    let parent = |(senders, ending): Queues| -> () {
        let child = |(senders, ending): Queues| {
            ending.get_timeout(Duration::from_secs(60)).unwrap();
            (0..COUNT).for_each(|number| senders.get().unwrap().send(&number).unwrap());
            ending.put(&()).unwrap();
        };
        // Registers what waits for it, before the first handle registers the keeper.
        let _child = Process::spawn(child, (senders.clone(), ending.clone())).unwrap();
        let (receiver, sender) = procession::Pipe::one_way::<u32>().unwrap();
        (0..COUNT).for_each(|_| senders.put(&sender).unwrap());
        std::mem::forget(receiver);
        ENDING.set(ending).unwrap();
        procession_sys::process::at_exit(tell).unwrap();
        std::process::exit(0)
    };
    let queues = (Queue::unbounded().unwrap(), Queue::unbounded().unwrap());
    Process::spawn(parent, queues.clone()).unwrap().join().expect_err("it exits without a result");
    queues.1.try_get().expect("the child has received all");
}

#[test]
fn a_keeper_does_not_keep_its_senders_memory() {
    let _watchdog = watchdog();
    let queue = Queue::unbounded().unwrap();
    let large = |queue: Queue<Numbers>| {
        let kept = put(queue);
        std::mem::forget(vec![1_u8; 256 << 20]);
        assert!(Resources::now().resident > 256 << 10);
        kept
    };
    let kept = run(large, queue.clone());
    eventually("it is kept", || keepers(&kept).len() == 1);
    let keeper = keepers(&kept)[0];
    let resident = || -> u64 {
        let statm = std::fs::read_to_string(format!("/proc/{keeper}/statm")).unwrap();
        statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * rustix::param::page_size() as u64
    };
    eventually("it gives memory back", || resident() < 32 << 20);
    queue.try_get().unwrap();
}

#[test]
fn one_sender_after_another_ends() {
    let _watchdog = watchdog();
    let queue = Queue::unbounded().unwrap();
    for _ in 0..20 {
        run(put, queue.clone());
    }
    assert_eq!((0..20).map(|_| queue.try_get().unwrap().len()).sum::<usize>(), 20_000);
}
