//! The forms of the queues that the other tests do not need: names, kinds, batches and reservations with a time limit.

use std::fmt::Debug;
use std::time::Duration;

use procession::connection::SendError;
use procession::queue::{GetError, PutError};
use procession::{CreateError, JoinableQueue, OpenError, Pipe, Queue};
use serde::{Deserialize, Serialize, Serializer};

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

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type")]
enum Tagged {
    Add { n: u32 },
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Skips {
    #[serde(skip_serializing_if = "Option::is_none", default)]
    note: Option<u8>,
    a: u8,
    #[serde(skip)]
    b: u8,
}

#[derive(Serialize, Deserialize)]
enum Refuses {
    #[serde(serialize_with = "refuse")]
    Always(u8),
}

fn refuse<S: Serializer>(_: &u8, _: S) -> Result<S::Ok, S::Error> {
    Err(serde::ser::Error::custom("not this one"))
}

#[test]
fn what_could_not_be_read_back_is_not_put() {
    fn refused<T: Debug>(result: Result<T, PutError>, text: &str) {
        let Err(PutError::Serialize(error)) = result else { panic!("{result:?}") };
        assert!(error.to_string().contains(text), "{error}");
    }
    let message = Tagged::Add { n: 5 };
    let queue = Queue::<Tagged>::unbounded().unwrap();
    refused(queue.put(&message), "Tagged could not be read back");
    refused(queue.clone().try_put(&message), "Tagged could not be read back");
    let many = queue.put_many([&message, &message]).unwrap_err();
    assert_eq!(many.put, 0);
    refused(Err::<(), _>(many.error), "Tagged could not be read back");
    let tasks = JoinableQueue::<Vec<Tagged>>::unbounded().unwrap();
    refused(tasks.put(&vec![message]), "could not be read back");
    assert!(queue.is_empty() && tasks.is_empty());
    // Bytes are no values.
    queue.put_bytes(b"bytes").unwrap();
    assert_eq!(*queue.get_bytes().unwrap(), *b"bytes");

    let queue = Queue::<Skips>::unbounded().unwrap();
    refused(queue.put(&Skips { note: None, a: 1, b: 0 }), "field note is left out");
    let whole = Skips { note: Some(2), a: 1, b: 0 };
    queue.put(&whole).unwrap();
    assert_eq!(queue.get().unwrap(), whole);

    refused(Queue::unbounded().unwrap().put(&Refuses::Always(1)), "not this one");
}

#[test]
fn what_could_not_be_read_back_is_not_sent() {
    let (receiver, sender) = Pipe::one_way::<Tagged>().unwrap();
    let error = sender.send(&Tagged::Add { n: 5 }).unwrap_err();
    assert!(matches!(error, SendError::Serialize { .. }), "{error}");
    assert!(!receiver.poll(Duration::ZERO).unwrap());
}

#[test]
fn a_queue_of_other_messages_is_not_opened() {
    mod before {
        #[derive(serde::Serialize, serde::Deserialize)]
        pub(super) struct Job {
            pub(super) width: u32,
            pub(super) height: u32,
        }
    }
    mod after {
        #[derive(Debug, serde::Serialize, serde::Deserialize)]
        pub(super) struct Job {
            pub(super) height: u32,
            pub(super) width: u32,
        }
    }
    let name = format!("messages-{}", std::process::id());
    let made = Queue::<before::Job>::builder().create(&name).unwrap();
    made.put(&before::Job { width: 1, height: 2 }).unwrap();
    let error = Queue::<after::Job>::open(&name).unwrap_err();
    assert!(matches!(error, OpenError::Messages { .. }), "{error}");
    assert!(error.to_string().contains("after::Job"), "{error}");
    assert!(matches!(Queue::<u64>::open(&name), Err(OpenError::Messages { .. })));
    assert_eq!(Queue::<before::Job>::open(&name).unwrap().get().unwrap().height, 2);

    let bytes = postcard::to_stdvec(&made).unwrap();
    postcard::from_bytes::<Queue<before::Job>>(&bytes).unwrap();
    postcard::from_bytes::<Queue<after::Job>>(&bytes).unwrap_err();
    postcard::from_bytes::<Queue<before::Job>>(&postcard::to_stdvec(&made).unwrap()).unwrap();

    let name = format!("tasks-{}", std::process::id());
    let _tasks = JoinableQueue::<(u8, u8)>::builder().create(&name).unwrap();
    assert!(matches!(JoinableQueue::<String>::open(&name), Err(OpenError::Messages { .. })));
}
