//! A process writes to a queue now and then; another looks for messages and does something else meanwhile.

use std::thread::sleep;
use std::time::Duration;

use procession::queue::GetError;
use procession::{Error, Process, Queue};

fn write(queue: Queue<String>) {
    for word in ["alpha", "beta", "gamma"] {
        println!("writer: put {word}");
        queue.put(&word.to_owned()).expect("an unbounded queue has room");
        sleep(Duration::from_millis(200));
    }
    // Readers take what is left, and then learn that nothing more comes.
    queue.shutdown(false).expect("the queue is whole");
}

/// How many messages there were.
fn read(queue: Queue<String>) -> u32 {
    let mut messages = 0;
    loop {
        match queue.try_get() {
            Ok(word) => {
                println!("reader: got {word}");
                messages += 1;
            }
            Err(GetError::Empty) => sleep(Duration::from_millis(20)), // something else
            Err(GetError::ShutDown) => return messages,
            Err(error) => panic!("{error}"),
        }
    }
}

fn main() -> Result<(), Error> {
    let queue = Queue::unbounded()?;
    let writer = Process::spawn(write, queue.clone())?;
    let reader = Process::spawn(read, queue)?;
    writer.join()?;
    println!("main: the reader got {} messages", reader.join()?);
    Ok(())
}
