//! Managers and their clients when processes are killed, stopped and forked.

use std::time::Duration;

use procession::manager::{CallError, Dict, List, Manager, Proxy, Service};
use procession::process;
use procession::{Process, Queue, StartMethod};
use rustix::process::{Pid, Signal, kill_process};
use test_support::{Resources, eventually, has_ended, process_state, stderr_silenced, watchdog};

/// An object that can be slow.
struct Sleeper;

impl Service for Sleeper {
    const NAME: &'static str = "sleeper";
    type Arguments = ();
    /// Milliseconds.
    type Request = u64;
    type Response = u64;

    fn create((): ()) -> Self {
        Sleeper
    }

    fn handle(&mut self, milliseconds: u64) -> u64 {
        std::thread::sleep(Duration::from_millis(milliseconds));
        milliseconds
    }
}

fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.try_into().unwrap()).unwrap(), signal).unwrap();
}

fn is_gone(pid: u32) -> bool {
    has_ended(pid)
}

/// How many descriptors and threads another process has.
fn extent(pid: u32) -> (usize, usize) {
    let count = |what: &str| std::fs::read_dir(format!("/proc/{pid}/{what}")).unwrap().count();
    (count("fd"), count("task"))
}

type Shared = (Dict<u32, Vec<u8>>, List<Vec<u8>>, Proxy<Sleeper>, Reach);
/// How to get at a manager: its address and key.
type Reach = (procession::connection::Address, Vec<u8>);

fn connect((address, key): &Reach) -> Manager {
    Manager::connect(address, key.as_slice()).unwrap()
}

fn reach(manager: &Manager) -> Reach {
    (manager.address().clone(), manager.authkey().as_bytes().to_vec())
}

/// Makes calls until it is killed.
fn busy((dict, list, sleeper, reach): Shared) {
    stderr_silenced();
    let manager = connect(&reach);
    let mut random = fastrand::Rng::with_seed(u64::from(process::getpid()));
    let mut mine: Vec<List<List<u32>>> = Vec::new();
    for key in 0.. {
        let large = vec![1; if random.u8(..) < 30 { 300_000 } else { 10 }];
        match random.u8(..10) {
            0 => dict.set(&(key % 10), &large).unwrap(),
            1 => drop(dict.update(&(key % 10), |old| old.unwrap_or_default())),
            2 => drop(dict.items()),
            3 => list.push(&large).unwrap(),
            4 => drop(list.pop()),
            5 => drop(list.to_vec()),
            6 => drop(sleeper.call(&1)),
            7 => drop(sleeper.call_timeout(&2, Duration::from_millis(1))),
            8 => {
                let (outer, inner) = (manager.list().unwrap(), manager.list().unwrap());
                outer.push(&inner).unwrap();
                mine.push(outer);
            }
            _ => drop(mine.pop()),
        }
    }
}

#[test]
fn clients_killed_in_their_calls_hurt_nobody() {
    let _watchdog = watchdog();
    let manager = Manager::builder().register::<Sleeper>().start().unwrap();
    let shared: Shared = (
        manager.dict().unwrap(),
        manager.list().unwrap(),
        manager.create::<Sleeper>(&()).unwrap(),
        reach(&manager),
    );
    let before = extent(manager.pid().unwrap());
    let mut random = fastrand::Rng::with_seed(7);
    for round in 0..60 {
        let clients: Vec<_> = (0..2)
            .map(|_| Process::builder(busy, shared.clone()).start_method(StartMethod::ForkServer).start())
            .collect::<Result<_, _>>()
            .unwrap();
        std::thread::sleep(Duration::from_millis(random.u64(..40)));
        for client in &clients {
            client.kill().unwrap();
        }
        // A key that no client uses.
        let key = 1000 + round;
        shared.0.set(&key, &vec![round as u8]).unwrap();
        assert_eq!(shared.0.get(&key).unwrap(), Some(vec![round as u8]));
        shared.1.push(&vec![2]).unwrap();
        shared.1.clear().unwrap();
        assert_eq!(shared.2.call(&0).unwrap(), 0);
        for client in clients {
            assert!(client.join().is_err());
        }
    }
    // What a client had sent to another is kept for an hour; these have sent nothing.
    eventually("their objects are gone", || manager.objects().unwrap() == 3);
    eventually("their connections are gone", || {
        let (descriptors, threads) = extent(manager.pid().unwrap());
        descriptors <= before.0 && threads <= before.1
    });
}

