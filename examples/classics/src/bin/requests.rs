//! Requests and a handler, which ends when none has come for two seconds.

use std::time::Duration;

use procession::queue::GetError;
use procession::{Error, Process, Queue};

/// Numbers to add.
type Request = (i64, i64);

/// How many requests there were.
fn handle(requests: Queue<Request>) -> u32 {
    let mut handled = 0;
    loop {
        match requests.get_timeout(Duration::from_secs(2)) {
            Ok((a, b)) => {
                println!("handler: {a} + {b} = {}", a + b);
                handled += 1;
            }
            Err(GetError::Empty) => {
                println!("handler: no request for 2 s");
                return handled;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

fn main() -> Result<(), Error> {
    let requests = Queue::unbounded()?;
    let handler = Process::spawn(handle, requests.clone())?;
    for n in 1..=3 {
        println!("main: request {n}");
        requests.put(&(n, 10 * n))?;
    }
    println!("main: {} requests were handled", handler.join()?);
    Ok(())
}
