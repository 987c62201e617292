//! Managers and forked processes.

use std::time::Duration;

use procession::connection::Address;
use procession::manager::{List, Manager};
use procession::process::{self, Fork};
use procession::{Process, Queue, StartMethod};
use test_support::{AmongThreads, eventually, fork_among_threads, process_state, watchdog};

/// How to get at a manager: its address and key.
type Reach = (Address, Vec<u8>);

#[test]
fn a_forked_child_has_its_parents_proxies() {
    let _watchdog = watchdog();
    let manager = Manager::new().unwrap();
    let (dict, list) = (manager.dict::<u32, u32>().unwrap(), manager.list::<u32>().unwrap());
    dict.set(&0, &0).unwrap();
    let forked: Vec<_> = (0..4)
        .map(|_| {
            let (dict, list) = (dict.clone(), list.clone());
            let child = Process::forking(move || {
                for n in 0..50 {
                    dict.update(&0, |n| n.unwrap() + 1).unwrap();
                    list.push(&n).unwrap();
                }
            });
            child.among_threads().start().unwrap()
        })
        .collect();
    for _ in 0..50 {
        dict.update(&0, |n| n.unwrap() + 1).unwrap();
    }
    for child in forked {
        child.join().unwrap();
    }
    assert_eq!(dict.get(&0).unwrap(), Some(250));
    assert_eq!(list.len().unwrap(), 200);

    // The parent drops its own before the child has used it.
    let go = procession::Event::new().unwrap();
    let dropped = manager.list::<u32>().unwrap();
    let child = {
        let (dropped, go) = (dropped.clone(), go.clone());
        Process::builder(
            |(list, go): (List<u32>, procession::Event)| {
                go.wait(None);
                list.push(&1).unwrap();
                list.len().unwrap()
            },
            (dropped, go),
        )
    };
    drop(dropped);
    let child = child.start_method(StartMethod::Fork).among_threads().start().unwrap();
    manager.list::<u32>().unwrap().push(&1).unwrap();
    assert!(manager.objects().unwrap() >= 3);
    go.set();
    assert_eq!(child.join().unwrap(), 1);
    eventually("it is gone", || manager.objects().unwrap() == 2);

    // A child forked by hand; what it drops does not end the manager.
    match fork_among_threads().unwrap() {
        Fork::Child => {
            let ok = list.push(&9).is_ok();
            drop((manager, dict, list));
            process::exit(if ok { 0 } else { 1 })
        }
        Fork::Parent(child) => assert!(child.wait().unwrap().success()),
    }
    assert_eq!(list.pop().unwrap(), Some(9));
}

#[test]
fn what_only_a_forked_child_had_is_gone_with_it_whatever_its_parent_does() {
    let _watchdog = watchdog();
    /// Waits until the manager has no objects. The parent's own calls would have it look at its children.
    fn watch((address, key): Reach) {
        let manager = Manager::connect(&address, key.as_slice()).unwrap();
        eventually("nothing is left", || manager.objects().unwrap() == 0);
    }
    let manager = Manager::new().unwrap();
    let reach = (manager.address().clone(), manager.authkey().as_bytes().to_vec());
    let watcher = Process::builder(watch, reach).start_method(StartMethod::Spawn);
    let (go, list) = (procession::Event::new().unwrap(), manager.list::<u32>().unwrap());
    let child = {
        let (go, list) = (go.clone(), list.clone());
        Process::forking(move || {
            go.wait(None);
            list.len().unwrap()
        })
    };
    let child = child.among_threads().start().unwrap();
    drop(list);
    let watcher = watcher.start().unwrap();
    go.set();
    assert_eq!(child.join().unwrap(), 0);
    watcher.join().unwrap();
}

#[test]
fn a_fork_in_the_middle_of_others_calls_is_safe() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let _watchdog = watchdog();
    let manager = Manager::new().unwrap();
    let dict = manager.dict::<u32, u32>().unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for key in 0..3 {
            let (dict, manager, over) = (dict.clone(), &manager, &over);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    dict.update(&key, |n| n.unwrap_or(0) + 1).unwrap();
                    // Made, handed out and dropped.
                    let list = manager.list::<u32>().unwrap();
                    manager.named_list("lists").unwrap().push(&list).unwrap();
                    manager.named_list::<List<u32>>("lists").unwrap().clear().unwrap();
                }
            });
        }
        for n in 0..40 {
            let (dict, manager) = (&dict, &manager);
            let child = Process::forking(move || {
                for _ in 0..3 {
                    dict.update(&100, |n| n.unwrap_or(0) + 1).unwrap();
                    manager.list::<u32>().unwrap().push(&1).unwrap();
                }
            });
            let child = child.among_threads().start().unwrap();
            if n % 4 == 0 {
                child.kill().unwrap();
                let _killed = child.join();
            } else {
                child.join().unwrap();
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    assert!(dict.get(&100).unwrap().unwrap() >= 90);
    eventually("only the named list is left with the dict", || manager.objects().unwrap() == 2);
}

#[test]
fn a_killed_parent_keeps_nothing_through_its_childrens_copies() {
    let _watchdog = watchdog();
    /// Forks a child, by the system's own call, that has copies of all connections.
    fn parent((reach, pids): (Reach, Queue<u32>)) {
        let manager = Manager::connect(&reach.0, reach.1.as_slice()).unwrap();
        let list = manager.list::<u32>().unwrap();
        list.push(&1).unwrap();
        // SAFETY: the child only sleeps.
        let child = unsafe { libc::fork() };
        if child == 0 {
            loop {
                std::thread::sleep(Duration::from_secs(1));
            }
        }
        pids.put(&(child as u32)).unwrap();
        loop {
            std::thread::sleep(Duration::from_secs(1));
        }
    }
    let manager = Manager::new().unwrap();
    let reach = (manager.address().clone(), manager.authkey().as_bytes().to_vec());
    let pids = Queue::unbounded().unwrap();
    let process = Process::spawn(parent, (reach, pids.clone())).unwrap();
    let child = pids.get().unwrap();
    assert_eq!(manager.objects().unwrap(), 1);
    process.kill().unwrap();
    assert!(process.join().is_err());
    eventually("the list is gone", || manager.objects().unwrap() == 0);
    assert!(process_state(child).is_some_and(|(state, _)| state != 'Z'), "its copies are");
    // SAFETY: the pid is that of the child, which has not ended.
    unsafe { libc::kill(child as i32, libc::SIGKILL) };
}
