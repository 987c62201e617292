//! How managers, and objects of registered types, end; and what was asked of them just before.

use std::time::Duration;

use procession::connection::{Address, ConnectError};
use procession::manager::{CallError, List, Manager, ManagerError, Proxy, Service};
use procession::process::{self, Fork};
use procession::queue::GetError;
use procession::{Process, Queue};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use test_support::{eventually, fork_among_threads, has_ended, process_state, watchdog};

fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.try_into().unwrap()).unwrap(), signal).unwrap();
}

/// An object that tells of its end, and does what else the tests need.
struct Teller {
    ends: Queue<u32>,
    /// How long its end takes.
    milliseconds: u64,
}

#[derive(Serialize, Deserialize)]
enum Request {
    Sleep(u64),
    /// Forks a process that sleeps, by this library or the system's own call; its pid.
    Fork {
        by_hand: bool,
    },
    /// Reports the length of a list.
    Look(List<u32>),
}

impl Service for Teller {
    const NAME: &'static str = "teller";
    type Arguments = (Queue<u32>, u64);
    type Request = Request;
    type Response = u32;

    fn create((ends, milliseconds): (Queue<u32>, u64)) -> Self {
        Teller { ends, milliseconds }
    }

    fn handle(&mut self, request: Request) -> u32 {
        match request {
            Request::Sleep(milliseconds) => std::thread::sleep(Duration::from_millis(milliseconds)),
            Request::Look(list) => self.ends.put(&(list.len().unwrap() as u32)).unwrap(),
            Request::Fork { by_hand: true } => {
                // SAFETY: the child only sleeps.
                return match unsafe { libc::fork() } {
                    0 => sleep_long(),
                    pid => pid as u32,
                };
            }
            Request::Fork { by_hand: false } => {
                return match fork_among_threads().unwrap() {
                    Fork::Child => sleep_long(),
                    Fork::Parent(child) => child.pid(),
                };
            }
        }
        0
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        std::thread::sleep(Duration::from_millis(self.milliseconds));
        self.ends.put(&1000).unwrap();
    }
}

/// Not for ever, lest a test that fails leaves it.
fn sleep_long() -> ! {
    std::thread::sleep(Duration::from_secs(100));
    // SAFETY: ends the process without running what belongs to its parent.
    unsafe { libc::_exit(0) }
}

/// A process that ends with this.
struct Killed(u32);

impl Drop for Killed {
    fn drop(&mut self) {
        signal(self.0, Signal::KILL);
    }
}

fn telling() -> (Manager, Queue<u32>) {
    (Manager::builder().register::<Teller>().start().unwrap(), Queue::unbounded().unwrap())
}

#[test]
fn objects_of_registered_types_are_dropped_when_their_manager_is_shut_down() {
    let _watchdog = watchdog();
    for way in 0..3 {
        let (manager, ends) = telling();
        let nested = manager.list().unwrap();
        for _ in 0..3 {
            nested.push(&manager.create::<Teller>(&(ends.clone(), 0)).unwrap()).unwrap();
        }
        let _named = manager.named::<Teller>("a", &(ends.clone(), 0)).unwrap();
        match way {
            0 => manager.shutdown().unwrap(),
            1 => drop(manager),
            _ => {
                let key = manager.authkey().clone();
                Manager::connect(manager.address(), key).unwrap().shutdown().unwrap();
                eventually("it has ended", || {
                    matches!(manager.objects(), Err(CallError::ManagerDied { .. }))
                });
            }
        }
        for _ in 0..4 {
            assert_eq!(ends.try_get().unwrap(), 1000);
        }
        assert!(matches!(ends.try_get(), Err(GetError::Empty)));
    }
}

#[test]
fn a_manager_ends_without_objects_that_take_long() {
    let _watchdog = watchdog();
    let (manager, ends) = telling();
    let busy = manager.create::<Teller>(&(ends.clone(), 0)).unwrap();
    let late = busy.call_timeout(&Request::Sleep(600_000), Duration::from_millis(20));
    assert!(matches!(late, Err(CallError::TimedOut { .. })));
    let quick = manager.create::<Teller>(&(ends.clone(), 0)).unwrap();
    let slow = manager.create::<Teller>(&(ends.clone(), 600_000)).unwrap();
    let waiting = std::thread::spawn(move || busy.call(&Request::Sleep(0)));
    manager.shutdown().unwrap();
    assert_eq!(ends.try_get().unwrap(), 1000);
    assert!(matches!(ends.try_get(), Err(GetError::Empty)));
    for error in [waiting.join().unwrap().unwrap_err(), slow.call(&Request::Sleep(0)).unwrap_err()] {
        assert!(matches!(error, CallError::ManagerDied { .. }), "{error}");
    }
    drop(quick);
}

