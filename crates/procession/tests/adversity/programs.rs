//! Programs under conditions that nobody wishes for.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use procession::connection::{SendError, wait};
use procession::process::{JoinError, StartError};
use procession::queue::{MemoryError, PutError};
use procession::{
    Barrier, Condition, Event, JoinableQueue, Lock, Pipe, Process, Queue, RLock, Receiver, Semaphore, Sender,
    SimpleQueue, StartMethod, Value,
};
use rustix::process::{Resource, Rlimit, setrlimit};
use serde::{Deserialize, Serialize};
use test_support::{AmongThreads, eventually, has_ended, only, stderr_silenced, watchdog};

fn limit(resource: Resource, most: u64) {
    setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) }).unwrap();
}

/// A place for another program to wait at, in every way there is.
#[derive(Clone, Serialize, Deserialize)]
struct Places {
    empty: Queue<u8>,
    full: Queue<u8>,
    tasks: JoinableQueue<u8>,
    simple: SimpleQueue<u8>,
    lock: Lock,
    rlock: RLock,
    semaphore: Semaphore,
    robust: Semaphore,
    condition: Condition,
    event: Event,
    barrier: Barrier,
    value: Value<u32>,
}

impl Places {
    const WAYS: usize = 15;

    /// The caller holds what can be held.
    fn new() -> Places {
        let places = Places {
            empty: Queue::unbounded().unwrap(),
            full: Queue::bounded(1).unwrap(),
            tasks: JoinableQueue::unbounded().unwrap(),
            simple: SimpleQueue::new().unwrap(),
            lock: Lock::new().unwrap(),
            rlock: RLock::new().unwrap(),
            semaphore: Semaphore::new(0).unwrap(),
            robust: Semaphore::robust(1).unwrap(),
            condition: Condition::new().unwrap(),
            event: Event::new().unwrap(),
            barrier: Barrier::new(1000).unwrap(),
            value: Value::new(0).unwrap(),
        };
        places.full.put(&1).unwrap();
        places.tasks.put(&1).unwrap();
        assert!(places.lock.acquire(None).is_held() && places.rlock.acquire(None).is_held());
        assert!(places.robust.try_acquire());
        std::mem::forget(places.value.lock().unwrap());
        places
    }
}

type Waiter = (Places, usize, Receiver<u8>, Sender<u8>, Queue<u32>);

/// Waits in one of the ways, for ever.
fn wait_there((places, way, receiver, sender, started): Waiter) {
    started.put(&std::process::id()).unwrap();
    match way {
        0 => drop(places.empty.get()),
        1 => drop(places.full.put(&1)),
        2 => drop(places.tasks.join()),
        3 => drop(places.simple.get()),
        4 => drop(places.lock.lock()),
        5 => drop(places.rlock.lock()),
        6 => drop(places.semaphore.enter()),
        7 => drop(places.robust.enter()),
        8 => {
            let _guard = places.condition.lock().unwrap();
            let _ = places.condition.wait(None);
        }
        9 => drop(places.event.wait(None)),
        10 => drop(places.barrier.wait(None)),
        11 => drop(places.value.lock()),
        12 => drop(receiver.recv()),
        13 => while sender.send_bytes(&[0; 100_000]).is_ok() {},
        _ => drop(wait(&[&receiver], None)),
    }
    // The other end of a pipe goes with its process.
    assert!(way >= 12, "the wait number {way} ended");
}

#[test]
fn no_daemon_outlives_a_killed_program_wherever_it_waits() {
    let _watchdog = watchdog();
    for method in StartMethod::ALL {
        let started = Queue::<u32>::unbounded().unwrap();
        let program = Process::spawn(
            |(method, started): (StartMethod, Queue<u32>)| {
                let places = Places::new();
                let mut ends = Vec::new();
                let daemons: Vec<_> = (0..Places::WAYS)
                    .map(|way| {
                        let (mine, theirs) = (Pipe::one_way::<u8>().unwrap(), Pipe::one_way::<u8>().unwrap());
                        let waiter = (places.clone(), way, theirs.0, mine.1, started.clone());
                        ends.push((mine.0, theirs.1));
                        let daemon = Process::builder(wait_there, waiter).daemon(true).start_method(method);
                        // This process has a value locked, which is refused otherwise.
                        daemon.among_threads().start().unwrap()
                    })
                    .collect();
                daemons.iter().for_each(|daemon| daemon.join().unwrap());
            },
            (method, started.clone()),
        )
        .unwrap();
        let daemons: Vec<u32> = (0..Places::WAYS).map(|_| started.get().unwrap()).collect();
        std::thread::sleep(Duration::from_millis(20));
        program.kill().unwrap();
        assert!(matches!(program.join(), Err(JoinError::Killed { .. })));
        for daemon in daemons {
            eventually("the daemon is gone", || has_ended(daemon));
        }
    }
}

