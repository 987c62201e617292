//! One producer and three consumers. After the last message the producer puts a sentinel for each consumer: the sign
//! that nothing more comes.

use procession::{Error, Process, Queue};

const CONSUMERS: u32 = 3;

fn produce(queue: Queue<Option<u32>>) {
    for n in 1..=9 {
        queue.put(&Some(n)).expect("an unbounded queue has room");
    }
    for _ in 0..CONSUMERS {
        queue.put(&None).expect("an unbounded queue has room");
    }
}

/// What the messages add up to.
fn consume((number, queue): (u32, Queue<Option<u32>>)) -> u32 {
    let mut sum = 0;
    while let Some(n) = queue.get().expect("the queue is whole") {
        println!("consumer {number}: got {n}");
        sum += n;
    }
    println!("consumer {number}: got the sentinel");
    sum
}

fn main() -> Result<(), Error> {
    let queue = Queue::unbounded()?;
    let mut consumers = Vec::new();
    for number in 1..=CONSUMERS {
        consumers.push(Process::spawn(consume, (number, queue.clone()))?);
    }
    Process::spawn(produce, queue.clone())?.join()?;
    let mut total = 0;
    for consumer in consumers {
        total += consumer.join()?;
    }
    println!("main: all consumers together: {total}; left in the queue: {}", queue.len());
    Ok(())
}
