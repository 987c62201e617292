//! The forms of the queues that the other tests do not need: names, kinds, batches and reservations with a time limit.

use std::time::Duration;

use procession::queue::{GetError, PutError};
use procession::{CreateError, JoinableQueue, OpenError, Queue};

const SOON: Duration = Duration::from_millis(20);

#[test]
fn a_joinable_queue_has_a_name_and_options() {
    let name = format!("forms-{}", std::process::id());
    let tasks = JoinableQueue::<u32>::builder().bound(2).max_bytes(1 << 20).create(&name).unwrap();
    assert!(matches!(
        JoinableQueue::<u32>::builder().create(&name),
        Err(CreateError::Taken { name: taken }) if taken == name
    ));
    let same = JoinableQueue::<u32>::open(&name).unwrap();
    assert_eq!(tasks.put_many(&[1, 2]).unwrap(), 2);
    assert!(matches!(same.put_timeout(&3, SOON), Err(PutError::Full)));
    let task = same.get().unwrap();
    assert_eq!((*task, task.earlier_attempts()), (1, 0));
    drop(task);
    let task = tasks.get().unwrap();
    assert_eq!((*task, task.earlier_attempts()), (1, 1));
    task.done().unwrap();
    same.get().unwrap().done().unwrap();
    tasks.join().unwrap();
    assert!(matches!(Queue::<u32>::open(&name), Err(OpenError::Malformed(_))), "it counts tasks");
    drop((tasks, same));
    assert!(matches!(JoinableQueue::<u32>::open(&name), Err(OpenError::NotFound { .. })));
}

#[test]
fn a_handle_of_one_kind_is_not_the_other() {
    let queue = Queue::<u32>::unbounded().unwrap();
    let bytes = postcard::to_stdvec(&queue).unwrap();
    postcard::from_bytes::<Queue<u32>>(&bytes).unwrap();
    postcard::from_bytes::<JoinableQueue<u32>>(&bytes).unwrap_err();
    let bytes = postcard::to_stdvec(&JoinableQueue::<u32>::unbounded().unwrap()).unwrap();
    postcard::from_bytes::<Queue<u32>>(&bytes).unwrap_err();
}

#[test]
fn batches_wait_for_the_first_only() {
    let queue = Queue::<String>::unbounded().unwrap();
    assert!(matches!(queue.get_many_timeout(3, SOON), Err(GetError::Empty)));
    queue.put_many(&["a".to_owned(), "b".to_owned()]).unwrap();
    let batch: Vec<String> =
        queue.get_many_timeout(3, SOON).unwrap().into_iter().map(Result::unwrap).collect();
    assert_eq!(batch, ["a", "b"]);
}

#[test]
fn a_reservation_waits_for_room_as_long_as_it_is_told() {
    let queue = Queue::<()>::bounded(1).unwrap();
    let reserve = |byte| {
        let mut space = queue.reserve(100_000).unwrap();
        space.fill(byte);
        space
    };
    reserve(1).commit().unwrap();
    assert!(matches!(reserve(2).try_commit(), Err(PutError::Full)));
    assert!(matches!(reserve(3).commit_timeout(SOON), Err(PutError::Full)));
    assert_eq!(*queue.get_bytes().unwrap(), [1; 100_000]);
    reserve(4).try_commit().unwrap();
    assert_eq!(*queue.get_bytes_timeout(SOON).unwrap(), [4; 100_000]);
}