#[test]
fn a_killed_manager_is_an_error_for_all_who_wait() {
    let _watchdog = watchdog();
    fn wait((sleeper, waiting): (Proxy<Sleeper>, Queue<u32>)) -> String {
        waiting.put(&process::getpid()).unwrap();
        sleeper.call(&600_000).unwrap_err().to_string()
    }
    let manager = Manager::builder().register::<Sleeper>().start().unwrap();
    let pid = manager.pid().unwrap();
    let waiting = Queue::unbounded().unwrap();
    let (dict, list) = (manager.dict::<u8, u8>().unwrap(), manager.list::<u8>().unwrap());
    let sleepers: Vec<_> = (0..4).map(|_| manager.create::<Sleeper>(&()).unwrap()).collect();
    let processes: Vec<_> = sleepers
        .iter()
        .map(|sleeper| Process::spawn(wait, (sleeper.clone(), waiting.clone())).unwrap())
        .collect();
    let threads: Vec<_> = sleepers
        .iter()
        .map(|sleeper| {
            let (sleeper, waiting) = (sleeper.clone(), waiting.clone());
            std::thread::spawn(move || wait((sleeper, waiting)))
        })
        .collect();
    for _ in 0..8 {
        waiting.get().unwrap();
    }
    std::thread::sleep(Duration::from_millis(50));
    signal(pid, Signal::KILL);
    let errors = threads.into_iter().map(|thread| thread.join().unwrap());
    let errors: Vec<_> = errors.chain(processes.iter().map(|process| process.join().unwrap())).collect();
    for error in errors {
        assert!(error.contains(&format!("(pid {pid}) has ended")), "{error}");
    }
    for error in [
        dict.get(&1).unwrap_err(),
        list.push(&1).unwrap_err(),
        manager.dict::<u8, u8>().unwrap_err(),
        manager.objects().unwrap_err(),
    ] {
        assert!(matches!(&error, CallError::ManagerDied { pid: Some(_), .. }), "{error}");
    }
    // A handle of it cannot be put, which says why.
    let queue = Queue::<Dict<u8, u8>>::unbounded().unwrap();
    let error = queue.put(&dict).unwrap_err();
    assert!(error.to_string().contains("has ended"), "{error}");
    assert!(queue.is_empty());
}

#[test]
fn a_manager_killed_at_any_time_is_an_error() {
    let _watchdog = watchdog();
    let mut random = fastrand::Rng::with_seed(3);
    for _ in 0..20 {
        let manager = Manager::builder().register::<Sleeper>().start().unwrap();
        let pid = manager.pid().unwrap();
        let (dict, list) = (manager.dict::<u32, Vec<u8>>().unwrap(), manager.list::<u32>().unwrap());
        let killer = std::thread::spawn({
            let pause = Duration::from_micros(random.u64(..20_000));
            move || {
                std::thread::sleep(pause);
                signal(pid, Signal::KILL);
            }
        });
        let error = (0..)
            .find_map(|n| {
                let large = vec![0; if n % 5 == 0 { 1_000_000 } else { 10 }];
                let made = manager.list::<u32>();
                let calls = || {
                    made?.push(&n)?;
                    dict.set(&(n % 3), &large)?;
                    dict.items()?;
                    list.push(&n)
                };
                calls().err()
            })
            .unwrap();
        assert!(matches!(&error, CallError::ManagerDied { pid: Some(_), .. }), "{error}");
        killer.join().unwrap();
        assert!(matches!(dict.len(), Err(CallError::ManagerDied { .. })));
        drop((dict, list));
        drop(manager);
    }
}

