//! Whole trees of processes that are killed in the middle of work, and that nothing is left of them.
//!
//! A supervisor starts trees one after another. It is the subreaper of all of them, so that whoever loses its parent
//! becomes its child and can be found. `PROCESSION_TREES` is how many trees there are, `PROCESSION_SEED` repeats a run.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use procession::connection::{Address, Client, Listener};
use procession::shared::SharedMemoryError;
use procession::{
    Array, Barrier, Condition, Event, JoinableQueue, Lock, Pipe, Process, Queue, RLock, Receiver, Semaphore,
    SharedMemory, SimpleQueue, StartMethod, Value, process,
};
use serde::{Deserialize, Serialize};
use test_support::{AmongThreads, descendants, eventually, memfds, own_dev_shm, processes, stderr_silenced};

/// What all members of a tree have.
#[derive(Clone, Serialize, Deserialize)]
struct Tree {
    messages: Queue<Vec<u8>>,
    few: Queue<Vec<u8>>,
    tasks: JoinableQueue<Vec<u8>>,
    simple: SimpleQueue<u64>,
    handles: Queue<(Lock, Queue<u8>)>,
    ends: Queue<Receiver<u8>>,
    lock: Lock,
    rlock: RLock,
    semaphore: Semaphore,
    condition: Condition,
    event: Event,
    barrier: Barrier,
    value: Value<u64>,
    array: Array<u32>,
    settings: Settings,
}

#[derive(Clone, Serialize, Deserialize)]
struct Settings {
    /// What its names begin with.
    prefix: String,
    directory: PathBuf,
    /// Where a member notes that it has begun.
    log: PathBuf,
    /// Whether all members end with the root.
    all_daemons: bool,
    /// Where an orphan notes its pid.
    orphan: PathBuf,
}

const A_MOMENT: Duration = Duration::from_millis(2);

fn root(settings: Settings) {
    stderr_silenced();
    let tree = Tree {
        messages: Queue::unbounded().unwrap(),
        few: Queue::bounded(3).unwrap(),
        tasks: JoinableQueue::unbounded().unwrap(),
        simple: SimpleQueue::new().unwrap(),
        handles: Queue::bounded(50).unwrap(),
        ends: Queue::bounded(50).unwrap(),
        lock: Lock::new().unwrap(),
        rlock: RLock::new().unwrap(),
        semaphore: Semaphore::robust(2).unwrap(),
        condition: Condition::new().unwrap(),
        event: Event::new().unwrap(),
        barrier: Barrier::new(2).unwrap(),
        value: Value::new(0).unwrap(),
        array: Array::new(100_000).unwrap(),
        settings,
    };
    if !tree.settings.all_daemons {
        let orphan = |path: PathBuf| {
            fs::write(&path, format!("{} ", process::getpid())).unwrap();
            std::thread::sleep(Duration::from_secs(300));
        };
        process::detach(orphan, tree.settings.orphan.clone()).unwrap();
    }
    member((tree, 0));
}

/// Starts members below it, then works until it is killed.
fn member((tree, depth): (Tree, u32)) {
    use std::io::Write;
    stderr_silenced();
    let mut log = fs::OpenOptions::new().append(true).open(&tree.settings.log).unwrap();
    let (parent, daemon) = (process::parent().unwrap().pid(), u32::from(process::current().is_daemon()));
    log.write_all(format!("{} {parent} {daemon}\n", process::getpid()).as_bytes()).unwrap();
    drop(log);
    let mut random = fastrand::Rng::with_seed(u64::from(process::getpid()));
    let methods: &[StartMethod] = match depth {
        0 => &StartMethod::ALL,
        1 => &[*random.choice(&StartMethod::ALL).unwrap()],
        _ => &[],
    };
    let mut children = Vec::new();
    for (n, method) in methods.iter().enumerate() {
        let child = Process::builder(member, (tree.clone(), depth + 1)).start_method(*method).among_threads();
        // What cannot be started because a fork server was just killed is not this test's concern.
        children.extend(child.daemon(tree.settings.all_daemons || n % 2 == 0).start());
    }
    // At the address that the user has chosen, there can be one.
    let _chosen = Listener::bind(Address::unix(tree.settings.directory.join("chosen")));
    let name = format!("{}-{}", tree.settings.prefix, process::getpid());
    let _named = Queue::<u8>::builder().create(&name).unwrap();
    let _memory = SharedMemory::create(&name, 10_000).unwrap();
    loop {
        step(&tree, &mut random);
    }
}

