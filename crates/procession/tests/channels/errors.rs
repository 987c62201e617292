//! What errors say, and what they convert into.

use std::error::Error as StdError;
use std::fmt::Debug;
use std::panic::{UnwindSafe, catch_unwind};

use procession::connection::{Address, Client, Listener};
use procession::queue::PutManyError;
use procession::sync::BoundedSemaphore;
use procession::{
    Array, Barrier, Error, JoinableQueue, Lock, Manager, Pipe, Process, Queue, RawArray, Semaphore,
    SharedMemory, Value,
};
use test_support::stderr_silenced;

type Boxed = Box<dyn StdError + Send + Sync>;

fn commit<E: From<procession::queue::PutError> + From<procession::CreateError>>() -> Result<(), E> {
    Ok(Queue::<()>::unbounded()?.reserve(5)?.commit()?)
}

fn many<E: From<PutManyError> + From<procession::CreateError>>() -> Result<usize, E> {
    JoinableQueue::<u32>::unbounded()?.put_many(&[1, 2])?;
    Ok(Queue::<u32>::unbounded()?.put_many(&[1, 2])?)
}

fn shared() -> Result<u64, Boxed> {
    let (value, array) = (Value::new(1_u64)?, Array::<u64>::new(2)?);
    value.set(5)?;
    value.update(|n| *n += 1)?;
    array.set(0, value.get()?)?;
    array.update(|array| array[1] = array[0])?;
    drop(Lock::new()?.lock().map_err(Error::from)?);
    Ok(array.to_vec()?.iter().sum())
}

#[test]
fn errors_convert_into_the_librarys_and_into_boxed_ones() {
    commit::<Error>().unwrap();
    commit::<Boxed>().unwrap();
    assert_eq!(many::<Error>().unwrap(), 2);
    assert_eq!(many::<Boxed>().unwrap(), 2);
    assert_eq!(shared().unwrap(), 12);
}

#[test]
fn an_error_of_many_messages_says_how_many_were_put() {
    let queue = Queue::<u32>::unbounded().unwrap();
    queue.shutdown(false).unwrap();
    let error = queue.put_many(&[1, 2]).unwrap_err();
    assert_eq!(error.put, 0);
    assert_eq!(
        Error::from(error).to_string(),
        "0 messages were put, then one was not: the queue has been shut down"
    );
}

fn panic_of<T>(call: impl FnOnce() -> T + UnwindSafe) -> String {
    let Err(payload) = catch_unwind(call) else { panic!("it did not panic") };
    payload.downcast_ref::<String>().cloned().unwrap_or_else(|| panic!("a panic without a text"))
}

#[test]
fn an_index_out_of_bounds_is_told_as_a_slices() {
    stderr_silenced();
    let index = "index out of bounds: the len is 3 but the index is 3";
    assert_eq!(panic_of(|| Array::<u8>::new(3).unwrap().get(3)), index);
    assert_eq!(panic_of(|| Array::<u8>::new(3).unwrap().set(3, 1)), index);
    assert_eq!(panic_of(|| RawArray::<u8>::new(3).unwrap().get(3)), index);
    assert_eq!(panic_of(|| RawArray::<[u64; 2]>::new(3).unwrap().set(3, [0; 2])), index);
    assert_eq!(
        panic_of(|| RawArray::<u16>::new(3).unwrap().read(1, &mut [0; 4])),
        "range end index 5 out of range for array of length 3"
    );
    let shared = SharedMemory::create_unnamed(10).unwrap();
    shared.unlink().unwrap();
    let text = panic_of(|| shared.write(8, &[0; 3]));
    assert_eq!(text, "range end index 11 out of range for shared memory of 10 bytes");
}

#[test]
fn an_error_names_what_was_to_be_made_and_what_was_asked_for() {
    let text = |error: &dyn StdError| error.to_string();
    assert_eq!(
        text(&Barrier::new(0).unwrap_err()),
        "cannot create a barrier: it has 1 to 32767 parties, not 0"
    );
    assert_eq!(
        text(&Array::<u64>::new(1 << 62).unwrap_err()),
        "cannot create an array: 4611686018427387904 elements of 8 bytes are more than this machine can address"
    );
    assert!(text(&Array::<u64>::new(1 << 60).unwrap_err()).starts_with("cannot create an array: "));
    for semaphore in [
        text(&Semaphore::new(u32::MAX).unwrap_err()),
        text(&Semaphore::robust(0).unwrap_err()),
        text(&BoundedSemaphore::new(u32::MAX).unwrap_err()),
    ] {
        assert!(semaphore.starts_with("cannot create a semaphore: "), "{semaphore}");
    }
    let bound = text(&Queue::<u8>::bounded(usize::MAX).unwrap_err());
    assert!(bound.contains("18446744073709551615 messages"), "{bound}");
    let memory = text(&SharedMemory::create_unnamed(usize::MAX).unwrap_err());
    assert!(memory.contains("18446744073709551615 bytes: it has 1 to 9223372036854775807"), "{memory}");
}

/// The text of an error and of all its sources, as `anyhow` and `tracing` print it.
fn chain<E: Into<Error> + Debug, T: Debug>(result: Result<T, E>) -> Vec<String> {
    let error = result.unwrap_err().into();
    let mut texts = vec![error.to_string()];
    let mut source = error.source();
    while let Some(next) = source {
        texts.push(next.to_string());
        source = next.source();
    }
    texts
}

#[test]
fn each_text_of_an_error_is_there_once() {
    let garbage = Queue::<String>::unbounded().unwrap();
    garbage.put_bytes(&[0xff; 3]).unwrap();
    let (receiver, sender) = Pipe::one_way::<String>().unwrap();
    sender.send_bytes(&[0xff; 3]).unwrap();
    let missing = std::env::temp_dir().join(format!("procession-{}/missing", std::process::id()));
    for texts in [
        chain(Manager::connect(&Address::tcp("localhost", 1), "k")),
        chain(Client::connect::<u8, u8>(&Address::tcp("localhost", 1), None)),
        chain(garbage.get()),
        chain(receiver.recv()),
        chain(SharedMemory::create("errors-say-things-once", 1 << 45)),
        chain(SharedMemory::create(&"x".repeat(250), 1 << 45)),
        chain(Listener::bind(Address::tcp("192.0.2.1", 1))),
        chain(Listener::bind(Address::unix(missing))),
        chain(Array::<u64>::new(1 << 36)),
        chain(Process::spawn(|n: u32| assert_eq!(n, 2), 1).unwrap().join()),
    ] {
        let whole = texts.join(": ");
        let mut parts: Vec<&str> = whole.split(": ").collect();
        let count = parts.len();
        parts.sort_unstable();
        parts.dedup();
        assert_eq!(parts.len(), count, "{whole}");
    }
}