#[test]
fn a_manager_ends_with_who_started_it() {
    let _watchdog = watchdog();
    fn start((pids, way): (Queue<u32>, u32)) {
        stderr_silenced();
        let manager = Manager::new().unwrap();
        let list = manager.list::<u32>().unwrap();
        list.push(&1).unwrap();
        pids.put(&manager.pid().unwrap()).unwrap();
        match way {
            0 => loop {
                std::thread::sleep(Duration::from_secs(1));
            },
            1 => panic!("on purpose"),
            2 => process::exit(0),
            3 => manager.shutdown().unwrap(),
            4 => std::mem::forget(manager),
            5 => {
                // A stopped one is killed. With nobody connected to it.
                let unused = Manager::new().unwrap();
                signal(unused.pid().unwrap(), Signal::STOP);
                drop((unused, list, manager));
            }
            _ => {
                // A stopped one is killed.
                signal(manager.pid().unwrap(), Signal::STOP);
            }
        }
    }
    let pids = Queue::unbounded().unwrap();
    for way in 0..7 {
        let process = Process::spawn(start, (pids.clone(), way)).unwrap();
        let pid = pids.get().unwrap();
        if way == 0 {
            process.kill().unwrap();
        }
        assert_eq!(process.join().is_ok(), (3..).contains(&way), "{way}");
        eventually("the manager is gone", || is_gone(pid));
    }
}

#[test]
fn a_dropped_manager_leaves_nothing() {
    let _watchdog = watchdog();
    let round = || {
        let manager = Manager::new().unwrap();
        let (dict, list) = (manager.dict::<u32, List<u32>>().unwrap(), manager.list().unwrap());
        dict.set(&1, &list).unwrap();
        let pid = manager.pid().unwrap();
        manager.shutdown().unwrap();
        assert!(is_gone(pid));
        assert!(matches!(list.len(), Err(CallError::ManagerDied { .. })));
    };
    round();
    let before = Resources::now();
    for _ in 0..10 {
        round();
    }
    eventually("all is given back", || Resources::now().is_back(before, 1, 8192));
}

#[test]
fn a_stopped_client_hurts_nobody() {
    let _watchdog = watchdog();
    let manager = Manager::builder().register::<Sleeper>().start().unwrap();
    let shared: Shared = (
        manager.dict().unwrap(),
        manager.list().unwrap(),
        manager.create::<Sleeper>(&()).unwrap(),
        reach(&manager),
    );
    let mut random = fastrand::Rng::with_seed(9);
    for _ in 0..10 {
        let client = Process::builder(busy, shared.clone()).daemon(true).start().unwrap();
        std::thread::sleep(Duration::from_millis(random.u64(..100)));
        signal(client.pid(), Signal::STOP);
        eventually("it is stopped", || process_state(client.pid()).is_none_or(|(state, _)| state == 'T'));
        for n in 0..20 {
            shared.0.set(&n, &vec![0; 1000]).unwrap();
            shared.1.push(&vec![1]).unwrap();
            shared.2.call(&0).unwrap();
        }
        shared.1.clear().unwrap();
        client.kill().unwrap();
        assert!(client.join().is_err());
    }
    eventually("their objects are gone", || manager.objects().unwrap() == 3);
}

#[test]
fn what_a_dead_process_returned_can_be_opened() {
    let _watchdog = watchdog();
    fn make(reach: Reach) -> List<u32> {
        let list = connect(&reach).list().unwrap();
        list.push(&1).unwrap();
        list
    }
    let manager = Manager::new().unwrap();
    let process = Process::spawn(make, reach(&manager)).unwrap();
    assert!(procession::connection::wait(&[&process], None).is_ok());
    let list = process.join().unwrap();
    assert_eq!(list.to_vec().unwrap(), [1]);
    drop(list);
    eventually("it is gone", || manager.objects().unwrap() == 0);
}

