//! The worker of `two_languages.py`: takes texts from one named queue and puts what it counted into another.
//!
//! Both programs agree on MessagePack: a message is the bytes that `rmp-serde` makes of a struct, with its field names, and a dict
//! for Python. Python has made the queues; here they are opened by their names.

use std::collections::BTreeMap;
use std::error::Error;

use procession::Queue;
use procession::queue::GetError;
use serde::{Deserialize, Serialize};

#[derive(Debug, Deserialize)]
struct Text {
    number: u64,
    text: String,
}

#[derive(Debug, Serialize)]
struct Counted {
    number: u64,
    words: BTreeMap<String, u32>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut names = std::env::args().skip(1);
    let (Some(texts), Some(counts), None) = (names.next(), names.next(), names.next()) else {
        return Err("usage: two_languages TEXTS COUNTS (the names of the queues)".into());
    };
    // The queues' own messages are bytes: what they mean is this program's matter.
    let texts = Queue::<()>::open(&texts)?;
    let counts = Queue::<()>::open(&counts)?;
    loop {
        let message = match texts.get_bytes() {
            Ok(message) => message,
            Err(GetError::ShutDown) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let Text { number, text } = rmp_serde::from_slice(&message)?;
        let mut words = BTreeMap::new();
        for word in text.split_whitespace() {
            *words.entry(word.to_lowercase()).or_default() += 1;
        }
        counts.put_bytes(&rmp_serde::to_vec_named(&Counted { number, words })?)?;
    }
}
