//! Out of descriptors, processes, memory: an error from the call that asked for more, and everything else goes on.

use std::fmt::Display;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use procession::connection::{Address, Client, Listener};
use procession::queue::PutError;
use procession::sync::{Acquisition, Identity};
use procession::{
    Error, Event, Lock, Pipe, Process, Queue, Receiver, Sender, SharedMemory, StartMethod, Value, process,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use test_support::{
    AmongThreads, Group, Object, Resources, fork_among_threads, own_dev_shm, process_state, stderr_silenced,
    watchdog,
};

/// Runs a test in a program of its own.
fn alone(test: &'static str, program: fn(())) {
    let program = Process::spawn(program, ()).unwrap();
    match program.join_timeout(Duration::from_secs(900)) {
        Ok(Some(())) => {}
        Ok(None) => panic!("watchdog: {test} hangs (pid {})", program.pid()),
        Err(error) => panic!("{error}"),
    }
}

/// Runs `work` while the soft limit is `most`.
fn limited<R>(resource: Resource, most: u64, work: impl FnOnce() -> R) -> R {
    let before = getrlimit(resource);
    setrlimit(resource, Rlimit { current: Some(most), maximum: before.maximum }).unwrap();
    let result = work();
    setrlimit(resource, before).unwrap();
    result
}

/// Runs `work` with exactly `free` more descriptors to be had.
fn with_descriptors<R>(free: u64, work: impl FnOnce() -> R) -> R {
    let mut fillers = Vec::new();
    loop {
        // Gets the lowest number that is free. Where no higher one is taken, none is free below.
        let filler = File::open("/dev/null").unwrap();
        let number = filler.as_raw_fd() as u64;
        // One more is the directory that is being read.
        if std::fs::read_dir("/proc/self/fd").unwrap().count() as u64 == number + 2 {
            drop(filler);
            return limited(Resource::Nofile, number + free, work);
        }
        fillers.push(filler);
    }
}

/// What came of something that may fail for want of `what`, whose error has to say so.
fn outcome<T>(what: &[&str], operation: &str, result: Result<T, impl Display>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error) => {
            let text = error.to_string();
            assert!(what.iter().any(|what| text.contains(what)), "{operation}: {text}");
            None
        }
    }
}

const NO_DESCRIPTOR: &[&str] = &["os error 24", "escriptor"];

/// Waits until the process has again what it had.
fn back(before: Resources, what: &str) {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let now = Resources::now();
        if now.is_back(before, 0, 8 << 10) {
            return;
        }
        assert!(Instant::now() < until, "{what}: {before}; then {now}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Something that needs descriptors; its name, and what it does.
type Operation = (String, Box<dyn Fn() -> Result<(), Error>>);

fn start(method: StartMethod) -> Result<(), Error> {
    let process =
        Process::builder(|(n, value): (u32, Value<u32>)| n + value.get().unwrap(), (3, Value::new(4)?));
    assert_eq!(process.start_method(method).start()?.join()?, 7);
    Ok(())
}

fn connect(address: Option<Address>) -> Result<(), Error> {
    let builder = Listener::builder().authkey("key");
    let mut listener =
        address.into_iter().fold(builder, |builder, address| builder.address(address)).bind()?;
    let address = listener.address().clone();
    std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            Client::connect_timeout::<u8, u8>(&address, Some(&"key".into()), Duration::from_millis(300))
        });
        let server = listener.accept_timeout::<u8, u8>(Duration::from_millis(300));
        let client = client.join().unwrap();
        // Where the server has no descriptor, its client's time is up, and the other way round.
        let (client, server) = match (client, server) {
            (Err(error), Err(_)) if error.to_string().contains("os error 24") => return Err(error.into()),
            (_, Err(error)) => return Err(error.into()),
            (client, Ok(server)) => (client?, server),
        };
        client.send(&1)?;
        assert_eq!(server.recv()?, 1);
        Ok(())
    })
}

