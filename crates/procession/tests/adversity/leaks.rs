//! A program that runs for long: objects come and go, and what it has of the system is what it had before.
//!
//! `PROCESSION_OBJECTS` is how many objects are made in all, 100,000 unless given.

use std::time::{Duration, Instant};

use procession::connection::{Address, Client, Listener, RecvError};
use procession::queue::PutManyError;
use procession::{Event, JoinableQueue, Pipe, Process, Queue, Receiver, Sender, StartMethod, process};
use serde::{Deserialize, Serialize};
use test_support::{AmongThreads, Object, Resources, eventually, process_state};

/// Runs `work` so often that what is made once a process is made, then `count` times. What the process has then is what it
/// had before, but for `descriptors` more.
fn comes_back(what: &str, count: usize, descriptors: usize, mut work: impl FnMut()) {
    /// The allocator keeps some of what was freed, and a pool has one chunk of up to a MiB.
    const RESIDENT: u64 = 6 << 10;
    (0..40.min(count)).for_each(|_| work());
    let (before, since) = (Resources::now(), Instant::now());
    (0..count).for_each(|_| work());
    let mut after = Resources::now();
    // Something may just be ending: a thread, or what another process has received.
    let until = Instant::now() + Duration::from_secs(60);
    while !after.is_back(before, descriptors, RESIDENT) && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
        after = Resources::now();
    }
    println!("{count} {what} in {:.1} s: {before}; then {after}", since.elapsed().as_secs_f64());
    assert!(after.is_back(before, descriptors, RESIDENT), "{what}: {before}; then {after}");
}

/// Runs the test in a program of its own, where nothing else changes what is counted.
fn alone(test: &str, program: fn(usize)) {
    let objects = std::env::var("PROCESSION_OBJECTS").map_or(100_000, |value| value.parse().unwrap());
    let program = Process::spawn(program, objects).unwrap();
    match program.join_timeout(Duration::from_secs(600 + objects as u64 / 100)) {
        Ok(Some(())) => {}
        Ok(None) => panic!("watchdog: {test} hangs (pid {})", program.pid()),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn objects_made_and_dropped() {
    alone("objects_made_and_dropped", |objects| {
        let first = Resources::now();
        let each = objects / (Object::KINDS + 3);
        for kind in 0..Object::KINDS {
            comes_back(&format!("objects of kind {kind}"), each, 0, || Object::new(kind).end());
        }
        let mut many = Vec::new();
        comes_back("objects at a time, twice", 2, 0, || {
            many.extend((0..each).map(|n| Object::new(8 + n % 12)));
            many.clear();
            many.shrink_to_fit();
        });
        let directory = std::env::temp_dir().join(format!("procession-leaks-{}", process::getpid()));
        std::fs::create_dir(&directory).unwrap();
        comes_back("listeners with a socket file", each / 2, 0, || {
            let mut listener = Listener::bind(Address::unix(directory.join("socket"))).unwrap();
            let client = Client::connect::<u8, u8>(listener.address(), None).unwrap();
            let server = listener.accept::<u8, u8>().unwrap();
            client.send(&1).unwrap();
            assert_eq!(server.recv().unwrap(), 1);
        });
        std::fs::remove_dir(&directory).unwrap();
        comes_back("abstract listeners", each / 2, 0, || drop(Listener::builder().bind().unwrap()));
        for method in StartMethod::ALL {
            let start = || Process::builder(|n: u32| n, 7).start_method(method).start().unwrap();
            comes_back(&format!("processes by {method:?}, joined"), objects / 1000, 0, || {
                assert_eq!(start().join().unwrap(), 7);
            });
            comes_back(&format!("processes by {method:?}, not joined"), objects / 1000, 0, || {
                let pid = start().pid();
                eventually("it is collected", || process_state(pid).is_none());
            });
            comes_back(&format!("processes by {method:?}, killed"), objects / 1000, 0, || {
                let process = Process::builder(|event: Event| event.wait(None), Event::new().unwrap());
                let process = process.start_method(method).start().unwrap();
                process.kill().unwrap();
                process.join().unwrap_err();
            });
        }
        let last = Resources::now();
        println!("in all: {first}; then {last}");
        // The reaper, with its epoll set; the fork server's connection and pidfd; a chunk and its mapping.
        assert!(
            last.descriptors <= first.descriptors + 5 && last.threads <= first.threads + 1,
            "{first}; {last}"
        );
    });
}

/// The ways to another process and back.
#[derive(Clone, Serialize, Deserialize)]
struct Roads {
    there: Queue<Object>,
    tasks: JoinableQueue<Object>,
    /// What the other process has.
    report: Queue<Resources>,
    back: Queue<Object>,
}

/// Sends everything back, until there is no more.
fn companion((roads, receiver, sender): (Roads, Receiver<Option<Object>>, Sender<Object>)) {
    let report = |roads: &Roads| roads.report.put(&Resources::now()).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while let Some(object) = receiver.recv().unwrap() {
                sender.send(&object).unwrap();
            }
        });
        scope.spawn(|| {
            while let Ok(task) = roads.tasks.get() {
                roads.back.put(&task).unwrap();
                task.done().unwrap();
            }
        });
        while let Ok(object) = roads.there.get() {
            roads.back.put(&object).unwrap();
            if let Object::Event(event) = object
                && event.is_set()
            {
                report(&roads);
            }
        }
    });
}

