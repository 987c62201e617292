//! A number that two processes change: each change happens under the number's lock, so that none is lost.

use procession::{Error, Process, Value};

const TIMES: u32 = 1000;

fn change((balance, amount): (Value<i64>, i64)) {
    for _ in 0..TIMES {
        balance.update(|balance| *balance += amount).expect("nobody died with the lock");
    }
    println!("{TIMES} times {amount:+}: done");
}

fn main() -> Result<(), Error> {
    let balance = Value::new(500_i64)?;
    println!("before: {}", balance.get()?);
    let saver = Process::spawn(change, (balance.clone(), 3))?;
    let spender = Process::spawn(change, (balance.clone(), -2))?;
    saver.join()?;
    spender.join()?;
    println!("after: {}", balance.get()?);
    Ok(())
}
