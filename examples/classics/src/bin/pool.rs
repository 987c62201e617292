//! A pool of workers: a function over many inputs, results in order and as they come, one that fails and one that dies.

use procession::{Error, Pool};

fn square(n: u64) -> u64 {
    n * n
}

fn power((base, exponent): (u64, u32)) -> u64 {
    base.pow(exponent)
}

fn greatest(numbers: Vec<u32>) -> Option<u32> {
    numbers.into_iter().max()
}

fn exit_with(code: i32) {
    std::process::exit(code)
}

fn main() -> Result<(), Error> {
    let pool = Pool::new(2)?;
    println!("map: {:?}", pool.map(square, 0..10)?);
    println!("apply: {}", pool.apply(square, 7)?);
    let result = pool.apply_async(square, 8)?;
    println!("apply_async: {}, ready: {}", result.get()?, result.is_ready());
    let mut squares: Vec<u64> = pool.imap_unordered(square, 0..5)?.collect::<Result<_, _>>()?;
    squares.sort_unstable();
    println!("imap_unordered: {squares:?}");
    println!("several arguments: {:?}", pool.map(power, [(2, 3), (3, 2)])?);
    println!("a result that may be missing: {:?}", pool.map(greatest, [vec![3, 5, 4], vec![]])?);
    let first: Vec<u64> = pool.task(square).buffersize(4).imap(0..)?.take(3).collect::<Result<_, _>>()?;
    println!("the first of endlessly many: {first:?}");
    if let Err(error) = pool.apply(exit_with, 7) {
        println!("a task failed: {error}");
    }
    println!("the pool goes on: {}", pool.apply(square, 9)?);
    pool.close()?;
    pool.join()?;
    Ok(())
}