fn operations() -> Vec<Operation> {
    fn operation(name: impl Into<String>, run: impl Fn() -> Result<(), Error> + 'static) -> Operation {
        (name.into(), Box::new(run))
    }
    let mut all: Vec<Operation> = (0..Object::KINDS)
        .map(|kind| {
            operation(format!("an object of kind {kind}"), move || Object::try_new(kind).map(Object::end))
        })
        .collect();
    all.extend(
        StartMethod::ALL.map(|method| operation(format!("a start by {method:?}"), move || start(method))),
    );
    all.push(operation("fork by hand", || match fork_among_threads()? {
        process::Fork::Child => process::exit(0),
        process::Fork::Parent(child) => {
            assert!(child.wait()?.success());
            Ok(())
        }
    }));
    all.push(operation("an orphan", || {
        let (receiver, sender) = Pipe::one_way::<u32>()?;
        process::detach(|sender: Sender<u32>| sender.send(&process::getpid()).unwrap(), sender)?;
        receiver.recv()?;
        Ok(())
    }));
    let path = std::env::temp_dir().join(format!("procession-scarcity-{}", process::getpid()));
    all.push(operation("a connection", || connect(None)));
    all.push(operation("a connection by a path", move || connect(Some(Address::unix(&path)))));
    let queue = Queue::<Queue<u8>>::unbounded().unwrap();
    all.push(operation("a queue in a queue", move || {
        let sent = Queue::unbounded()?;
        queue.put(&sent)?;
        queue.get()?.put(&1)?;
        assert_eq!(sent.get()?, 1);
        Ok(())
    }));
    let queue = Queue::<Receiver<u8>>::unbounded().unwrap();
    all.push(operation("an end of a pipe in a queue", move || {
        let (receiver, sender) = Pipe::one_way()?;
        queue.put(&receiver)?;
        drop(receiver);
        sender.send(&1)?;
        assert_eq!(queue.get()?.recv()?, 1);
        Ok(())
    }));
    let (receiver, sender) = Pipe::one_way::<(Lock, Queue<u8>)>().unwrap();
    all.push(operation("handles through a pipe", move || {
        sender.send(&(Lock::new()?, Queue::unbounded()?))?;
        receiver.recv()?.1.put(&1)?;
        Ok(())
    }));
    all
}

#[test]
fn with_every_number_of_descriptors_left() {
    alone("with_every_number_of_descriptors_left", |()| {
        stderr_silenced();
        let operations = operations();
        // What is made once a process.
        operations.iter().for_each(|(name, run)| run().unwrap_or_else(|error| panic!("{name}: {error}")));
        let standing = Queue::<u32>::bounded(1).unwrap();
        for (name, run) in &operations {
            let before = Resources::now();
            let mut least = None;
            for free in (0..=12).chain([20, 30]) {
                let result = with_descriptors(free, || {
                    let result = run();
                    // What is there goes on.
                    standing.put(&7).unwrap();
                    assert_eq!(standing.get().unwrap(), 7);
                    result
                });
                match outcome(NO_DESCRIPTOR, &format!("{name}, {free} descriptors"), result) {
                    Some(()) => least = least.or(Some(free)),
                    None => assert!(free < 12, "{name} with {free} descriptors"),
                }
                if let Err(error) = run() {
                    panic!("{name}, after {free} descriptors: {error}");
                }
            }
            println!("{name}: needs {}", least.unwrap());
            back(before, name);
        }
    });
}

#[test]
fn handles_arrive_where_no_descriptor_is_left() {
    alone("handles_arrive_where_no_descriptor_is_left", |()| {
        let queue = Queue::<Object>::unbounded().unwrap();
        let ready = Event::new().unwrap();
        let over = Event::new().unwrap();
        // As many as there will be attempts.
        let send = |(queue, ready, over): (Queue<Object>, Event, Event)| {
            for _ in 0..=12 {
                (0..Object::KINDS - 1).for_each(|kind| queue.put(&Object::new(kind)).unwrap());
            }
            ready.set();
            over.wait(None);
        };
        let sender = Process::spawn(send, (queue.clone(), ready.clone(), over.clone())).unwrap();
        ready.wait(None);
        let before = Resources::now();
        let mut arrived = 0;
        for free in 0..=12 {
            for kind in 0..Object::KINDS - 1 {
                let result = with_descriptors(free, || queue.try_get());
                match outcome(NO_DESCRIPTOR, &format!("kind {kind} with {free} descriptors"), result) {
                    Some(_) => arrived += 1,
                    None => assert!(free < 10, "kind {kind} with {free} descriptors"),
                }
            }
        }
        assert!(arrived > 6 * (Object::KINDS - 1));
        assert!(queue.is_empty());
        over.set();
        sender.join().unwrap();
        back(before, "handles received");
    });
}

#[test]
fn a_dead_owner_is_found_without_a_descriptor() {
    alone("a_dead_owner_is_found_without_a_descriptor", |()| {
        let lock = Lock::new().unwrap();
        let owner = Process::spawn(|lock: Lock| assert!(lock.acquire(None).is_held()), lock.clone()).unwrap();
        owner.join().unwrap();
        let living = |(lock, event): (Lock, Event)| {
            assert!(lock.acquire(None).is_held());
            event.set();
            std::thread::sleep(Duration::from_secs(100));
        };
        let (held, event) = (Lock::new().unwrap(), Event::new().unwrap());
        let holder = Process::builder(living, (held.clone(), event.clone())).daemon(true).start().unwrap();
        event.wait(None);
        with_descriptors(0, || {
            assert!(matches!(lock.acquire(None), Acquisition::AcquiredFromDead(_)));
            assert!(!held.acquire(Duration::from_millis(300)).is_held(), "its owner lives");
        });
        holder.kill().unwrap();
        holder.join().unwrap_err();
        with_descriptors(0, || assert!(held.acquire(None).is_held()));
    });
}