/// A piece of work. That others are killed meanwhile makes some of it fail, which is meant.
fn step(tree: &Tree, random: &mut fastrand::Rng) {
    let large = random.u8(..) < 20;
    let message = || vec![7; if large { 300_000 } else { 100 }];
    match random.u32(..18) {
        0 if tree.messages.len() < 100 => tree.messages.put(&message()).unwrap(),
        0 | 1 => drop(tree.messages.try_get()),
        2 => drop(tree.few.put_timeout(&message(), A_MOMENT)),
        3 => drop(tree.few.get_timeout(A_MOMENT)),
        4 if tree.tasks.len() < 100 => tree.tasks.put(&message()).unwrap(),
        4 | 5 => drop(tree.tasks.try_get().map(|task| task.done())),
        6 if tree.simple.is_empty() => tree.simple.put(&1).unwrap(),
        6 => drop(tree.messages.get_bytes_timeout(A_MOMENT)),
        7 => drop(tree.lock.lock_timeout(A_MOMENT)),
        8 => drop(tree.rlock.lock_timeout(A_MOMENT)),
        9 => drop(tree.semaphore.enter_timeout(A_MOMENT)),
        10 => {
            if let Ok(_guard) = tree.condition.lock() {
                let _ = tree.condition.notify_all();
                let _ = tree.condition.wait(A_MOMENT);
            }
        }
        11 => {
            if tree.barrier.wait(A_MOMENT).is_err() {
                tree.barrier.reset();
            }
            tree.event.set();
            tree.event.clear();
        }
        12 => {
            let _ = tree.value.update(|value| *value += 1);
            let _ = tree.array.update(|all| all.fill(random.u32(..)));
        }
        13 => {
            let _ = tree.handles.try_put(&(Lock::new().unwrap(), Queue::unbounded().unwrap()));
            drop(tree.handles.try_get());
        }
        14 => {
            let (receiver, _sender) = Pipe::one_way().unwrap();
            let _ = tree.ends.try_put(&receiver);
            drop(tree.ends.try_get());
        }
        15 => {
            let path = tree.settings.directory.join(format!("listener-{}", process::getpid()));
            for address in [None, Some(Address::unix(path))] {
                let builder = Listener::builder().authkey(b"key");
                let builder = address.into_iter().fold(builder, |builder, address| builder.address(address));
                let mut listener = builder.bind().unwrap();
                let address = listener.address().clone();
                let work = |address: Address| {
                    let _ = Client::connect::<u8, u8>(&address, Some(&b"key".into()));
                };
                let client =
                    Process::builder(work, address).daemon(true).start_method(StartMethod::ForkServer);
                if let Ok(_client) = client.start() {
                    let _ = listener.accept_timeout::<u8, u8>(Duration::from_millis(50));
                }
            }
        }
        16 => {
            let method = *random.choice(&StartMethod::ALL).unwrap();
            let child = Process::builder(|value: Value<u64>| value.get().is_ok(), tree.value.clone());
            let child = child.start_method(method).daemon(true).among_threads();
            if let Ok(child) = child.start() {
                drop(child.join_timeout(A_MOMENT));
            }
        }
        _ => {
            let name = format!("{}-{}-more", tree.settings.prefix, process::getpid());
            let queue = Queue::<u8>::builder().create(&name).unwrap();
            queue.put(&1).unwrap();
            let memory = SharedMemory::create(&name, 100).unwrap();
            memory.unlink().unwrap();
        }
    }
}

fn kill(pid: u32) {
    // SAFETY: a signal to what was found below this process a moment ago.
    unsafe { libc::kill(pid.cast_signed(), libc::SIGKILL) };
}

