//! A duplex pipe: two processes, each with an end, talk both ways.

use procession::connection::RecvError;
use procession::{Connection, Error, Pipe, Process};

/// Answers each word with its length, until the other end is closed.
fn measure(pipe: Connection<usize, String>) {
    loop {
        match pipe.recv() {
            Ok(word) => {
                println!("child: received {word:?}");
                pipe.send(&word.len()).expect("the parent waits for it");
            }
            Err(RecvError::Closed) => break println!("child: the other end is closed"),
            Err(error) => panic!("{error}"),
        }
    }
}

fn main() -> Result<(), Error> {
    let (ours, theirs) = Pipe::duplex::<String, usize>()?;
    // The child has its own copy; this one is dropped with the call.
    let child = Process::spawn(measure, theirs)?;
    for word in ["to", "and", "fro again"] {
        ours.send(&word.to_owned())?;
        println!("parent: {word:?} has {} letters", ours.recv()?);
    }
    drop(ours);
    child.join()?;
    Ok(())
}