#[test]
fn objects_sent_to_another_process_and_back() {
    alone("objects_sent_to_another_process_and_back", |objects| {
        let roads = Roads {
            there: Queue::unbounded().unwrap(),
            tasks: JoinableQueue::unbounded().unwrap(),
            report: Queue::unbounded().unwrap(),
            back: Queue::unbounded().unwrap(),
        };
        let (receiver, to) = Pipe::one_way::<Option<Object>>().unwrap();
        let (from, sender) = Pipe::one_way::<Object>().unwrap();
        let other =
            Process::builder(companion, (roads.clone(), receiver, sender)).daemon(true).start().unwrap();
        let others_resources = || {
            let event = Event::new().unwrap();
            event.set();
            roads.there.put(&Object::Event(event)).unwrap();
            roads.back.get().unwrap();
            roads.report.get().unwrap()
        };
        let each = (objects / 10 / Object::KINDS).max(30);
        let mut ways: [(&str, &mut dyn FnMut(usize)); 3] = [
            ("queue", &mut |kind| {
                let object = Object::new(kind);
                roads.there.put(&object).unwrap();
                drop(object);
                roads.back.get().unwrap().end();
            }),
            ("queue of tasks", &mut |kind| {
                let object = Object::new(kind);
                roads.tasks.put(&object).unwrap();
                drop(object);
                roads.back.get().unwrap().end();
                roads.tasks.join().unwrap();
            }),
            ("pipe", &mut |kind| {
                let object = Object::new(kind);
                to.send(&Some(object)).unwrap();
                from.recv().unwrap().end();
            }),
        ];
        (0..Object::KINDS).for_each(|kind| ways.iter_mut().for_each(|(_, way)| way(kind)));
        let others_before = others_resources();
        for (name, way) in &mut ways {
            for kind in 0..Object::KINDS {
                // So many descriptors may wait for the next look at which of them can go.
                comes_back(&format!("objects of kind {kind} through a {name}"), each, WAITING, || way(kind));
            }
        }
        let others_after = others_resources();
        println!("the other process: {others_before}; then {others_after}");
        assert!(others_after.is_back(others_before, WAITING, 8 << 10), "{others_before}; {others_after}");
        roads.there.shutdown(false).unwrap();
        roads.tasks.shutdown(false).unwrap();
        to.send(&None).unwrap();
        other.join().unwrap_or_else(|error| panic!("{error}"));

        for method in StartMethod::ALL {
            comes_back(&format!("objects to a process by {method:?} and back"), each / 4, 1, || {
                let all: Vec<Object> = (0..Object::KINDS).map(Object::new).collect();
                let process =
                    Process::builder(|all: Vec<Object>| all, all).start_method(method).among_threads();
                process.start().unwrap().join().unwrap().into_iter().for_each(Object::end);
            });
        }
    });
}

/// How many descriptors of objects that nobody needs a sender may keep until it looks.
const WAITING: usize = 40;

#[test]
fn objects_that_die_with_their_receivers() {
    alone("objects_that_die_with_their_receivers", |objects| {
        let queue = Queue::<Object>::unbounded().unwrap();
        let tasks = JoinableQueue::<Object>::unbounded().unwrap();
        // All kinds but the one that stays until it is unlinked.
        const EACH: usize = Object::KINDS - 1;
        for method in StartMethod::ALL {
            comes_back(&format!("receivers by {method:?} that are killed"), objects / 2000, WAITING, || {
                (0..EACH).for_each(|kind| queue.put(&Object::new(kind)).unwrap());
                let work = |queue: Queue<Object>| {
                    let objects: Vec<Object> = (0..EACH).map(|_| queue.get().unwrap()).collect();
                    assert_eq!(objects.len(), EACH);
                    kill_me();
                };
                let process = Process::builder(work, queue.clone()).start_method(method).among_threads();
                process.start().unwrap().join().unwrap_err();
            });
            // Nor ends of pipes: whoever has fetched one from a queue is the only one who can.
            let kinds = || (0..EACH).filter(|kind| !(5..8).contains(kind));
            comes_back(&format!("workers by {method:?} that are killed"), objects / 5000, WAITING, || {
                kinds().for_each(|kind| tasks.put(&Object::new(kind)).unwrap());
                let work = |tasks: JoinableQueue<Object>| {
                    let held: Vec<_> = (0..EACH / 2).map(|_| tasks.get().unwrap()).collect();
                    assert_eq!(held.len(), EACH / 2);
                    kill_me();
                };
                let process = Process::builder(work, tasks.clone()).start_method(method).among_threads();
                process.start().unwrap().join().unwrap_err();
                kinds().for_each(|_| tasks.get().unwrap().done().unwrap());
                tasks.join().unwrap();
            });
        }
    });
}

