//! Counts words for a program in Python (`examples/interop.py`), over two named queues of MessagePack messages.
//!
//! `interop make NAME` makes the queues `NAME-requests` and `NAME-replies`, and says so on standard output; `interop open NAME` opens
//! those that the other program has made. Either ends when the requests are shut down.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::Write;
use std::process::ExitCode;

use procession::Queue;
use procession::queue::GetError;
use serde::{Deserialize, Serialize};

/// What is to be counted.
#[derive(Deserialize)]
struct Request {
    id: u64,
    text: String,
}

/// How often each word occurs.
#[derive(Serialize)]
struct Reply<'a> {
    id: u64,
    words: BTreeMap<&'a str, u32>,
}

/// A queue whose messages are bytes: in which language they were written they do not say.
type Bytes = Queue<()>;

fn serve(requests: &Bytes, replies: &Bytes) -> Result<(), Box<dyn Error>> {
    loop {
        let message = match requests.get_bytes() {
            Ok(message) => message,
            Err(GetError::ShutDown) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let Request { id, text } = rmp_serde::from_slice(&message)?;
        let mut words = BTreeMap::new();
        for word in text.split_whitespace() {
            *words.entry(word).or_default() += 1;
        }
        // With the names of the fields, so that it is a dict in Python.
        replies.put_bytes(&rmp_serde::to_vec_named(&Reply { id, words })?)?;
    }
}

fn run(how: &str, name: &str) -> Result<(), Box<dyn Error>> {
    let names = [format!("{name}-requests"), format!("{name}-replies")];
    let [requests, replies] = match how {
        "make" => [Bytes::builder().create(&names[0])?, Bytes::builder().create(&names[1])?],
        _ => [Bytes::open(&names[0])?, Bytes::open(&names[1])?],
    };
    writeln!(std::io::stdout(), "ready")?;
    serve(&requests, &replies)
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [how @ ("make" | "open"), name] => run(how, name),
        _ => Err("usage: interop make|open NAME".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("interop: {error}");
            ExitCode::FAILURE
        }
    }
}
