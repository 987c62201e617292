//! Six processes and a room for three.

use std::thread::sleep;
use std::time::Duration;

use procession::{Error, Process, Semaphore};

fn visit((number, room): (u32, Semaphore)) {
    let seat = room.enter();
    println!("visitor {number} comes in");
    sleep(Duration::from_millis(200));
    println!("visitor {number} leaves");
    drop(seat);
}

fn main() -> Result<(), Error> {
    let room = Semaphore::new(3)?;
    println!("{} seats are free", room.get_value());
    let mut visitors = Vec::new();
    for number in 1..=6 {
        visitors.push(Process::spawn(visit, (number, room.clone()))?);
    }
    for visitor in visitors {
        visitor.join()?;
    }
    println!("{} seats are free", room.get_value());
    Ok(())
}
