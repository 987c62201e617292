"""Peers of a manager that do not have its key: they learn nothing and hold up nobody."""

import contextlib
import multiprocessing.connection
import os
import re
import resource
import socket
import struct
import threading
import time

import procession
import pytest
from processes import until
from procession.managers import SyncManager


class Server:
    def threads(self):
        return threading.active_count()

    def descriptors(self):
        return len(os.listdir("/proc/self/fd"))


class Manager(SyncManager):
    class _Server(SyncManager._Server):
        handshake_seconds = 1.5
        handshakes = 8


Manager.register("Server", Server)


@pytest.fixture(params=["unix", "tcp"])
def manager(request):
    address = None if request.param == "unix" else ("127.0.0.1", 0)
    # Under fork, so that the class needs no name.
    with Manager(address, b"secret", ctx=procession.get_context("fork")) as manager:
        yield manager


def connect(manager):
    sock = socket.socket(socket.AF_UNIX if isinstance(manager.address, str) else socket.AF_INET)
    sock.connect(manager.address)
    return sock


def frame(data):
    return struct.pack("!i", len(data)) + data


def received(sock):
    """All that comes until the manager hangs up."""
    data = b""
    try:
        while part := sock.recv(4096):
            data += part
    except ConnectionResetError:
        pass
    return data


def is_nothing(data):
    """A challenge of random bytes, and the word that it was not met."""
    challenge = rb"\0\0\0.#CHALLENGE#(\{sha256\}.{40}|.{20})"
    return re.fullmatch(challenge + rb"(\0\0\0\x09#FAILURE#)?", data, re.DOTALL) is not None


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0" * 1000,
        os.urandom(5000),
        struct.pack("!i", 2**31 - 1),
        struct.pack("!iQ", -1, 2**63),
        struct.pack("!i", -2),
        frame(b""),
        frame(b"{md5}" + bytes(16)),
        frame(b"{sha256}" + bytes(32)),
        frame(b"#WELCOME#") + frame(b"#CHALLENGE#" + bytes(40)),
        # What a client would ask if it had been admitted.
        frame(bytes(16)) + frame(b"\x80\x04(N\x8c\x05dummy))}t."),
    ],
)
def test_garbage(manager, garbage):
    with connect(manager) as sock:
        sock.sendall(garbage)
        assert is_nothing(received(sock))
    assert manager.list([1])[0] == 1


def test_the_silent_and_the_slow_are_hung_up_on(manager):
    with connect(manager) as silent, connect(manager) as slow:
        ending = threading.Event()

        def drip():
            try:
                for byte in frame(b"{sha256}" + bytes(32)):
                    slow.sendall(bytes([byte]))
                    if ending.wait(0.2):
                        return
            except (BrokenPipeError, ConnectionResetError):
                pass

        thread = threading.Thread(target=drip)
        thread.start()
        table = manager.dict(a=1)
        assert table["a"] == 1
        assert is_nothing(received(silent))
        assert is_nothing(received(slow))
        ending.set()
        thread.join()


def test_many_are_bounded_and_hold_up_nobody(manager):
    server = manager.Server()
    threads, descriptors = server.threads(), server.descriptors()
    crowd = [connect(manager) for _ in range(100)]
    try:
        # Another thread has a connection of its own, with a handshake.
        made = []
        thread = threading.Thread(target=lambda: made.append(list(manager.list([1]))))
        thread.start()
        thread.join()
        assert made == [[1]]
        until(lambda: server.threads() <= threads + 8)
        assert server.descriptors() <= descriptors + 8 + 2
    finally:
        for sock in crowd:
            sock.close()
    until(lambda: server.threads() <= threads)


def test_a_flood_while_clients_connect(manager):
    ending = threading.Event()

    def flood():
        while not ending.is_set():
            with connect(manager) as sock:
                sock.sendall(b"\0\0\0\x40")

    attackers = [threading.Thread(target=flood) for _ in range(2)]
    for thread in attackers:
        thread.start()
    try:
        made = []
        for _ in range(10):
            client = threading.Thread(target=lambda: made.append(list(manager.list([1]))))
            client.start()
            client.join()
        assert made == [[1]] * 10
    finally:
        ending.set()
        for thread in attackers:
            thread.join()


class Patient(SyncManager):
    class _Server(SyncManager._Server):
        handshakes = 3
        undisturbed_seconds = 1000.0


def test_a_handshake_is_not_disturbed():
    with Patient(None, b"secret", ctx=procession.get_context("fork")) as manager:
        table = manager.dict(a=1)
        with multiprocessing.connection.Client(manager.address) as slow, contextlib.ExitStack() as crowd:
            for _ in range(10):
                crowd.enter_context(connect(manager))
            time.sleep(0.3)
            multiprocessing.connection.answer_challenge(slow, b"secret")
            multiprocessing.connection.deliver_challenge(slow, b"secret")
        assert table["a"] == 1
        # As soon as there is room for it.
        thread = threading.Thread(target=lambda: table.update(b=2))
        thread.start()
        thread.join()
        assert table["b"] == 2


def test_a_wrong_key(manager):
    client = SyncManager(manager.address, b"guess")
    with pytest.raises(procession.AuthenticationError):
        client.connect()


def test_a_server_that_is_an_impostor(tmp_path):
    """It does not get the key, nor anything by which it could answer another's challenge."""
    address = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()

        def pretend():
            sock, _ = listener.accept()
            with sock:
                sock.sendall(frame(b"#CHALLENGE#" + b"{sha256}" + bytes(40)))
                sock.recv(4096)
                sock.sendall(frame(b"#WELCOME#"))
                # Its own challenge is not answered with anything that it could make up.
                sock.recv(4096)
                sock.sendall(frame(b"{sha256}" + bytes(32)))
                received(sock)

        thread = threading.Thread(target=pretend)
        thread.start()
        with pytest.raises(procession.AuthenticationError):
            SyncManager(address, b"secret").connect()
        thread.join()


def test_descriptors_run_out(tmp_path):
    """Not of the manager's making: it goes on when there are some again."""
    with Manager(str(tmp_path / "s"), b"secret", ctx=procession.get_context("fork")) as manager:
        resource.prlimit(manager._process.pid, resource.RLIMIT_NOFILE, (40, 40))
        table = manager.dict()
        crowd = [connect(manager) for _ in range(60)]
        time.sleep(0.2)
        table["a"] = 1
        for sock in crowd:
            sock.close()
        assert list(manager.list([1])) == [1]
        assert table["a"] == 1
