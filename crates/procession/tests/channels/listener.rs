//! Listeners and clients: addresses, authentication, peers that misbehave, and Python at the other end.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use procession::connection::{
    AcceptError, Address, AuthKey, AuthenticationError, Client, ConnectError, Connection, ListenError,
    Listener, ListenerBuilder, Peer, RecvError, wait,
};
use test_support::{Reaped, descriptors, python, rerun, role, scratch, start, watchdog};

type Bytes = Connection<(), ()>;

fn keyed() -> ListenerBuilder {
    Listener::builder().authkey("secret")
}

fn key() -> AuthKey {
    AuthKey::from("secret")
}

/// Accepts `count` connections in a thread and sends their first message back.
fn echo(mut listener: Listener, count: usize) -> thread::JoinHandle<Listener> {
    thread::spawn(move || {
        for _ in 0..count {
            let peer: Connection<String, String> = listener.accept().unwrap();
            peer.send(&peer.recv().unwrap()).unwrap();
        }
        listener
    })
}

fn echoed(connection: Connection<String, String>) {
    connection.send(&"hello".into()).unwrap();
    assert_eq!(connection.recv().unwrap(), "hello");
}

#[test]
fn every_kind_of_address_works_with_and_without_a_key() {
    let _watchdog = watchdog();
    let dir = scratch("addresses");
    let addresses = [
        None,
        Some(Address::unix(dir.0.join("socket"))),
        Some(Address::Abstract(format!("procession test {}", std::process::id()).into_bytes())),
        Some(Address::tcp("127.0.0.1", 0)),
        Some(Address::tcp("localhost", 0)),
    ];
    for address in addresses {
        for key in [None, Some(key())] {
            let mut builder = Listener::builder().backlog(5);
            if let Some(address) = &address {
                builder = builder.address(address.clone());
            }
            if let Some(key) = &key {
                builder = builder.authkey(key.clone());
            }
            let listener = builder.bind().unwrap();
            let found = listener.address().clone();
            match (&found, &address) {
                (Address::Tcp { port, .. }, Some(Address::Tcp { .. })) => assert_ne!(*port, 0),
                (found, Some(address)) => assert_eq!(found, address),
                (found, None) => assert!(matches!(found, Address::Abstract(_))),
            }
            let serving = echo(listener, 2);
            echoed(Client::connect(&found, key.as_ref()).unwrap());
            echoed(Client::connect(&found, key.as_ref()).unwrap());
            let listener = serving.join().unwrap();
            match listener.last_accepted().unwrap() {
                Peer::Local { pid, .. } => assert_eq!(pid, std::process::id()),
                Peer::Tcp(peer) => assert!(peer.ip().is_loopback()),
                other => panic!("{other:?}"),
            }
            assert_eq!(listener.refused(), 0);
        }
    }
}

#[test]
fn a_wrong_key_is_refused_and_the_next_peer_is_not() {
    let _watchdog = watchdog();
    let listener = keyed().bind().unwrap();
    let address = listener.address().clone();
    let serving = echo(listener, 1);
    match Client::connect::<(), ()>(&address, Some(&AuthKey::from("guess"))).unwrap_err() {
        ConnectError::Authentication { cause: AuthenticationError::Rejected, .. } => {}
        other => panic!("{other:?}"),
    }
    echoed(Client::connect(&address, Some(&key())).unwrap());
    assert_eq!(serving.join().unwrap().refused(), 1);
}

