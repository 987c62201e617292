//! The state of shared objects in plain words.

use procession::{
    Array, Barrier, BoundedSemaphore, Condition, JoinableQueue, Lock, Process, Queue, RLock, Semaphore, Value,
};
use test_support::watchdog;

/// Takes everything and dies with it.
fn take_and_die(everything: (Lock, RLock, Semaphore, Condition, Value<u64>, JoinableQueue<u32>)) {
    let (lock, rlock, semaphore, condition, value, tasks) = everything;
    assert!(lock.acquire(None).is_held() && rlock.acquire(None).is_held() && semaphore.acquire(None));
    std::mem::forget(condition.lock());
    std::mem::forget(value.lock());
    std::mem::forget(tasks.get());
    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).expect("kill");
}

#[test]
fn what_the_dead_hold_is_told() {
    let _watchdog = watchdog();
    let (lock, rlock) = (Lock::new().unwrap(), RLock::new().unwrap());
    let (semaphore, condition) = (Semaphore::robust(2).unwrap(), Condition::new().unwrap());
    let (value, tasks) = (Value::new(0_u64).unwrap(), JoinableQueue::unbounded().unwrap());
    tasks.put(&7).unwrap();
    let everything =
        (lock.clone(), rlock.clone(), semaphore.clone(), condition.clone(), value.clone(), tasks.clone());
    let process = Process::spawn(take_and_die, everything).unwrap();
    let dead = format!("pid {}, which is DEAD", process.pid());
    process.join().unwrap_err();
    for text in [
        lock.describe().to_string(),
        rlock.describe().to_string(),
        condition.describe().to_string(),
        value.describe().to_string(),
        semaphore.describe().to_string(),
        tasks.describe().to_string(),
    ] {
        assert!(text.contains(&dead), "{dead:?} is not in:\n{text}");
    }
    assert!(semaphore.describe().to_string().contains("1 of 2 free"));
}

#[test]
fn what_nobody_holds_is_told() {
    let _watchdog = watchdog();
    let queue = Queue::<u32>::bounded(4).unwrap();
    queue.put(&1).unwrap();
    let text = queue.describe().to_string();
    assert!(text.contains("at most 4 messages") && text.contains("1 messages wait"), "{text}");
    assert!(!text.contains("abandonable"), "{text}");
    let queue = Queue::<u32>::builder().abandonable(true).build().unwrap();
    assert!(queue.describe().to_string().contains("abandonable"));
    assert!(format!("{queue:?}").contains("abandonable: true"));
    let barrier = Barrier::new(3).unwrap();
    assert!(barrier.describe().to_string().contains("filling; 0 of 3 have arrived"));
    barrier.abort();
    assert!(barrier.describe().to_string().contains("broken"));
    assert!(BoundedSemaphore::new(5).unwrap().describe().to_string().contains("5 of at most 5 free"));
    assert!(Array::from_slice(&[1_u32, 2]).unwrap().describe().to_string().contains("2 elements of 4 bytes"));
}