#[test]
fn a_forked_child_without_descriptors_knows_who_it_is() {
    alone("a_forked_child_without_descriptors_knows_who_it_is", |()| {
        let lock = Lock::new().unwrap();
        let value = Value::new(0_u64).unwrap();
        with_descriptors(0, || {
            // SAFETY: this process has one thread; the child does a few things and leaves.
            let child = unsafe { libc::fork() };
            if child == 0 {
                let me = Identity::current();
                let known = lock.acquire(None).is_held() && value.set(me.to_bits()).is_ok();
                process::exit(i32::from(!known));
            }
            let mut status = 0;
            // SAFETY: a valid place for the status.
            assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
            assert_eq!(status, 0);
            let recorded = Identity::from_bits(value.get().unwrap()).unwrap();
            assert_eq!(recorded.pid().as_raw_nonzero().get(), child);
            assert_ne!(recorded, Identity::current());
        });
        assert!(matches!(lock.acquire(None), Acquisition::AcquiredFromDead(_)));
    });
}

const NO_PROCESS: &[&str] = &["os error 11"];

#[test]
fn with_every_number_of_processes_left() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root can become a user that has no processes");
        return;
    }
    alone("with_every_number_of_processes_left", |()| {
        stderr_silenced();
        // SAFETY: plain numbers. A user id that nobody has; the process may still look at itself in /proc.
        unsafe {
            let user = 200_000 + process::getpid();
            assert_eq!(libc::setresgid(user, user, user), 0);
            assert_eq!(libc::setresuid(user, user, user), 0);
            assert_eq!(libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0), 0);
        }
        let standing = Queue::<u32>::bounded(1).unwrap();
        let ends = Queue::<Receiver<u8>>::unbounded().unwrap();
        let before = Resources::now();
        for method in StartMethod::ALL {
            let mut needs = None;
            for processes in 1..=12 {
                let result = limited(Resource::Nproc, processes, || {
                    let result = start(method);
                    standing.put(&7).unwrap();
                    assert_eq!(standing.get().unwrap(), 7);
                    result
                });
                match outcome(NO_PROCESS, &format!("{method:?} with {processes}"), result) {
                    Some(()) => needs = needs.or(Some(processes)),
                    None => assert!(processes < 10),
                }
            }
            println!("{method:?}: needs a limit of {}", needs.unwrap());
            start(method).unwrap();
        }
        // A thread counts as a process.
        let (receiver, sender) = Pipe::one_way().unwrap();
        let error = limited(Resource::Nproc, 1, || ends.put(&receiver).unwrap_err());
        assert!(matches!(error, PutError::Handle(_)), "{error}");
        ends.put(&receiver).unwrap();
        drop(ends.get().unwrap());
        drop((receiver, sender));
        // The reaper and the mailbox, with a descriptor each; two for the fork server; a chunk. The
        // reaper still closes those of processes that have just ended.
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            let now = Resources::now();
            if now.threads <= before.threads + 2 && now.descriptors <= before.descriptors + 5 {
                return;
            }
            assert!(Instant::now() < until, "{before}; {now}");
            std::thread::sleep(Duration::from_millis(5));
        }
    });
}

const TOO_LARGE: &[&str] = &["os error 27"];

#[test]
fn a_limit_on_the_size_of_files_is_an_error_and_not_a_signal() {
    alone("a_limit_on_the_size_of_files_is_an_error_and_not_a_signal", |()| {
        let standing = Queue::<Vec<u8>>::unbounded().unwrap();
        let large = vec![1; 100_000];
        for most in [0, 4096, 100_000, 300_000, 1 << 20, 10 << 20] {
            limited(Resource::Fsize, most, || {
                for kind in 0..Object::KINDS {
                    if let Some(object) = outcome(TOO_LARGE, &format!("kind {kind}"), Object::try_new(kind)) {
                        object.end();
                    }
                }
                for method in StartMethod::ALL {
                    let process = Process::builder(|body: Vec<u8>| body, large.clone()).start_method(method);
                    let process = process.among_threads().start().map_err(Error::from);
                    let result = process.and_then(|process| Ok(process.join()?));
                    if let Some(result) = outcome(TOO_LARGE, &format!("{method:?}"), result) {
                        assert_eq!(result, large);
                    }
                }
                // As much as there is room for.
                let mut put = 0;
                while put < 100 && outcome(TOO_LARGE, "put", standing.put(&large)).is_some() {
                    put += 1;
                }
                for _ in 0..put {
                    assert_eq!(standing.get().unwrap(), large);
                }
            });
            standing.put(&large).unwrap();
            assert_eq!(standing.get().unwrap(), large);
        }
    });
}

