//! Peers that are not what they should be: requests and answers of any bytes, a manager of another machine.

use std::thread;

use proptest::collection::vec;
use proptest::prelude::*;

use super::error::{CallError, ManagerError};
use super::value::Received;
use super::wire::{Answer, Encoded, Machine, Reply, Request, Welcome, token};
use super::{Manager, Service};
use crate::connection::{Connection, Listener};
use crate::hostile::target;
use crate::{Lock, Queue};

/// Numbers as postcard writes them, large ones among them, and bytes.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        any::<u64>().prop_map(|n| postcard::to_stdvec(&n).unwrap_or_default()),
        (0..64u32).prop_map(|bits| postcard::to_stdvec(&(1u64 << bits)).unwrap_or_default()),
        (0..16u8).prop_map(|number| vec![number]),
        vec(any::<u8>(), 0..40),
    ];
    vec(part, 0..10).prop_map(|parts| parts.concat())
}

#[test]
fn messages_of_any_bytes() {
    target((0..12u8, bytes()), |(number, bytes)| {
        let bytes = [&[number], &bytes[..]].concat();
        let _ = postcard::from_bytes::<Request>(&bytes).map(drop);
        let _ = postcard::from_bytes::<Reply<Encoded>>(&bytes).map(drop);
        let _ = postcard::from_bytes::<Reply<Encoded>>(&[&[0], &bytes[..]].concat()).map(drop);
    });
}

#[test]
fn proxies_of_any_bytes() {
    target((0..6u8, 0..3u8, bytes()), |(tag, form, bytes)| {
        let bytes = [&[tag, form], &bytes[..]].concat();
        // Whatever it is, it is none of a manager that is there.
        assert!(postcard::from_bytes::<super::List<u8>>(&bytes).is_err());
    });
}

struct Echo;

impl Service for Echo {
    const NAME: &'static str = "echo";
    type Arguments = ();
    type Request = Queue<u8>;
    type Response = ();

    fn create((): ()) -> Self {
        Echo
    }

    fn handle(&mut self, _: Queue<u8>) {}
}

#[test]
fn a_manager_of_another_machine_shares_no_memory() {
    let mut listener = Listener::builder()
        .address(crate::connection::Address::tcp("localhost", 0))
        .authkey("key")
        .bind()
        .unwrap();
    let address = listener.address().clone();
    let server = thread::spawn(move || {
        let session: Connection<Reply<Encoded>, Request> = listener.accept().unwrap();
        assert!(matches!(session.recv().unwrap(), Request::Begin { .. }));
        let welcome = Welcome {
            manager: token(),
            session: token(),
            process: procession_sys::identity::Identity::current().to_bits(),
            machine: Machine::another(),
        };
        session.send(&Ok(Answer::Welcome(welcome))).unwrap();
        let calls: Connection<Reply<Encoded>, Request> = listener.accept().unwrap();
        assert!(matches!(calls.recv().unwrap(), Request::Join { .. }));
        calls.send(&Ok(Answer::Done)).unwrap();
        for object in 1..=2 {
            assert!(matches!(calls.recv().unwrap(), Request::Make { .. }));
            calls.send(&Ok(Answer::Object(object))).unwrap();
        }
        // Nothing that has a handle in it was sent.
        let Request::Call { object: 1, .. } = calls.recv().unwrap() else { panic!("another request") };
        calls.send(&Ok(Answer::Done)).unwrap();
        (session, calls)
    });
    let manager = Manager::connect(&address, "key").unwrap();
    assert_eq!(manager.pid(), None);
    let is_elsewhere = |error: &CallError| matches!(error, CallError::NotOnThisMachine { .. });
    let queue = manager.queue::<u8>().unwrap_err();
    assert!(is_elsewhere(&queue), "{queue}");
    let text = queue.to_string();
    assert!(text.contains(&address.to_string()) && text.contains("queue cannot be had"), "{text}");
    for error in [
        manager.lock().map(drop),
        manager.value(1_u8).map(drop),
        manager.array::<u8>(1).map(drop),
        manager.barrier(2).map(drop),
    ] {
        assert!(is_elsewhere(&error.unwrap_err()));
    }
    let namespace = manager.namespace().unwrap();
    let echo = manager.create::<Echo>(&()).unwrap();
    for error in [
        namespace.set("lock", &Lock::new().unwrap()).unwrap_err(),
        echo.call(&Queue::unbounded().unwrap()).unwrap_err(),
    ] {
        assert!(is_elsewhere(&error), "{error}");
    }
    namespace.set("number", &1).unwrap();
    server.join().unwrap();
    // Now nobody listens there any more.
    let error = ManagerError::from(namespace.set("number", &1).unwrap_err());
    assert!(error.to_string().contains("has ended"), "{error}");
}

#[test]
fn a_received_value_is_read_to_its_end() {
    let listener = Listener::builder().authkey("key").bind().unwrap();
    let client = super::client::ManagerClient::known(token(), listener.address().clone(), "key".into());
    let received =
        |bytes: &[u8]| Received::of_client(&client, Encoded { bytes: bytes.to_vec(), ..Encoded::default() });
    assert_eq!(received(&[5]).open::<u8>().unwrap(), 5);
    for wrong in [&[][..], &[5, 6]] {
        let error = received(wrong).open::<u8>().unwrap_err();
        assert!(matches!(error, CallError::Deserialize { .. }), "{error}");
    }
}