#[test]
fn forked_children_of_a_program_whose_threads_make_objects() {
    let _watchdog = watchdog();
    // In a program of its own: other tests have threads as well.
    let program = |()| {
        let over = AtomicBool::new(false);
        let shared = Queue::<Queue<u8>>::unbounded().unwrap();
        let make = || {
            let queue = Queue::<u8>::unbounded().unwrap();
            queue.put(&1).unwrap();
            let (bytes, event) = (postcard::to_stdvec(&queue).unwrap(), Event::new().unwrap());
            let again: Queue<u8> = postcard::from_bytes(&bytes).unwrap();
            assert_eq!(again.get().unwrap(), 1);
            drop(event);
        };
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !over.load(Ordering::Relaxed) {
                        make();
                    }
                });
            }
            for _ in 0..150 {
                let child = Process::forking(|| {
                    make();
                    shared.put(&Queue::unbounded().unwrap()).unwrap();
                    drop(shared.get());
                });
                child.among_threads().start().unwrap().join().unwrap_or_else(|error| panic!("{error}"));
            }
            over.store(true, Ordering::Relaxed);
        });
    };
    Process::spawn(program, ()).unwrap().join().unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn a_hundred_waiting_processes_leave_the_processors_alone() {
    let _watchdog = watchdog();
    fn processor_time(pid: u32) -> Duration {
        let text = fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap();
        Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
    }
    // The ways in which each waiter could ask about every other one, or all about the same.
    for way in [4, 7, 8, 10] {
        let (places, started) = (Places::new(), Queue::unbounded().unwrap());
        let (end, other) = (Pipe::one_way().unwrap(), Pipe::one_way().unwrap());
        let waiter = (places, way, end.0, other.1, started.clone());
        let waiters = Process::spawn(
            |waiter: Waiter| {
                let start = || Process::fork(|| wait_there_again(&waiter)).unwrap();
                let waiters: Vec<_> = (0..100).map(|_| start()).collect();
                waiters.iter().for_each(|waiter| drop(waiter.join()));
            },
            waiter,
        )
        .unwrap();
        let pids: Vec<u32> = (0..100).map(|_| started.get().unwrap()).collect();
        std::thread::sleep(Duration::from_millis(300));
        let time = || pids.iter().map(|pid| processor_time(*pid)).sum::<Duration>();
        let (before, since) = (time(), std::time::Instant::now());
        std::thread::sleep(Duration::from_millis(500));
        let share = (time() - before).as_secs_f64() / since.elapsed().as_secs_f64();
        pids.iter().for_each(|pid| kill(*pid));
        waiters.join().unwrap_or_else(|error| panic!("{error}"));
        // About 0.02, and more than 1 when each asks about all.
        assert!(share < 0.3, "way {way}: {share} of a processor");
    }
}

fn wait_there_again((places, way, _, _, started): &Waiter) {
    let ((receiver, _sender), (_receiver, sender)) = (Pipe::one_way().unwrap(), Pipe::one_way().unwrap());
    wait_there((places.clone(), *way, receiver, sender, started.clone()));
}

fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

#[test]
fn a_program_that_has_closed_its_standard_streams() {
    let _watchdog = watchdog();
    let program = |()| {
        for stream in 0..3 {
            // SAFETY: nothing in this process uses the standard streams from here on.
            assert_eq!(unsafe { libc::close(stream) }, 0);
        }
        let queue = Queue::<u32>::unbounded().unwrap();
        for method in [StartMethod::Spawn, StartMethod::ForkServer] {
            let print = |queue: Queue<u32>| {
                println!("to whom it may concern");
                eprintln!("to whom it may concern");
                queue.put(&1).unwrap();
            };
            let process = Process::builder(print, queue.clone()).start_method(method).start();
            if let Err(error) = process.unwrap().join() {
                return Err(format!("{method:?}: {error}"));
            }
            assert_eq!(queue.try_get().unwrap(), 1);
        }
        Ok(())
    };
    Process::spawn(program, ()).unwrap().join().unwrap().unwrap();
}