#[test]
fn two_hundred_clients() {
    let _watchdog = watchdog();
    fn client((reach, dict, over): (Reach, Dict<u32, u32>, procession::Event)) {
        let manager = connect(&reach);
        let list = manager.named_list("all").unwrap();
        list.push(&process::getpid()).unwrap();
        dict.update(&0, |n| n.unwrap_or(0) + 1).unwrap();
        // All of them are connected at once.
        over.wait(None);
    }
    let manager = Manager::new().unwrap();
    let (dict, over) = (manager.dict().unwrap(), manager.event().unwrap());
    let clients: Vec<_> = (0..200)
        .map(|_| {
            let client = Process::builder(client, (reach(&manager), dict.clone(), over.clone()));
            client.start_method(StartMethod::ForkServer).start().unwrap()
        })
        .collect();
    eventually("all have come, or one has failed", || {
        dict.get(&0).unwrap() == Some(200) || !clients.iter().all(Process::is_alive)
    });
    over.set();
    for client in clients {
        client.join().unwrap();
    }
    assert_eq!(dict.get(&0).unwrap(), Some(200));
}

#[test]
fn a_slow_handler_is_late_for_who_waits_and_nobody_else() {
    let _watchdog = watchdog();
    let manager = Manager::builder().register::<Sleeper>().start().unwrap();
    let (slow, other) = (manager.create::<Sleeper>(&()).unwrap(), manager.create::<Sleeper>(&()).unwrap());
    let error = slow.call_timeout(&300_000, Duration::from_millis(20)).unwrap_err();
    assert!(matches!(&error, CallError::TimedOut { .. }), "{error}");
    assert_eq!(other.call(&1).unwrap(), 1);
    // Its next caller waits for it.
    assert!(matches!(slow.call_timeout(&0, Duration::from_millis(20)), Err(CallError::TimedOut { .. })));
    assert!(format!("{slow:?}").contains("the service"), "{slow:?}");
    drop((slow, other));
    assert!(manager.list::<u8>().unwrap().is_empty().unwrap());
}

/// Makes lists, after a while.
struct Slow;

impl Service for Slow {
    const NAME: &'static str = "slow";
    type Arguments = ();
    /// How to get at the manager, and after how many milliseconds.
    type Request = (Reach, u64);
    type Response = List<u32>;

    fn create((): ()) -> Self {
        Slow
    }

    fn handle(&mut self, (reach, milliseconds): (Reach, u64)) -> List<u32> {
        std::thread::sleep(Duration::from_millis(milliseconds));
        connect(&reach).list().unwrap()
    }
}

#[test]
fn what_comes_with_an_answer_that_nobody_awaits_is_taken_back() {
    let _watchdog = watchdog();
    let manager = Manager::builder().register::<Slow>().start().unwrap();
    let slow = manager.create::<Slow>(&()).unwrap();
    let late = slow.call_timeout(&(reach(&manager), 100), Duration::from_millis(10));
    assert!(matches!(late, Err(CallError::TimedOut { .. })));
    // Handled after the late one.
    let list = slow.call(&(reach(&manager), 0)).unwrap();
    list.push(&1).unwrap();
    eventually("the late one is gone", || manager.objects().unwrap() == 2);
    drop(list);
    eventually("both are gone", || manager.objects().unwrap() == 1);
}

#[test]
fn proxies_are_for_all_threads() {
    fn is_for_all_threads<T: Send + Sync + Clone + serde::Serialize>(_: &T) {}
    let manager = Manager::builder().register::<Sleeper>().start().unwrap();
    is_for_all_threads(&manager.dict::<u8, std::cell::Cell<u8>>().unwrap());
    is_for_all_threads(&manager.list::<std::cell::Cell<u8>>().unwrap());
    is_for_all_threads(&manager.namespace().unwrap());
    is_for_all_threads(&manager.create::<Sleeper>(&()).unwrap());
}

#[test]
fn what_a_busy_manager_could_not_be_told_it_is_told_later() {
    let _watchdog = watchdog();
    let manager = Manager::new().unwrap();
    let pid = manager.pid().unwrap();
    let lists: Vec<_> = (0..2000).map(|_| manager.list::<u8>().unwrap()).collect();
    signal(pid, Signal::STOP);
    eventually("it is stopped", || process_state(pid).is_none_or(|(state, _)| state == 'T'));
    // Does not wait for it, one message each.
    lists.into_iter().for_each(drop);
    signal(pid, Signal::CONT);
    eventually("all are gone", || manager.objects().unwrap() == 0);
}