#[test]
fn a_dead_manager_is_known_though_a_process_that_it_forked_has_its_sockets() {
    let _watchdog = watchdog();
    for address in [None, Some(Address::tcp("localhost", 0))] {
        let mut builder = Manager::builder().register::<Teller>();
        if let Some(address) = &address {
            builder = builder.address(address.clone());
        }
        let manager = builder.start().unwrap();
        let teller = manager.create::<Teller>(&(Queue::unbounded().unwrap(), 0)).unwrap();
        let list = manager.list::<u32>().unwrap();
        let _child = Killed(teller.call(&Request::Fork { by_hand: true }).unwrap());
        let pid = manager.pid().unwrap();
        signal(pid, Signal::KILL);
        eventually("it is dead", || has_ended(pid));
        // All but one need another connection.
        let callers: Vec<_> = (0..3)
            .map(|_| {
                let list = list.clone();
                std::thread::spawn(move || list.len().unwrap_err())
            })
            .collect();
        for caller in callers {
            let error = caller.join().unwrap();
            assert!(matches!(&error, CallError::ManagerDied { .. }), "{error}");
        }
        if address.is_none() {
            // Who has never been connected knows it from the kernel.
            let error = Manager::connect(manager.address(), manager.authkey().clone()).unwrap_err();
            let refused =
                matches!(&error, ManagerError::Call(CallError::Connect(ConnectError::Refused { .. })));
            assert!(refused, "{error}");
        }
    }
}

#[test]
fn the_address_of_a_dead_manager_is_free_though_a_process_that_it_forked_lives() {
    let _watchdog = watchdog();
    let name = format!("procession test of managers {}", process::getpid()).into_bytes();
    for address in [Address::Abstract(name), Address::tcp("127.0.0.1", 0)] {
        let manager = Manager::builder().address(address).register::<Teller>().start().unwrap();
        let teller = manager.create::<Teller>(&(Queue::unbounded().unwrap(), 0)).unwrap();
        let child = Killed(teller.call(&Request::Fork { by_hand: false }).unwrap());
        signal(manager.pid().unwrap(), Signal::KILL);
        eventually("its end is known", || matches!(manager.objects(), Err(CallError::ManagerDied { .. })));
        let next = Manager::builder().address(manager.address().clone()).start().unwrap();
        assert_eq!(next.objects().unwrap(), 0);
        assert!(process_state(child.0).is_some_and(|(state, _)| state != 'Z'), "the child lives");
    }
}

#[test]
fn a_request_that_was_sent_whole_is_carried_out_though_its_client_was_killed() {
    let _watchdog = watchdog();
    type Reach = (Address, Vec<u8>);
    /// Asks a stopped manager about a list that nobody else has, and dies.
    fn client((reach, teller, ready): (Reach, Proxy<Teller>, Queue<u32>)) {
        let manager = Manager::connect(&reach.0, reach.1.as_slice()).unwrap();
        let list = manager.list().unwrap();
        list.extend(&[7; 7]).unwrap();
        teller.call(&Request::Sleep(0)).unwrap();
        let pid = manager.pid().unwrap();
        signal(pid, Signal::STOP);
        eventually("its threads are stopped", || {
            let mut threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
            threads.all(|thread| {
                let stat = std::fs::read_to_string(thread.unwrap().path().join("stat")).unwrap();
                stat.rsplit_once(')').unwrap().1.trim_start().starts_with('T')
            })
        });
        let late = teller.call_timeout(&Request::Look(list.clone()), Duration::from_millis(1));
        assert!(matches!(late, Err(CallError::TimedOut { .. })));
        ready.put(&0).unwrap();
        signal(process::getpid(), Signal::KILL);
    }
    let (manager, ends) = telling();
    let reach = (manager.address().clone(), manager.authkey().as_bytes().to_vec());
    let teller = manager.create::<Teller>(&(ends.clone(), 0)).unwrap();
    for _ in 0..20 {
        let ready = Queue::unbounded().unwrap();
        let process = Process::spawn(client, (reach.clone(), teller.clone(), ready.clone())).unwrap();
        ready.get().unwrap();
        assert!(process.join().is_err());
        signal(manager.pid().unwrap(), Signal::CONT);
        assert_eq!(ends.get_timeout(Duration::from_secs(20)).unwrap(), 7);
    }
    eventually("its lists are gone", || manager.objects().unwrap() == 1);
}
