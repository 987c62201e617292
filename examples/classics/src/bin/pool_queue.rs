//! A plain queue in a pool's arguments, and one in a result.

use procession::{Error, Pool, Queue};

fn report((queue, n): (Queue<i64>, i64)) {
    queue.put(&-n).expect("there is room");
}

fn make(numbers: Vec<i64>) -> Queue<i64> {
    let queue = Queue::unbounded().expect("a queue");
    queue.put_many(&numbers).expect("there is room");
    queue
}

fn main() -> Result<(), Error> {
    let queue = Queue::unbounded()?;
    let pool = Pool::new(2)?;
    pool.map(report, (1..=5).map(|n| (queue.clone(), n)))?;
    let mut numbers = (1..=5).map(|_| queue.get()).collect::<Result<Vec<_>, _>>()?;
    numbers.sort_unstable();
    println!("the workers put {numbers:?}");

    let queue = pool.apply(make, vec![3, 1, 2])?;
    drop(pool);
    println!("a worker made a queue of {}, {} and {}", queue.get()?, queue.get()?, queue.get()?);
    Ok(())
}
