//! A queue with room for three messages: what each way to put does when it is full, and each way to get when it
//! is empty.

use std::time::Duration;

use procession::queue::{GetError, PutError};
use procession::{Error, Queue};

const PATIENCE: Duration = Duration::from_millis(500);

fn main() -> Result<(), Error> {
    let queue = Queue::bounded(3)?;
    for n in 1..=3 {
        queue.put(&n)?;
        println!("put {n}: {} of 3 in the queue, full: {}", queue.len(), queue.is_full());
    }

    // put() would wait here until somebody gets.
    match queue.put_timeout(&4, PATIENCE) {
        Err(PutError::Full) => println!("put_timeout 4: still full after {PATIENCE:?}"),
        other => panic!("the queue took a fourth message: {other:?}"),
    }
    match queue.try_put(&4) {
        Err(error @ PutError::Full) => println!("try_put 4: {error}"),
        other => panic!("the queue took a fourth message: {other:?}"),
    }

    for _ in 1..=3 {
        let n = queue.get()?;
        println!("get {n}: {} of 3 in the queue, empty: {}", queue.len(), queue.is_empty());
    }
    match queue.get_timeout(PATIENCE) {
        Err(GetError::Empty) => println!("get_timeout: still empty after {PATIENCE:?}"),
        other => panic!("the queue had a fourth message: {other:?}"),
    }
    match queue.try_get() {
        Err(error @ GetError::Empty) => println!("try_get: {error}"),
        other => panic!("the queue had a fourth message: {other:?}"),
    }
    Ok(())
}
