//! Managers over addresses: who may connect, from where, and what peers without the key can do.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::time::Duration;

use procession::connection::{Address, AuthenticationError, Client, ConnectError, Connection, Listener};
use procession::manager::{CallError, Dict, List, Manager, ManagerError, Service};
use procession::queue::GetError;
use procession::{Process, Queue};
use rustix::process::{Resource, Rlimit, setrlimit};
use test_support::{eventually, scratch, watchdog};

fn raw(address: &Address) -> UnixStream {
    match address {
        Address::Unix(path) => UnixStream::connect(path).unwrap(),
        Address::Abstract(name) => {
            UnixStream::connect_addr(&SocketAddr::from_abstract_name(name).unwrap()).unwrap()
        }
        other => panic!("{other} is no local address"),
    }
}

#[test]
fn peers_without_the_key_learn_nothing_and_hold_up_nobody() {
    let _watchdog = watchdog();
    let manager = Manager::new().unwrap();
    let list = manager.list::<u32>().unwrap();
    let mut silent = Vec::new();
    let mut random = fastrand::Rng::with_seed(5);
    for n in 0..300_u32 {
        let mut peer = raw(manager.address());
        match n % 4 {
            // Nothing, for ever.
            0 => silent.push(peer),
            // The beginning of a message that never goes on.
            1 => {
                peer.write_all(&[0, 0]).unwrap();
                silent.push(peer);
            }
            // A message of almost any length; it may be turned away before it has sent all.
            2 => {
                let bytes: Vec<u8> = (0..1000).map(|_| random.u8(..)).collect();
                let _ = peer.write_all(&bytes);
                silent.push(peer);
            }
            _ => {
                let _ = peer.write_all(&i32::MAX.to_be_bytes());
                let _ = peer.shutdown(Shutdown::Write);
                let mut answer = Vec::new();
                let _ = peer.read_to_end(&mut answer);
                // The challenge, which is random.
                assert!(answer.len() < 200, "{answer:?}");
            }
        }
        if n % 20 == 0 {
            // Also those who connect anew.
            let other = Manager::connect(manager.address(), manager.authkey().clone()).unwrap();
            list.push(&n).unwrap();
            assert_eq!(other.objects().unwrap(), 1);
        }
    }
    for _ in 0..5 {
        let error = Manager::connect(manager.address(), "another key").unwrap_err();
        let ManagerError::Call(CallError::Connect(ConnectError::Authentication { cause, .. })) = &error
        else {
            panic!("{error}")
        };
        assert!(matches!(cause, AuthenticationError::WrongKey | AuthenticationError::Rejected), "{error}");
    }
    assert_eq!(list.len().unwrap(), 15);
    // Not those that are silent, 64 of which may be in their handshake, but those that were wrong.
    let threads = || std::fs::read_dir(format!("/proc/{}/task", manager.pid().unwrap())).unwrap().count();
    eventually("nobody else has a thread", || threads() <= 4);
}

/// Limits its manager's process.
struct Limits;

impl Service for Limits {
    const NAME: &'static str = "limits";
    type Arguments = ();
    /// How many descriptors there may be.
    type Request = u64;
    type Response = ();

    fn create((): ()) -> Self {
        Limits
    }

    fn handle(&mut self, descriptors: u64) {
        let limit = Rlimit { current: Some(descriptors), maximum: Some(descriptors) };
        setrlimit(Resource::Nofile, limit).unwrap();
    }
}

#[test]
fn peers_without_the_key_do_not_keep_the_last_descriptors() {
    let _watchdog = watchdog();
    // What may be in handshakes is more than there is room for, or less.
    for (descriptors, clients) in [(60, 0), (60, 16), (400, 0)] {
        let manager = Manager::builder().register::<Limits>().start().unwrap();
        let list = manager.list::<u32>().unwrap();
        manager.create::<Limits>(&()).unwrap().call(&descriptors).unwrap();
        let connect =
            || Client::connect::<u32, u32>(manager.address(), Some(manager.authkey())).expect("a connection");
        let clients: Vec<_> = (0..clients).map(|_| connect()).collect();
        let silent: Vec<_> = (0..500).map(|_| raw(manager.address())).collect();
        for n in 0..3 {
            list.push(&n).unwrap();
            let other = Manager::connect(manager.address(), manager.authkey().clone()).unwrap();
            assert_eq!(other.objects().unwrap(), 1);
            connect();
        }
        drop((clients, silent));
    }
}