#[test]
fn a_listener_with_a_wrong_key_is_refused_by_the_client() {
    let _watchdog = watchdog();
    // It accepts any answer, but cannot answer the client's challenge.
    let (address_of, address) = mpsc::channel();
    let impostor = thread::spawn(move || {
        let mut listener = Listener::builder().bind().unwrap();
        address_of.send(listener.address().clone()).unwrap();
        let peer: Bytes = listener.accept().unwrap();
        peer.send_bytes(b"#CHALLENGE#{sha256}0123456789012345678901234567890123456789").unwrap();
        peer.recv_bytes().unwrap();
        peer.send_bytes(b"#WELCOME#").unwrap();
        assert!(peer.recv_bytes().unwrap().starts_with(b"#CHALLENGE#{sha256}"));
        peer.send_bytes(&[b"{sha256}".to_vec(), vec![0; 32]].concat()).unwrap();
        peer.recv_bytes().unwrap()
    });
    match Client::connect::<(), ()>(&address.recv().unwrap(), Some(&key())).unwrap_err() {
        ConnectError::Authentication { cause: AuthenticationError::WrongKey, .. } => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(impostor.join().unwrap(), b"#FAILURE#");
}

#[test]
fn a_key_on_one_side_only_is_an_error() {
    let _watchdog = watchdog();
    let open = Listener::builder().bind().unwrap();
    let soon = Duration::from_millis(50);
    match Client::connect_timeout::<(), ()>(open.address(), Some(&key()), soon).unwrap_err() {
        ConnectError::Authentication { cause: AuthenticationError::Timeout(time), .. } => {
            assert_eq!(time, soon);
        }
        other => panic!("{other:?}"),
    }
    let mut listener = keyed().bind().unwrap();
    let keyless: Bytes = Client::connect(listener.address(), None).unwrap();
    keyless.send_bytes(b"let me in").unwrap();
    while listener.refused() == 0 {
        assert!(matches!(listener.accept_timeout::<(), ()>(soon), Err(AcceptError::Timeout)));
    }
    assert!(keyless.recv_bytes().unwrap().starts_with(b"#CHALLENGE#"));
    assert_eq!(keyless.recv_bytes().unwrap(), b"#FAILURE#");
    assert!(matches!(keyless.recv_bytes(), Err(RecvError::Closed)));
}

#[test]
fn an_empty_key_is_refused() {
    let _watchdog = watchdog();
    assert!(matches!(Listener::builder().authkey("").bind(), Err(ListenError::EmptyKey)));
    let listener = Listener::builder().bind().unwrap();
    match Client::connect::<(), ()>(listener.address(), Some(&AuthKey::from(""))).unwrap_err() {
        ConnectError::Authentication { cause: AuthenticationError::EmptyKey, .. } => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn silent_peers_do_not_hold_up_others() {
    let _watchdog = watchdog();
    let dir = scratch("silent");
    let path = dir.0.join("socket");
    // More than there may be in handshakes: the oldest go.
    let listener = keyed().address(Address::unix(&path)).backlog(200).bind().unwrap();
    let silent: Vec<_> = (0..100).map(|_| UnixStream::connect(&path).unwrap()).collect();
    let serving = echo(listener, 1);
    echoed(Client::connect(&Address::unix(&path), Some(&key())).unwrap());
    let mut listener = serving.join().unwrap();
    assert!(listener.refused() >= 36, "{}", listener.refused());
    // Those that are left hold nothing up either.
    let late = thread::spawn(move || {
        echoed(Client::connect(&Address::unix(&path), Some(&key())).unwrap());
    });
    let peer: Connection<String, String> = listener.accept().unwrap();
    peer.send(&peer.recv().unwrap()).unwrap();
    late.join().unwrap();
    drop(silent);
}

#[test]
fn a_handshake_has_a_limit_in_time() {
    let _watchdog = watchdog();
    let dir = scratch("slow");
    let path = dir.0.join("socket");
    let limit = Duration::from_millis(30);
    let mut listener = keyed().address(Address::unix(&path)).handshake_timeout(limit).bind().unwrap();
    let mut silent = UnixStream::connect(&path).unwrap();
    silent.write_all(b"\0").unwrap();
    while listener.refused() == 0 {
        assert!(matches!(listener.accept_timeout::<(), ()>(limit), Err(AcceptError::Timeout)));
    }
    let mut all = Vec::new();
    // Closed with a byte unread, so perhaps with a reset.
    let _reset = silent.read_to_end(&mut all);
    assert!(all.starts_with(b"\0\0\0\x33#CHALLENGE#"), "{all:?}");
}

#[test]
fn messages_over_256_bytes_end_a_handshake() {
    let _watchdog = watchdog();
    let dir = scratch("oversized");
    let path = dir.0.join("socket");
    let mut listener = keyed().address(Address::unix(&path)).bind().unwrap();
    for sent in
        [&b"\0\0\x01\x01"[..], b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff\0\0\0\x01\0\0\0\0", b"GET / HTTP/1.1"]
    {
        let before = listener.refused();
        let mut peer = UnixStream::connect(&path).unwrap();
        peer.write_all(sent).unwrap();
        while listener.refused() == before {
            let soon = Duration::from_millis(10);
            assert!(matches!(listener.accept_timeout::<(), ()>(soon), Err(AcceptError::Timeout)));
        }
    }
    drop(listener);
    // The same from a listener to a client.
    let server = UnixListener::bind(&path).unwrap();
    let flooding = thread::spawn(move || {
        let (mut peer, _) = server.accept().unwrap();
        peer.write_all(&[b"\0\0\x10\0#CHALLENGE#".to_vec(), vec![b'x'; 4096]].concat()).unwrap();
        let _reset = peer.read_to_end(&mut Vec::new());
    });
    match Client::connect::<(), ()>(&Address::unix(&path), Some(&key())).unwrap_err() {
        ConnectError::Authentication { cause: AuthenticationError::Protocol(_), .. } => {}
        other => panic!("{other:?}"),
    }
    flooding.join().unwrap();
}

#[test]
fn peers_that_hang_up_are_counted() {
    let _watchdog = watchdog();
    let mut listener = keyed().address(Address::tcp("127.0.0.1", 0)).bind().unwrap();
    let Address::Tcp { host, port } = listener.address().clone() else { panic!("not TCP") };
    drop(TcpStream::connect((host, port)).unwrap());
    while listener.refused() == 0 {
        let soon = Duration::from_millis(10);
        assert!(matches!(listener.accept_timeout::<(), ()>(soon), Err(AcceptError::Timeout)));
    }
}

#[test]
fn a_listener_can_be_waited_for() {
    let _watchdog = watchdog();
    let mut listener = keyed().bind().unwrap();
    assert!(wait(&[&listener], Some(Duration::ZERO)).unwrap().is_empty());
    let address = listener.address().clone();
    let client = thread::spawn(move || echoed(Client::connect(&address, Some(&key())).unwrap()));
    let peer: Connection<String, String> = loop {
        assert_eq!(wait(&[&listener], None).unwrap(), [0]);
        match listener.accept_timeout(Duration::ZERO) {
            Ok(peer) => break peer,
            Err(AcceptError::Timeout) => {}
            Err(error) => panic!("{error}"),
        }
    };
    peer.send(&peer.recv().unwrap()).unwrap();
    client.join().unwrap();
    assert!(wait(&[&listener], Some(Duration::ZERO)).unwrap().is_empty());
}

#[test]
fn nobody_there_is_an_error() {
    let _watchdog = watchdog();
    let dir = scratch("nobody");
    let listener = Listener::bind(Address::tcp("127.0.0.1", 0)).unwrap();
    let port = listener.address().clone();
    drop(listener);
    let nowhere = [Address::unix(dir.0.join("none")), Address::Abstract(b"procession none".to_vec()), port];
    for address in nowhere {
        match Client::connect::<(), ()>(&address, None).unwrap_err() {
            ConnectError::Refused { address: found, .. } => assert_eq!(found, address),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_socket_file_goes_with_its_listener() {
    let _watchdog = watchdog();
    let dir = scratch("file");
    let path = dir.0.join("socket");
    let listener = Listener::bind(Address::unix(&path)).unwrap();
    match Listener::bind(Address::unix(&path)).unwrap_err() {
        ListenError::InUse(address) => assert_eq!(address, Address::unix(&path)),
        other => panic!("{other:?}"),
    }
    // Asking has left no trace: the next connection is ours.
    let serving = echo(listener, 1);
    echoed(Client::connect(&Address::unix(&path), None).unwrap());
    drop(serving.join().unwrap());
    assert!(!path.exists());
    // A file that has become another's stays.
    let first = Listener::bind(Address::unix(&path)).unwrap();
    std::fs::remove_file(&path).unwrap();
    let second = Listener::bind(Address::unix(&path)).unwrap();
    drop(first);
    assert!(path.exists());
    drop(second);
    assert!(!path.exists());
}

#[test]
fn a_dead_listeners_socket_file_is_replaced() {
    let _watchdog = watchdog();
    let dir = scratch("stale");
    let path = dir.0.join("socket");
    let script = "import os, sys, socket
s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1])
if sys.argv[2] == 'listen': s.listen()
print('bound', flush=True); sys.stdin.read()";
    for listens in ["listen", "only bind"] {
        let mut command = python(script);
        command.arg(&path).arg(listens).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = Reaped(start(&mut command));
        expect_line(&mut child.0, "bound");
        assert!(matches!(Listener::bind(Address::unix(&path)), Err(ListenError::InUse(_))));
        child.0.kill().unwrap();
        child.0.wait().unwrap();
        assert!(path.exists());
        let serving = echo(Listener::bind(Address::unix(&path)).unwrap(), 1);
        echoed(Client::connect(&Address::unix(&path), None).unwrap());
        serving.join().unwrap();
    }
}

#[test]
fn what_is_not_a_left_over_socket_is_left_alone() {
    let _watchdog = watchdog();
    let dir = scratch("others");
    let path = dir.0.join("file");
    std::fs::write(&path, "precious").unwrap();
    assert!(
        matches!(Listener::bind(Address::unix(&path)), Err(ListenError::NotASocket(found)) if found == path)
    );
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    let path = dir.0.join("datagrams");
    let _datagrams = UnixDatagram::bind(&path).unwrap();
    assert!(matches!(Listener::bind(Address::unix(&path)), Err(ListenError::InUse(_))));
    let path = dir.0.join("x".repeat(120));
    assert!(matches!(Listener::bind(Address::unix(path)), Err(ListenError::PathTooLong(_))));
    let path = dir.0.join("missing").join("socket");
    assert!(matches!(Listener::bind(Address::unix(path)), Err(ListenError::System { .. })));
    let taken = Listener::builder().bind().unwrap();
    assert!(matches!(Listener::bind(taken.address().clone()), Err(ListenError::InUse(_))));
}

#[test]
fn a_forked_child_leaves_the_file_and_can_accept() {
    let _watchdog = watchdog();
    if role().is_none() {
        assert!(rerun("fork").status().unwrap().success());
        return;
    }
    let dir = scratch("forked");
    let path = dir.0.join("socket");
    let mut listener = keyed().address(Address::unix(&path)).bind().unwrap();
    let waiting = Duration::from_millis(1);
    let silent = UnixStream::connect(&path).unwrap();
    assert!(matches!(listener.accept_timeout::<(), ()>(waiting), Err(AcceptError::Timeout)));
    // SAFETY: the child only uses memory and locks that no other thread of this process touches, and leaves
    // with `_exit`.
    if unsafe { libc::fork() } == 0 {
        let peer: Bytes = listener.accept().unwrap();
        peer.send_bytes(b"from the child").unwrap();
        drop(listener);
        // SAFETY: ends the process without running the test harness's clean-up.
        unsafe { libc::_exit(0) }
    }
    let peer: Bytes = Client::connect(&Address::unix(&path), Some(&key())).unwrap();
    assert_eq!(peer.recv_bytes().unwrap(), b"from the child");
    rustix::process::wait(rustix::process::WaitOptions::empty()).unwrap();
    assert!(path.exists());
    // The parent's own handshakes are untouched.
    drop(silent);
    while listener.refused() == 0 {
        assert!(matches!(listener.accept_timeout::<(), ()>(waiting), Err(AcceptError::Timeout)));
    }
}

#[test]
fn no_descriptor_is_left_behind() {
    let _watchdog = watchdog();
    if role().is_none() {
        assert!(rerun("count").status().unwrap().success());
        return;
    }
    let dir = scratch("leak");
    let path = dir.0.join("socket");
    let cycle = || {
        let listener = keyed().address(Address::unix(&path)).bind().unwrap();
        let serving = echo(listener, 1);
        let wrong = Client::connect::<(), ()>(&Address::unix(&path), Some(&AuthKey::random()));
        assert!(wrong.is_err());
        echoed(Client::connect(&Address::unix(&path), Some(&key())).unwrap());
        serving.join().unwrap();
    };
    cycle();
    let before = descriptors();
    (0..100).for_each(|_| cycle());
    assert_eq!(descriptors(), before);
}

fn expect_line(child: &mut Child, expected: &str) {
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line.trim_end(), expected);
}

/// What a Python program uses for its address.
fn for_python(address: &Address) -> String {
    match address {
        Address::Unix(path) => format!("{:?}", path.to_str().unwrap()),
        Address::Abstract(name) => format!("'\\0' + {:?}", str::from_utf8(name).unwrap()),
        Address::Tcp { host, port } => format!("({host:?}, {port})"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_python_client_exchanges_bytes_with_a_listener() {
    let _watchdog = watchdog();
    let dir = scratch("python-client");
    for address in [None, Some(Address::unix(dir.0.join("s"))), Some(Address::tcp("127.0.0.1", 0))] {
        let builder = match address {
            Some(address) => keyed().address(address),
            None => keyed(),
        };
        let mut listener = builder.bind().unwrap();
        let script = format!(
            "from multiprocessing import AuthenticationError
from multiprocessing.connection import Client
for key in (b'wrong', b''):
    try: Client({address}, authkey=key)
    except AuthenticationError: pass
    else: raise SystemExit('a wrong key was accepted')
c = Client({address}, authkey=b'secret')
c.send_bytes(b'from python' * 100000)
assert c.recv_bytes() == b'from rust' * 100000
c.send_bytes(b'')
try: c.recv_bytes()
except EOFError: print('done')",
            address = for_python(listener.address())
        );
        let mut child = Reaped(start(python(&script).stdout(Stdio::piped())));
        let peer: Bytes = listener.accept().unwrap();
        assert!(peer.recv_bytes().unwrap() == b"from python".repeat(100_000));
        peer.send_bytes(&b"from rust".repeat(100_000)).unwrap();
        assert_eq!(peer.recv_bytes().unwrap(), b"");
        drop(peer);
        expect_line(&mut child.0, "done");
        assert!(child.0.wait().unwrap().success());
        assert_eq!(listener.refused(), 2);
    }
}

#[test]
fn a_client_exchanges_bytes_with_a_python_listener() {
    let _watchdog = watchdog();
    let dir = scratch("python-listener");
    let path = dir.0.join("socket");
    let script = "import sys
from multiprocessing import AuthenticationError
from multiprocessing.connection import Listener
with Listener(sys.argv[1], authkey=b'secret') as l:
    print('listening', flush=True)
    try: l.accept()
    except AuthenticationError: print('refused', flush=True)
    c = l.accept()
    assert c.recv_bytes() == b'from rust' * 100000
    c.send_bytes(b'from python' * 100000)
    try: c.recv_bytes()
    except EOFError: print('done')";
    let mut child = Reaped(start(python(script).arg(&path).stdout(Stdio::piped())));
    let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
    let mut expect = |expected: &str| assert_eq!(lines.next().unwrap().unwrap(), expected);
    expect("listening");
    let address = Address::unix(&path);
    match Client::connect::<(), ()>(&address, Some(&AuthKey::from("wrong"))).unwrap_err() {
        ConnectError::Authentication { cause: AuthenticationError::Rejected, .. } => {}
        other => panic!("{other:?}"),
    }
    expect("refused");
    let peer: Bytes = Client::connect(&address, Some(&key())).unwrap();
    peer.send_bytes(&b"from rust".repeat(100_000)).unwrap();
    assert!(peer.recv_bytes().unwrap() == b"from python".repeat(100_000));
    drop(peer);
    expect("done");
    assert!(child.0.wait().unwrap().success());
}

/// Whichever version python3 is, its `hmac` can play both forms of the protocol.
#[test]
fn both_forms_of_the_protocol_are_spoken() {
    let _watchdog = watchdog();
    let dir = scratch("forms");
    let path = dir.0.join("socket");
    let script = "import hmac, os, sys
from multiprocessing.connection import Client, Listener
key, form, side, path = b'secret', sys.argv[1], sys.argv[2], sys.argv[3]
def mac(message, digest): return hmac.new(key, message, digest).digest()
def answer(c):
    m = c.recv_bytes(256)
    assert m.startswith(b'#CHALLENGE#'), m
    m = m[11:]
    assert m.startswith(b'{sha256}') and len(m) > 28, m
    c.send_bytes(mac(m, 'md5') if form == 'md5' else b'{%s}' % form.encode() + mac(m, form))
    assert c.recv_bytes(256) == b'#WELCOME#'
def challenge(c):
    m = os.urandom(20) if form == 'md5' else b'{%s}' % form.encode() + os.urandom(40)
    c.send_bytes(b'#CHALLENGE#' + m)
    expected = mac(m, form)
    assert c.recv_bytes(256) == (expected if form == 'md5' else b'{%s}' % form.encode() + expected)
    c.send_bytes(b'#WELCOME#')
if side == 'client':
    c = Client(path); answer(c); challenge(c)
else:
    l = Listener(path); print('listening', flush=True); c = l.accept()
    challenge(c)
    m = c.recv_bytes(256)[11:]
    assert m.startswith(b'{sha256}')
    c.send_bytes(mac(m, 'md5') if form == 'md5' else b'{%s}' % form.encode() + mac(m, form))
    assert c.recv_bytes(256) == b'#WELCOME#'
c.send_bytes(b'in')";
    let python = |form: &str, side: &str, path: &Path| {
        let mut command = python(script);
        command.args([form, side]).arg(path).stdout(Stdio::piped());
        Reaped(start(&mut command))
    };
    for form in ["md5", "sha256", "sha384"] {
        let mut listener = keyed().address(Address::unix(&path)).bind().unwrap();
        let mut client = python(form, "client", &path);
        let peer: Bytes = listener.accept().unwrap();
        assert_eq!(peer.recv_bytes().unwrap(), b"in", "{form}");
        assert!(client.0.wait().unwrap().success());
        drop(listener);

        let mut server = python(form, "listener", &path);
        expect_line(&mut server.0, "listening");
        let peer: Bytes = Client::connect(&Address::unix(&path), Some(&key())).unwrap();
        assert_eq!(peer.recv_bytes().unwrap(), b"in", "{form}");
        assert!(server.0.wait().unwrap().success());
    }
}
