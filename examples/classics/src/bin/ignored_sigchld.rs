//! A child that has ended is a zombie until its parent waits for it, unless the parent ignores SIGCHLD.

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use procession::Error;
use procession::process::{Fork, exit, fork, ignore_sigchld, restore_sigchld, wait};

/// What the system knows of a child that ended: `Z` for a zombie, `None` when it is forgotten.
fn state(pid: u32) -> Option<char> {
    loop {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        match status.split_once("State:\t")?.1.chars().next() {
            Some('Z') => return Some('Z'),
            _ => sleep(Duration::from_millis(1)), // it is still ending
        }
    }
}

fn fork_and_look() -> Result<(), Error> {
    match fork()? {
        Fork::Child => exit(0),
        Fork::Parent(child) => match state(child.pid()) {
            Some(state) => println!("child {} ended, its state is {state}: a zombie", child.pid()),
            None => println!("child {} ended and is forgotten", child.pid()),
        },
    }
    Ok(())
}

fn main() -> Result<(), Error> {
    println!("SIGCHLD as usual");
    fork_and_look()?;
    let (pid, status) = wait()?;
    println!("child {pid} was waited for: {status}");

    println!("SIGCHLD ignored");
    ignore_sigchld()?;
    fork_and_look()?;
    match wait() {
        Err(error) => println!("wait: {error}"),
        Ok((pid, status)) => println!("child {pid} was waited for: {status}"),
    }
    restore_sigchld()?;
    Ok(())
}