#[test]
fn peers_with_the_key_and_no_manners_hold_up_nobody() {
    let _watchdog = watchdog();
    let manager = Manager::new().unwrap();
    let list = manager.list::<Vec<u8>>().unwrap();
    list.push(&vec![0; 3_000_000]).unwrap();
    let mut rude = Vec::new();
    for n in 0..40_usize {
        let peer: Connection<u32, u32> = Client::connect(manager.address(), Some(manager.authkey())).unwrap();
        let socket: rustix::fd::OwnedFd = peer.into();
        let mut peer = UnixStream::from(socket);
        let bytes: &[u8] = match n % 4 {
            0 => &[],
            1 => &[0, 0, 1],
            2 => &[0, 0, 0, 4, 255, 255, 255, 255],
            _ => &[255, 255, 255, 255, 127, 255, 255, 255, 255, 255, 255, 255, 1, 2, 3],
        };
        peer.write_all(bytes).unwrap();
        rude.push(peer);
        assert_eq!(list.len().unwrap(), 1);
    }
    // What is no request is answered, or the connection closed.
    let mut answer = Vec::new();
    rude[2].read_to_end(&mut answer).unwrap();
    assert!(!answer.is_empty());
    drop(rude);
    let threads = || std::fs::read_dir(format!("/proc/{}/task", manager.pid().unwrap())).unwrap().count();
    eventually("their threads are gone", || threads() <= 4);
}

#[test]
fn a_manager_at_a_port_keeps_what_others_bring() {
    let _watchdog = watchdog();
    fn program((port, key): (u16, String)) -> u32 {
        let manager = Manager::connect(&Address::tcp("localhost", port), key.as_str()).unwrap();
        let dict: Dict<String, List<u32>> = manager.named_dict("lists").unwrap();
        let list = dict.get("first").unwrap().unwrap();
        list.push(&2).unwrap();
        let second = manager.list().unwrap();
        second.push(&3).unwrap();
        dict.set("second", &second).unwrap();
        // On the same machine.
        let namespace = manager.named_namespace("shared").unwrap();
        let queue: Queue<u32> = namespace.get("queue").unwrap().unwrap();
        queue.put(&5).unwrap();
        manager.queue::<u8>().unwrap();
        list.len().unwrap() as u32
    }
    let manager = Manager::builder().address(Address::tcp("localhost", 0)).authkey("a key").start().unwrap();
    let Address::Tcp { port, .. } = *manager.address() else { panic!("no port") };
    let dict: Dict<String, List<u32>> = manager.named_dict("lists").unwrap();
    let list = manager.list().unwrap();
    list.push(&1).unwrap();
    dict.set("first", &list).unwrap();
    let queue = manager.queue::<u32>().unwrap();
    manager.named_namespace("shared").unwrap().set("queue", &queue).unwrap();
    let process = Process::spawn(program, (port, "a key".to_owned())).unwrap();
    assert_eq!(process.join().unwrap(), 2);
    assert_eq!(list.to_vec().unwrap(), [1, 2]);
    assert_eq!(dict.get("second").unwrap().unwrap().to_vec().unwrap(), [3]);
    assert_eq!(queue.get().unwrap(), 5);
    // Garbage on the port.
    let mut peers = Vec::new();
    for _ in 0..100 {
        let mut peer = TcpStream::connect(("localhost", port)).unwrap();
        let _ = peer.write_all(b"GET / HTTP/1.1\r\n\r\n");
        peers.push(peer);
    }
    assert_eq!(list.to_vec().unwrap(), [1, 2]);
    assert!(Manager::connect(manager.address(), "a key").is_ok());
    // A killed one is noticed over TCP too.
    let pid = i32::try_from(manager.pid().unwrap()).unwrap();
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    let error = list.len().unwrap_err();
    assert!(matches!(&error, CallError::ManagerDied { .. }), "{error}");
}