/// Collects whoever has ended and belongs to nobody else.
fn reap() {
    // SAFETY: no pointer but null, which stands for no status.
    while unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } > 0 {}
}

/// Waits until it is true, for long: a killed tree may have been amid a start.
fn soon(what: &str, mut is_true: impl FnMut() -> bool) {
    let since = Instant::now();
    eventually(what, || {
        reap();
        is_true()
    });
    let took = since.elapsed();
    LONGEST.fetch_max(took.as_millis() as u64, std::sync::atomic::Ordering::Relaxed);
}

/// The longest wait for something to be gone, in ms.
static LONGEST: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

fn names_in(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

struct Figures {
    trees: u32,
    processes: usize,
    memfds: usize,
    stale_names: usize,
    socket_files: usize,
}

fn supervise((trees, seed, directory): (u32, u64, PathBuf)) {
    let me = process::getpid();
    let alone = own_dev_shm(None);
    println!("/dev/shm is {}", if alone { "this test's own" } else { "shared with other programs" });
    // SAFETY: plain numbers; this process has one thread, so nobody reads the environment meanwhile.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), 0);
        std::env::set_var("TMPDIR", directory.join("tmp"));
    }
    let mut random = fastrand::Rng::with_seed(seed);
    let mut figures = Figures { trees, processes: 0, memfds: 0, stale_names: 0, socket_files: 0 };
    for number in 0..trees {
        let settings = Settings {
            prefix: format!("killed-trees-{me}-{number}"),
            directory: directory.join("tmp"),
            log: directory.join("log"),
            all_daemons: number % 3 == 0,
            orphan: directory.join("orphan"),
        };
        fs::create_dir(&settings.directory).unwrap();
        fs::write(&settings.log, "").unwrap();
        fs::write(&settings.orphan, "").unwrap();
        let root = Process::spawn(root, settings.clone()).unwrap();
        // Some while they start, most while they work.
        std::thread::sleep(Duration::from_millis(random.u64(..60)));
        if number % 8 != 7 {
            let members = 1 + random.u64(..7);
            eventually("members have begun", || notes(&settings.log).len() >= members as usize);
            std::thread::sleep(Duration::from_millis(random.u64(..150)));
        }
        let mut used = BTreeSet::new();
        let mut count = || {
            let members = descendants(me);
            used.extend(members.keys().flat_map(|pid| memfds(*pid)));
            members
        };
        figures.processes += count().len();
        match number % 3 {
            // All of them end by themselves when the root is gone: daemons, and fork servers.
            0 => kill(root.pid()),
            // Members at random, fork servers too. The rest goes on, and no zombie is left to stay one.
            1 => {
                for _ in 0..4 {
                    let members = count();
                    let members: Vec<_> = members.keys().filter(|pid| **pid != root.pid()).collect();
                    if let Some(pid) = random.choice(members) {
                        kill(*pid);
                    }
                    std::thread::sleep(Duration::from_millis(random.u64(..40)));
                }
                let zombies = || {
                    descendants(me).into_iter().filter(|(_, entry)| entry.state == 'Z').map(|(pid, _)| pid)
                };
                // New ones come and go; none stays.
                let old: BTreeSet<u32> = zombies().collect();
                soon("its parent has collected each zombie", || !zombies().any(|pid| old.contains(&pid)));
            }
            // All of them, one after another, as they are found.
            _ => {}
        }
        if !settings.all_daemons {
            if number % 3 == 2 {
                kill(root.pid());
                soon("daemons whose parent is dead are gone", || {
                    let alive = descendants(me);
                    let alive = |pid| alive.get(&pid).is_some_and(|entry| entry.state != 'Z');
                    notes(&settings.log)
                        .iter()
                        .all(|note| !note.daemon || alive(note.parent) || !alive(note.pid))
                });
                // Meant to live, for nobody is its parent.
                let orphan = fs::read_to_string(&settings.orphan).unwrap();
                if let Ok(orphan) = orphan.trim().parse() {
                    assert!(descendants(me).get(&orphan).is_some_and(|entry| entry.state != 'Z'), "{orphan}");
                }
            }
            soon("all members are dead", || {
                let members = descendants(me);
                members.keys().for_each(|pid| kill(*pid));
                members.is_empty()
            });
        }
        soon("nobody is left of the tree", || descendants(me).is_empty());
        root.join().unwrap_err();
        figures.memfds += used.len();
        check_nothing_left(&settings, alone, &used, &mut figures);
        fs::remove_dir(&settings.directory).unwrap();
    }
    let Figures { trees, processes, memfds, stale_names, socket_files } = figures;
    println!(
        "{trees} trees (seed {seed}), {processes} processes and {memfds} memfds when they were killed; left and taken over: \
         {stale_names} names, {socket_files} socket files; longest wait for something to go: {} ms",
        LONGEST.load(std::sync::atomic::Ordering::Relaxed)
    );
}

