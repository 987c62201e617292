//! An orphan on purpose, by a double fork: its parent ends at once, so that init (or the nearest subreaper) adopts it, and
//! nobody here has to wait for it.

use std::thread::sleep;
use std::time::Duration;

use procession::Error;
use procession::process::{Fork, detach, exit, fork, getpid, getppid};

fn live_as_an_orphan(starter: u32) {
    println!("detached: process {}, has another parent: {}", getpid(), getppid() != starter);
}

fn main() -> Result<(), Error> {
    let starter = getpid();
    println!("main: process {starter}");
    match fork()? {
        Fork::Child => {
            let middle = getpid();
            if let Fork::Child = fork()? {
                while getppid() == middle {
                    sleep(Duration::from_millis(1));
                }
                println!("orphan: process {}, has another parent: {}", getpid(), getppid() != starter);
            }
            exit(0);
        }
        Fork::Parent(middle) => {
            println!("main: the process in the middle ended with {}", middle.wait()?);
        }
    }

    // The same in one call.
    let pid = detach(live_as_an_orphan, starter)?;
    println!("main: process {pid} is on its own");
    Ok(())
}