#[test]
fn keys_of_managers_at_ports_go_only_over_local_sockets() {
    let _watchdog = watchdog();
    fn stranger((lists, results): (Queue<List<u32>>, Queue<String>)) {
        match lists.get() {
            Err(error @ GetError::Handle(_)) => results.put(&error.to_string()).unwrap(),
            other => panic!("{other:?}"),
        }
    }
    fn friend((list, lists): (List<u32>, Queue<List<u32>>)) -> bool {
        // Knows the key from its argument.
        lists.get().unwrap().is_same(&list)
    }
    let manager =
        Manager::builder().address(Address::tcp("localhost", 0)).authkey("se-cr-et").start().unwrap();
    let list = manager.list::<u32>().unwrap();
    let (lists, results) = (Queue::unbounded().unwrap(), Queue::unbounded().unwrap());
    lists.put(&list).unwrap();
    let bytes = lists.get_bytes().unwrap();
    assert!(!bytes.windows(8).any(|bytes| bytes == b"se-cr-et"));
    drop(bytes);
    lists.put(&list).unwrap();
    Process::spawn(stranger, (lists.clone(), results.clone())).unwrap().join().unwrap();
    let error = results.get().unwrap();
    assert!(error.contains("does not know the key of the manager at"), "{error}");
    lists.put(&list).unwrap();
    assert!(Process::spawn(friend, (list, lists)).unwrap().join().unwrap());
}

#[test]
fn addresses_that_cannot_be_had() {
    let _watchdog = watchdog();
    let directory = scratch("manager");
    let path = directory.0.join("socket");
    let address = Address::unix(&path);
    let manager = Manager::builder().address(address.clone()).start().unwrap();
    assert!(path.exists());
    let error = Manager::builder().address(address.clone()).start().unwrap_err();
    assert!(matches!(&error, ManagerError::Listen(_)), "{error}");
    assert!(error.to_string().contains("somebody does already"), "{error}");
    manager.shutdown().unwrap();
    assert!(!path.exists());
    let error = Manager::connect(&address, "key").unwrap_err();
    let refused = matches!(&error, ManagerError::Call(CallError::Connect(ConnectError::Refused { .. })));
    assert!(refused, "{error}");
    let error = Manager::builder().authkey("").start().unwrap_err();
    assert!(error.to_string().contains("empty"), "{error}");
    let error = Manager::connect(&address, "").unwrap_err();
    assert!(error.to_string().contains("empty"), "{error}");

    // One that was killed left its file, which the next one replaces.
    let killed = Manager::builder().address(address.clone()).authkey("key").start().unwrap();
    let old = killed.list::<u8>().unwrap();
    let pid = rustix::process::Pid::from_raw(killed.pid().unwrap().try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    eventually("it is gone", || matches!(killed.objects(), Err(CallError::ManagerDied { .. })));
    let next = Manager::builder().address(address.clone()).authkey("key").start().unwrap();
    let list = next.list::<u8>().unwrap();
    assert!(matches!(old.len(), Err(CallError::ManagerDied { .. })));
    drop((killed, old));
    assert!(list.is_empty().unwrap());
    // Anybody with the key may end it.
    Manager::connect(&address, "key").unwrap().shutdown().unwrap();
    eventually("it has ended", || matches!(list.len(), Err(CallError::ManagerDied { .. })));
}

#[test]
fn a_listener_that_is_no_manager() {
    let _watchdog = watchdog();
    let mut listener = Listener::builder().authkey("key").bind().unwrap();
    let address = listener.address().clone();
    let server = std::thread::spawn(move || {
        let connection: Connection<String, u32> = listener.accept().unwrap();
        connection.send(&"hello".into()).unwrap();
        let connection: Connection<String, u32> = listener.accept().unwrap();
        drop(connection);
        let connection: Connection<u32, u32> = listener.accept_timeout(Duration::from_secs(60)).unwrap();
        connection.send_bytes(&[]).unwrap();
        let _ = connection.recv_bytes();
    });
    for _ in 0..3 {
        let error = Manager::connect(&address, "key").unwrap_err();
        let known = matches!(
            &error,
            ManagerError::Call(CallError::NotAManager { .. } | CallError::Disconnected { .. })
        );
        assert!(known, "{error}");
    }
    server.join().unwrap();
}