/// What a member has noted.
struct Note {
    pid: u32,
    parent: u32,
    daemon: bool,
}

fn notes(log: &Path) -> Vec<Note> {
    let text = fs::read_to_string(log).unwrap();
    let note = |line: &str| {
        let mut numbers = line.split(' ').map(|number| number.parse::<u32>().unwrap());
        let mut next = || numbers.next().unwrap();
        Note { pid: next(), parent: next(), daemon: next() == 1 }
    };
    text.lines().map(note).collect()
}

fn check_nothing_left(settings: &Settings, alone: bool, used: &BTreeSet<u64>, figures: &mut Figures) {
    for pid in processes().keys() {
        let kept = memfds(*pid);
        assert!(kept.is_disjoint(used), "process {pid} has memory of the tree: {kept:?}");
    }
    // Sockets with names that somebody has chosen, and nothing else.
    for name in names_in(&settings.directory) {
        let path = settings.directory.join(&name);
        assert!(fs::symlink_metadata(&path).unwrap().file_type().is_socket(), "{name} is left");
        figures.socket_files += 1;
        drop(Listener::bind(Address::unix(&path)).unwrap());
    }
    assert_eq!(names_in(&settings.directory), BTreeSet::new());
    // Named objects, which the next user of the name recognises as nobody's.
    let shm = Path::new("/dev/shm");
    for file in names_in(shm) {
        if let Some(name) = file.strip_prefix("procession.").filter(|name| name.starts_with(&settings.prefix))
        {
            figures.stale_names += 1;
            if figures.stale_names.is_multiple_of(2) {
                assert!(Queue::<u8>::open(name).is_err());
            } else {
                let queue = Queue::<u8>::builder().create(name).unwrap();
                assert!(queue.is_empty());
            }
            assert!(!shm.join(&file).exists(), "{file}");
        } else if file.starts_with(&settings.prefix) {
            figures.stale_names += 1;
            // As Python has it: it stays until it is unlinked.
            assert!(matches!(SharedMemory::create(&file, 1), Err(SharedMemoryError::Taken { .. })));
            SharedMemory::open(&file).unwrap().unlink().unwrap();
        }
    }
    let left = names_in(shm);
    assert!(!left.iter().any(|name| name.contains(&settings.prefix)), "{left:?}");
    assert!(!alone || left.is_empty(), "{left:?}");
}

/// A number from the environment.
fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name} is no number")))
}

#[test]
fn nothing_is_left_of_killed_trees() {
    let (trees, seed) = (setting("PROCESSION_TREES", 60), setting("PROCESSION_SEED", fastrand::u64(..)));
    let directory = std::env::temp_dir().join(format!("procession-killed-trees-{}", std::process::id()));
    fs::create_dir(&directory).unwrap();
    println!("seed {seed}");
    let supervisor = Process::spawn(supervise, (trees as u32, seed, directory.clone())).unwrap();
    let ended = supervisor.join_timeout(Duration::from_secs(120 + 20 * trees));
    let _ = fs::remove_dir_all(&directory);
    match ended {
        Ok(Some(())) => {}
        Ok(None) => panic!("watchdog: the supervisor (pid {}) hangs", supervisor.pid()),
        Err(error) => panic!("seed {seed}: {error}"),
    }
}