const NO_MEMORY: &[&str] = &["os error 12", "out of memory", "memory"];

#[test]
fn with_little_address_space_left() {
    alone("with_little_address_space_left", |()| {
        let standing = Queue::<u32>::bounded(1).unwrap();
        for method in StartMethod::ALL {
            start(method).unwrap();
        }
        let size = || {
            let text = std::fs::read_to_string("/proc/self/statm").unwrap();
            text.split(' ').next().unwrap().parse::<u64>().unwrap() * rustix::param::page_size() as u64
        };
        let mut made = 0;
        for free in [200 << 10, 300 << 10, 600 << 10, 1 << 20, 2 << 20, 4 << 20, 16 << 20] {
            // The heap has room for what is small: an allocation of Rust's that fails ends the process.
            drop((0..100).map(|_| vec![0_u8; 10_000]).collect::<Vec<_>>());
            let most = size() + free;
            limited(Resource::As, most, || {
                let mut all = Vec::with_capacity(1000);
                for n in 0..1000 {
                    let object = Object::try_new(n % (Object::KINDS - 1));
                    all.extend(outcome(NO_MEMORY, &format!("object {n}"), object));
                    standing.put(&7).unwrap();
                    assert_eq!(standing.get().unwrap(), 7);
                }
                made += all.len();
            });
            for method in StartMethod::ALL {
                start(method).unwrap();
            }
        }
        assert!(made > 1000, "{made}");
    });
}

const NO_SPACE: &[&str] = &["os error 28"];

#[test]
fn a_full_dev_shm() {
    alone("a_full_dev_shm", |()| {
        if !own_dev_shm(Some(2 << 20)) {
            println!("skipped: no file system can be mounted here");
            return;
        }
        let queue = Queue::<Vec<u8>>::builder().create("full").unwrap();
        let message = vec![1; 50_000];
        let mut put = 0;
        while outcome(NO_SPACE, "put", queue.put(&message)).is_some() {
            put += 1;
            assert!(put < 100);
        }
        assert!(put > 10, "{put}");
        assert!(outcome(NO_SPACE, "memory", SharedMemory::create("too-large", 1 << 20)).is_none());
        assert!(SharedMemory::open("too-large").is_err());
        // Without a name it is other memory.
        let other = Queue::<Vec<u8>>::unbounded().unwrap();
        (0..100).for_each(|_| other.put(&message).unwrap());
        let mut more = Vec::new();
        while let Some(queue) =
            outcome(NO_SPACE, "create", Queue::<u8>::builder().create(&format!("more-{}", more.len())))
        {
            more.push(queue);
            assert!(more.len() < 100);
        }
        for _ in 0..put {
            assert_eq!(queue.get().unwrap(), message);
        }
        drop(more);
        for _ in 0..put {
            queue.put(&message).unwrap();
            assert_eq!(queue.get().unwrap(), message);
        }
        drop(queue);
        assert_eq!(std::fs::read_dir("/dev/shm").unwrap().count(), 0);
        SharedMemory::create("now", 1 << 20).unwrap().unlink().unwrap();
    });
}

#[test]
fn in_a_group_with_a_limit_of_memory() {
    let _watchdog = watchdog();
    let group = match Group::new(64 << 20) {
        Ok(group) => group,
        Err(reason) => {
            println!("skipped: {reason}");
            return;
        }
    };
    let member = |tasks: std::path::PathBuf| {
        std::fs::write(tasks, "0").unwrap();
        let queue = Queue::<Vec<u8>>::unbounded().unwrap();
        let message = vec![1; 1 << 20];
        let mut put = 0;
        let error = loop {
            match queue.put(&message) {
                Ok(()) => put += 1,
                Err(error) => break error,
            }
            assert!(put < 64);
        };
        assert!(matches!(error, PutError::Memory(_)), "{error}");
        for _ in 0..put {
            assert_eq!(queue.get().unwrap().len(), message.len());
        }
        queue.put(&message).unwrap();
        start(StartMethod::Spawn).unwrap();
        put
    };
    let member = Process::spawn(member, group.members()).unwrap();
    let put = member.join().unwrap_or_else(|error| panic!("{error}"));
    // Half of the group's memory.
    assert!((20..=32).contains(&put), "{put} messages of a MiB");
    assert!(process_state(member.pid()).is_none());
}
