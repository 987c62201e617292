//! `fork`: one process becomes two, each with a copy of every variable.

use procession::Error;
use procession::process::{Fork, exit, fork, getpid, getppid};

fn main() -> Result<(), Error> {
    let mut money = 100;
    println!("before: process {}, money {money}", getpid());
    match fork()? {
        Fork::Child => {
            money += 50;
            println!("child: process {}, parent {}, money {money}", getpid(), getppid());
            exit(0);
        }
        Fork::Parent(child) => {
            child.wait()?;
            money -= 30;
            println!("parent: process {}, child {}, money {money}", getpid(), child.pid());
        }
    }
    Ok(())
}