#[test]
fn arguments_that_die_with_their_process() {
    alone("arguments_that_die_with_their_process", |objects| {
        const EACH: usize = Object::KINDS - 1;
        for method in StartMethod::ALL {
            comes_back(
                &format!("processes by {method:?} that read nothing"),
                objects / 2000,
                WAITING,
                || {
                    let arguments: Vec<Object> = (0..EACH).map(Object::new).collect();
                    let (receiver, sender) = Pipe::one_way::<u8>().unwrap();
                    let work = |_: (Vec<Object>, Sender<u8>)| {
                        std::thread::sleep(Duration::from_secs(1000));
                    };
                    let process =
                        Process::builder(work, (arguments, sender)).start_method(method).among_threads();
                    let process = process.start().unwrap();
                    process.kill().unwrap();
                    process.join().unwrap_err();
                    // Not in this process either: the end that travelled was the only one.
                    assert!(receiver.poll(Duration::from_secs(60)).unwrap());
                    assert!(matches!(receiver.recv(), Err(RecvError::Closed)));
                },
            );
        }
    });
}

#[test]
fn objects_that_were_refused() {
    alone("objects_that_were_refused", |objects| {
        let full = Queue::<Object>::bounded(1).unwrap();
        full.put(&Object::new(15)).unwrap();
        let tasks = JoinableQueue::<Object>::bounded(1).unwrap();
        tasks.put(&Object::new(15)).unwrap();
        let over = Queue::<Object>::unbounded().unwrap();
        over.shutdown(false).unwrap();
        for kind in 0..Object::KINDS {
            let each = objects / 10 / Object::KINDS;
            comes_back(&format!("objects of kind {kind}, refused"), each, WAITING, || {
                let object = Object::new(kind);
                full.try_put(&object).unwrap_err();
                tasks.try_put(&object).unwrap_err();
                over.put(&object).unwrap_err();
                over.put_many([&object, &object]).unwrap_err();
                object.end();
            });
        }
    });
}

fn kill_me() {
    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).unwrap();
}

#[test]
fn what_was_put_stays_while_what_was_refused_goes() {
    alone("what_was_put_stays_while_what_was_refused_goes", |_| {
        type Message = (Queue<u8>, Vec<u8>);
        let message = || (Queue::unbounded().unwrap(), vec![1; 10_000]);
        for round in 0..20 {
            let queue = Queue::<Message>::builder().max_bytes(600 << 10).build().unwrap();
            let full = Queue::<Message>::bounded(1).unwrap();
            full.put(&message()).unwrap();
            let mut messages: Vec<Message> = (0..30).map(|_| message()).collect();
            // No room even in an empty queue.
            messages[20].1 = vec![1; 1 << 20];
            // Refused before and between, and sent twice.
            let refuse = || assert!(messages.iter().all(|message| full.try_put(message).is_err()));
            refuse();
            queue.put(&messages[0]).unwrap();
            let PutManyError { put, error } = queue.put_many(&messages).unwrap_err();
            assert_eq!(put, 20, "{error}");
            refuse();
            drop(messages);
            // A look at which can go may come with each that is sent.
            full.try_put(&message()).unwrap_err();
            let receive = |(queue, put): (Queue<Message>, usize)| {
                (0..=put)
                    .for_each(|_| queue.get().unwrap_or_else(|error| panic!("{error}")).0.put(&1).unwrap());
                assert!(queue.is_empty());
            };
            let receiver = Process::builder(receive, (queue, put)).start_method(StartMethod::ALL[round % 3]);
            receiver.start().unwrap().join().unwrap_or_else(|error| panic!("{error}"));
            // Nobody knows what becomes of a message that is left in a queue.
            full.get().unwrap();
        }
        // Once a second it looks which can go, when it sends another one.
        std::thread::sleep(Duration::from_millis(1100));
        drop(postcard::to_stdvec(&Event::new().unwrap()).unwrap());
        assert!(Resources::now().descriptors < 20, "{}", Resources::now());
    });
}
