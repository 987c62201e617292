//! `wait` and `waitpid`: which child has ended, and how.

use std::thread::sleep;
use std::time::Duration;

use procession::Error;
use procession::process::{ExitStatus, Fork, WaitOptions, exit, fork, wait, waitpid};

fn main() -> Result<(), Error> {
    match fork()? {
        Fork::Child => exit(7),
        Fork::Parent(child) => println!("parent: child {} is to exit with 7", child.pid()),
    }
    match wait()? {
        (pid, ExitStatus::Exited(code)) => println!("parent: child {pid} exited with {code}"),
        (pid, other) => println!("parent: child {pid} ended with {other}"),
    }

    let child = match fork()? {
        Fork::Child => {
            sleep(Duration::from_secs(60));
            exit(0);
        }
        Fork::Parent(child) => child,
    };
    let pid = child.pid();
    // Does not wait: there is nothing to tell yet.
    let ended = waitpid(pid, WaitOptions::NoHang)?;
    println!("parent: child {pid} sleeps, waitpid says {ended:?}");
    child.kill()?;
    match waitpid(pid, WaitOptions::Block)? {
        Some((pid, ExitStatus::Signaled { signal, .. })) => {
            println!("parent: child {pid} was ended by signal {signal}");
        }
        other => println!("parent: child {pid} ended otherwise: {other:?}"),
    }

    match wait() {
        Err(error) => println!("parent: {error}"),
        Ok((pid, status)) => println!("parent: child {pid} ended with {status}"),
    }
    Ok(())
}