#[test]
fn want_of_memory_is_an_error() {
    let _watchdog = watchdog();
    let program = |()| {
        const LARGE: usize = 40 << 20;
        let large = "x".repeat(LARGE);
        let queue = Queue::<String>::unbounded().unwrap();
        let (receiver, sender) = Pipe::one_way::<String>().unwrap();
        let mapped = fs::read_to_string("/proc/self/statm").unwrap();
        let pages: u64 = mapped.split(' ').next().unwrap().parse().unwrap();
        limit(Resource::As, pages * rustix::param::page_size() as u64 + (20 << 20));

        assert!(matches!(queue.put(&large), Err(PutError::Memory(MemoryError::System(_)))));
        assert!(matches!(sender.send(&large), Err(SendError::System { .. })));
        let process = Process::spawn(|_: String| (), large);
        assert!(matches!(process, Err(StartError::Arguments(_))), "{process:?}");
        let put = (0..100).take_while(|_| match queue.put(&"y".repeat(1 << 20)) {
            Ok(()) => true,
            Err(PutError::Memory(MemoryError::System(_))) => false,
            Err(error) => panic!("{error}"),
        });
        let put = put.count();
        assert!((1..100).contains(&put), "{put} messages of a MiB");
        assert!((0..put).all(|_| queue.get().unwrap().len() == 1 << 20));
        sender.send(&"z".into()).unwrap();
        assert_eq!(receiver.recv().unwrap(), "z");
    };
    Process::spawn(program, ()).unwrap().join().unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn want_of_descriptors_is_an_error() {
    let _watchdog = watchdog();
    let program = |()| {
        limit(Resource::Nofile, 64);
        let mut queues: Vec<Queue<u8>> = std::iter::from_fn(|| Queue::unbounded().ok()).collect();
        assert!(queues.len() > 40, "{} queues", queues.len());
        queues[0].put(&1).unwrap();
        assert!(Pipe::one_way::<u8>().is_err());
        for method in StartMethod::ALL {
            let process = Process::builder(|_: Queue<u8>| (), queues[0].clone()).start_method(method);
            let process = process.start();
            assert!(
                matches!(process, Err(StartError::Arguments(_) | StartError::System { .. })),
                "{process:?}"
            );
        }
        queues.truncate(1);
        for method in StartMethod::ALL {
            let count = |queues: Vec<Queue<u8>>| queues.len();
            let many: Vec<_> = (0..20).map(|_| Queue::unbounded().unwrap()).collect();
            let process = Process::builder(count, many).start_method(method).start().unwrap();
            assert_eq!(process.join().unwrap(), 20);
        }
        assert_eq!(queues[0].get().unwrap(), 1);
    };
    Process::spawn(program, ()).unwrap().join().unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn what_killed_programs_left_under_a_name_goes_when_another_name_is_made() {
    let _watchdog = watchdog();
    let name = |what: &str| format!("adversity-{}-{what}", std::process::id());
    let (left, used) = (name("left"), name("used"));
    let file = |name: &str| PathBuf::from(format!("/dev/shm/procession.{name}"));
    let kept = Queue::<u8>::builder().create(&used).unwrap();
    let program = |name: String| {
        std::mem::forget(Queue::<u8>::builder().create(&name).unwrap());
        kill(std::process::id());
    };
    assert!(Process::spawn(program, left.clone()).unwrap().join().is_err());
    assert!(file(&left).exists());
    // A process that has not looked before: each looks once a second at most.
    let make = |name: String| drop(Queue::<u8>::builder().create(&name).unwrap());
    Process::spawn(make, name("new")).unwrap().join().unwrap();
    assert!(!file(&left).exists());
    kept.put(&1).unwrap();
    assert_eq!(Queue::<u8>::open(&used).unwrap().get().unwrap(), 1);
}

#[test]
fn a_program_whose_file_and_directory_are_gone() {
    let _watchdog = watchdog();
    let directory = std::env::temp_dir().join(format!("procession-adversity-{}", std::process::id()));
    fs::create_dir(&directory).unwrap();
    let program = directory.join("program");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let mut command = Command::new(&program);
    command.args(only(module_path!(), "starts_processes_without_its_file")).current_dir(&directory);
    let output = command.process_group(0).output().unwrap();
    // What the program could not remove.
    let _ = fs::remove_dir_all(&directory);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
}

#[test]
#[ignore = "run by another test, as a program of its own that removes its file"]
fn starts_processes_without_its_file() {
    let program = std::env::current_exe().unwrap();
    let answer = |queue: Queue<u8>| queue.put(&1).unwrap();
    let start_all = || {
        let queue = Queue::unbounded().unwrap();
        for method in StartMethod::ALL {
            let process = Process::builder(answer, queue.clone()).start_method(method).among_threads();
            process.start().unwrap().join().unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(queue.try_get().unwrap(), 1);
        }
    };
    // Another program takes its place, as an update does.
    fs::copy("/bin/true", program.with_extension("new")).unwrap();
    fs::rename(program.with_extension("new"), &program).unwrap();
    start_all();
    fs::remove_file(&program).unwrap();
    fs::remove_dir(std::env::current_dir().unwrap()).unwrap();
    start_all();
}

#[test]
fn panics_and_exits_among_many_waiting_processes_are_told() {
    let _watchdog = watchdog();
    let gate = Event::new().unwrap();
    let work = |(gate, n): (Event, u32)| {
        stderr_silenced();
        gate.wait(None);
        match n % 3 {
            0 => panic!("number {n}"),
            1 => std::process::exit(7),
            _ => n,
        }
    };
    let start = |n: u32| {
        let method = StartMethod::ALL[n as usize % 2 * 2];
        Process::builder(work, (gate.clone(), n)).start_method(method).start().unwrap()
    };
    let processes: Vec<_> = (0..24).map(start).collect();
    gate.set();
    for (n, process) in (0..).zip(&processes) {
        match (n % 3, process.join()) {
            (0, Err(JoinError::Panicked { message, .. })) => assert_eq!(message, format!("number {n}")),
            (1, Err(JoinError::Exited { code, .. })) => assert_eq!(code, 7),
            (2, Ok(result)) => assert_eq!(result, n),
            (_, other) => panic!("{n}: {other:?}"),
        }
    }
}
