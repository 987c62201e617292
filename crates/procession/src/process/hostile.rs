//! What a process that keeps to no rules sends over the control connection.

use std::io::{IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use procession_sys::memory;
use proptest::collection::vec;
use proptest::prelude::*;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::control_channel::{Channel, Received};
use crate::hostile::target;

/// One packet.
#[derive(Clone, Debug)]
struct Packet {
    body_len: u64,
    count: u32,
    outside: bool,
    /// So many of its bytes are sent.
    cut: Option<u8>,
    inline: Vec<u8>,
    descriptors: Vec<u8>,
}

fn packet() -> impl Strategy<Value = Packet> {
    let body_len = prop_oneof![any::<u64>(), 0..100_000u64, (0..64u32).prop_map(|bits| 1 << bits)];
    let count = prop_oneof![0..4u32, any::<u32>()];
    let rest = (prop::option::weighted(0.2, 0..20u8), vec(any::<u8>(), 0..50), vec(0..6u8, 0..4));
    (body_len, count, any::<bool>(), rest, any::<bool>()).prop_map(
        |(body_len, count, outside, (cut, inline, descriptors), right)| {
            // Half of them as they should be, but for the body.
            let count = if right { descriptors.len() as u32 } else { count };
            let body_len = if right && !outside { inline.len() as u64 } else { body_len };
            Packet { body_len, count, outside, cut, inline, descriptors }
        },
    )
}

fn descriptor(kind: u8) -> OwnedFd {
    match kind {
        0 => {
            let file = memory::create(c"small", 0).unwrap();
            std::fs::File::from(file.try_clone().unwrap()).write_all(&[1; 1000]).unwrap();
            file
        }
        // Far larger than the memory there is, and without any.
        1 => memory::create(c"sparse", 1 << 42).unwrap(),
        // Nothing ever comes out of this one, and no end of that.
        2 => std::os::unix::net::UnixStream::pair().unwrap().0.into(),
        3 => std::fs::File::open("/dev/zero").unwrap().into(),
        4 => std::fs::File::open("/dev/shm").unwrap().into(),
        _ => std::io::pipe().unwrap().1.into(),
    }
}

fn send(channel: &Channel, bytes: &[u8], descriptors: &[OwnedFd]) {
    let fds: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&fds));
    }
    sendmsg(channel, &[IoSlice::new(bytes)], &mut control, SendFlags::empty()).unwrap();
}

fn header(body_len: u64, count: u32, outside: bool) -> Vec<u8> {
    [&body_len.to_le_bytes()[..], &count.to_le_bytes(), &u32::from(outside).to_le_bytes()].concat()
}

#[test]
fn packets_of_any_bytes() {
    target(vec(packet(), 1..6), |packets| {
        let (peer, victim) = Channel::pair().unwrap();
        let count = packets.len();
        for packet in packets {
            let bytes =
                [header(packet.body_len, packet.count, packet.outside), packet.inline.clone()].concat();
            let len = packet.cut.map_or(bytes.len(), |cut| bytes.len().min(cut.into()));
            let descriptors: Vec<OwnedFd> = packet.descriptors.iter().map(|kind| descriptor(*kind)).collect();
            send(&peer, &bytes[..len], &descriptors);
        }
        drop(peer);
        let mut messages = 0;
        while !matches!(victim.try_receive(), Ok(Received::End)) {
            messages += 1;
            assert!(messages <= count, "more than came");
        }
    });
}

#[test]
fn a_body_in_a_descriptor_that_is_not_counted() {
    let (peer, victim) = Channel::pair().unwrap();
    send(&peer, &header(1000, 0, true), &[descriptor(0)]);
    assert!(victim.try_receive().is_err());
}

#[test]
fn a_body_that_has_no_memory() {
    let (peer, victim) = Channel::pair().unwrap();
    for kind in 1..6 {
        send(&peer, &header(1 << 42, 1, true), &[descriptor(kind)]);
        assert!(victim.try_receive().is_err());
    }
}

#[test]
fn descriptors_that_do_not_come() {
    let (peer, victim) = Channel::pair().unwrap();
    send(&peer, &header(0, u32::MAX, false), &[]);
    for _ in 0..3 {
        send(&peer, &[0], &[]);
    }
    assert!(victim.try_receive().is_err());
}
