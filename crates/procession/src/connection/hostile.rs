//! What a peer that keeps to no rules sends over a connection.

use std::io::{IoSlice, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use procession_sys::clock::Deadline;
use procession_sys::socket::{self, Blocking};
use proptest::collection::vec;
use proptest::prelude::*;

use super::auth::{AuthKey, Handshake, Role};
use super::channel::Channel;
use super::error::RecvError;
use crate::hostile::target;

/// A header that claims any length, or one that is nearly right, and some bytes.
fn frame() -> impl Strategy<Value = Vec<u8>> {
    let length = prop_oneof![
        any::<i32>().prop_map(|n| n.to_be_bytes().to_vec()),
        (0..300i32).prop_map(|n| n.to_be_bytes().to_vec()),
        any::<u64>().prop_map(|n| [&(-1i32).to_be_bytes()[..], &n.to_be_bytes()].concat()),
        (0..64u32).prop_map(|bits| [&(-1i32).to_be_bytes()[..], &(1u64 << bits).to_be_bytes()].concat()),
        vec(any::<u8>(), 0..12),
    ];
    (length, vec(any::<u8>(), 0..300)).prop_map(|(length, body)| [length, body].concat())
}

fn pair() -> (UnixStream, OwnedFd) {
    let (peer, victim) = UnixStream::pair().unwrap();
    (peer, victim.into())
}

#[test]
fn lengths_of_all_sizes() {
    let max = prop::option::of(0..1000usize);
    target((vec((frame(), 0..4usize), 1..6), max), |(frames, max)| {
        let (peer, victim) = pair();
        let null = std::fs::File::open("/dev/null").unwrap();
        for (frame, descriptors) in &frames {
            let descriptors = vec![null.as_fd(); *descriptors];
            let parts = [IoSlice::new(frame)];
            if !frame.is_empty() {
                socket::send(&peer, &parts, &descriptors, Blocking::Wait).unwrap();
            }
        }
        drop(peer);
        let channel = Channel::new(victim).unwrap();
        let bytes: usize = frames.iter().map(|(frame, _)| frame.len()).sum();
        // Each answer takes at least a header, but for the last.
        for _ in 0..bytes / 4 + 2 {
            match channel.receive(max, Deadline::Never) {
                Ok(message) => assert!(message.bytes.len() <= bytes),
                Err(RecvError::TooLong { .. } | RecvError::OutOfMemory { .. }) => {}
                Err(RecvError::Closed | RecvError::Truncated { .. } | RecvError::NotAMessage { .. }) => {
                    return;
                }
                Err(other) => panic!("{other}"),
            }
        }
        panic!("more messages than came");
    });
}

#[test]
fn handshakes_with_anybody() {
    let words =
        [&b"#CHALLENGE#"[..], b"#WELCOME#", b"#FAILURE#", b"{sha256}", b"{md5}", b"{sha384}", b"{", b""];
    let message = (vec(0..words.len(), 0..3), vec(any::<u8>(), 0..60)).prop_map(move |(chosen, rest)| {
        let body = [chosen.iter().map(|i| words[*i]).collect::<Vec<_>>().concat(), rest].concat();
        [&(body.len() as i32).to_be_bytes()[..], &body].concat()
    });
    let messages = vec(prop_oneof![3 => message, 1 => frame()], 0..6);
    target((messages, any::<bool>()), |(messages, listens)| {
        let (mut peer, victim) = pair();
        peer.write_all(&messages.concat()).unwrap();
        peer.shutdown(std::net::Shutdown::Write).unwrap();
        let role = if listens { Role::Listener } else { Role::Client };
        let key = AuthKey::random();
        let ended = Handshake::new(&key, role, &victim).and_then(|mut handshake| {
            // The peer's end of the stream is there: this never has to be asked to wait.
            handshake.advance(&victim)
        });
        assert!(!matches!(ended, Ok(true)), "let in without the key");
        drop(victim);
        let _ = peer.read_to_end(&mut Vec::new());
    });
}
