"""A manager's process: the objects, who holds them, and the connections of those who use them."""

import itertools
import os
import socket
import sys
import threading
import time
import weakref
from collections import deque
from multiprocessing import connection, managers as _stdlib, process, util
from multiprocessing.pool import ExceptionWithTraceback
from traceback import format_exc

from . import _cpython_clients
from ._connection import dumps, keep_alive, loads, receive
from ._errors import ManagerDied, Raised
from ._interruptible import HungUp
from ._object_table import Holder, ObjectTable

# `procession.install` replaces the name.
THEIR_TOKEN = _stdlib.Token
_servers = weakref.WeakSet()
# How often it is looked whether a peer that was accepted owes an answer.
_LOOK_SECONDS = 0.02


def server_of(ident):
    """The server in this process that has the object; None if there is none."""
    for server in list(_servers):
        if ident.startswith(server.nonce):
            return server
    return None


class _Stranger:
    """A connection whose other end has not yet proved that it knows the key."""

    def __init__(self, conn):
        self.since = time.monotonic()
        self.recv_bytes = conn.recv_bytes
        self._conn = conn
        self._asked = None

    def send_bytes(self, data):
        self._conn.send_bytes(data)
        self._asked = time.monotonic()

    def is_silent(self, seconds):
        """Whether it has owed an answer for so long. This process may be slow to read one."""
        asked = self._asked
        return asked is not None and time.monotonic() - asked >= seconds and not self._conn.poll(0)

    def abort(self):
        """Have its thread see the end of the file and close it."""
        sock = socket.socket(fileno=self._conn.fileno())
        try:
            sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        finally:
            sock.detach()


class Server(ObjectTable, _stdlib.Server):
    """The server of a manager of this package.

    Peers have `handshake_seconds` to prove that they know the key, at most `handshakes` of them at a time. When
    another comes, the oldest goes that has not answered for `undisturbed_seconds`. What a process has sent in a message that nobody has received
    is kept as long as the process lives, and `transit_seconds` longer.
    """

    public = [*_stdlib.Server.public, "make", "attend", "open_session", "serve"]
    # These end with SystemExit when their connections end.
    _serving = ("accept_connection", "open_session", "serve")
    handshake_seconds = 10.0
    handshakes = 64
    undisturbed_seconds = 0.25
    transit_seconds = 3600.0
    # What is held for a child that has yet to connect, and how long it waits for its parent's word of it.
    unborn_seconds = 60.0
    adoption_seconds = 0.3

    def __init__(self, registry, address, authkey, serializer):
        if not isinstance(authkey, bytes):
            raise TypeError(f"Authkey {authkey!r} is type {type(authkey)!s}, not bytes")
        self.registry = registry
        self.authkey = process.AuthenticationString(authkey)
        listener, _ = _stdlib.listener_client[serializer]
        self.listener = listener(address=address, backlog=128)
        self.address = self.listener.address
        self.mutex = threading.RLock()
        self.stop_event = threading.Event()
        self._prepare()
        # By names that the processes have made up: what they hold, and what their children to be do.
        self._named = weakref.WeakValueDictionary()
        self._clones = {}
        self._cloned = threading.Condition(self.mutex)
        # By connections, in order.
        self._strangers = {}
        self._room = threading.Condition(self.mutex)
        self._open = set()
        _servers.add(self)

    # Accepting

    def serve_forever(self):
        """Serve until a manager shuts it down; then exit."""
        process.current_process()._manager_server = self
        try:
            accepter = threading.Thread(target=self.accepter, daemon=True)
            accepter.start()
            try:
                while not self.stop_event.wait(1):
                    self._tidy()
            except (KeyboardInterrupt, SystemExit):
                pass
        finally:
            if sys.stdout != sys.__stdout__:
                util.debug("resetting stdout, stderr")
                sys.stdout = sys.__stdout__
                sys.stderr = sys.__stderr__
            sys.exit(0)

    def accepter(self):
        """Accept connections, each of which is a thread's; none is waited for here."""
        while not self.stop_event.is_set():
            self._make_room()
            try:
                accepted = self.listener.accept()
            except OSError as error:
                util.info("manager cannot accept: %r", error)
                # No descriptor is left, perhaps. Those of peers that prove nothing come back.
                self._abort_a_stranger()
                time.sleep(0.05)
                continue
            with self.mutex:
                self._open.add(accepted)
                self._strangers[accepted] = _Stranger(accepted)
            try:
                threading.Thread(target=self.handle_request, args=(accepted,), daemon=True).start()
            except RuntimeError as error:
                util.info("manager cannot start a thread: %r", error)
                self._close(accepted)

    def _make_room(self):
        with self._room:
            while len(self._strangers) >= self.handshakes and not self._abort_a_stranger():
                self._room.wait(_LOOK_SECONDS)

    def _abort_a_stranger(self):
        """Have the oldest go that owes an answer; False if there is none."""
        with self.mutex:
            for accepted, stranger in self._strangers.items():
                if stranger.is_silent(self.undisturbed_seconds):
                    del self._strangers[accepted]
                    stranger.abort()
                    return True
        return False

    def _close(self, accepted):
        with self._room:
            self._strangers.pop(accepted, None)
            self._room.notify()
            self._open.discard(accepted)
            accepted.close()

    def _tidy(self):
        now = time.monotonic()
        with self.mutex:
            for accepted, stranger in list(self._strangers.items()):
                if stranger.since + self.handshake_seconds < now:
                    del self._strangers[accepted]
                    stranger.abort()
            # They are in order.
            late = list(itertools.takewhile(lambda ticket: self._orphans[ticket] < now, self._orphans))
            clones = [name for name, (deadline, _) in self._clones.items() if deadline < now]
            dropped = [self._clones.pop(name) for name in clones]
        # Outside of the lock: it may be the end of objects.
        for ticket in late:
            self.settle(ticket)
        del dropped

    def _forked(self):
        """Leave all to the parent: its peers see its end by the end of their connections."""
        _servers.discard(self)
        for accepted in self._open:
            accepted.close()
        sock = getattr(getattr(self.listener, "_listener", None), "_socket", None)
        if sock is not None:
            sock.close()

    def handle_request(self, conn):
        """Serve one connection. Who does not prove that it has the key is told nothing."""
        try:
            try:
                connection.deliver_challenge(self._strangers[conn], self.authkey)
                with self._room:
                    if self._strangers.pop(conn, None) is None:
                        return
                    self._room.notify()
                connection.answer_challenge(conn, self.authkey)
                sock = socket.socket(fileno=conn.fileno())
                try:
                    keep_alive(sock)
                finally:
                    sock.detach()
            except Exception as error:
                util.info("manager refused a peer: %r", error)
                return
            self._handle_request(conn)
        except SystemExit:
            # `serve_client` of CPython's server ends so; a subclass may call it.
            pass
        finally:
            self._close(conn)

    def _handle_request(self, c):
        try:
            data = receive(c)
        except (EOFError, OSError):
            return
        name = None
        try:
            _, name, args, kwds = _cpython_clients.loads(self, c, data)
            assert name in self.public, f"{name!r} unrecognized"
            message = "#RETURN", getattr(self, name)(c, *args, **kwds)
        except BaseException as error:
            if name in self._serving and isinstance(error, SystemExit):
                raise
            message = "#TRACEBACK", format_exc()
        try:
            c.send_bytes(self._dumped(c, None, message))
        except OSError as error:
            util.info("manager could not reply to %r: %r", name, error)

    # Serving calls

    def accept_connection(self, c, name):
        """Serve the calls of a thread of a client that is CPython's."""
        threading.current_thread().name = name
        c.send(("#RETURN", None))
        self.serve_client(c)
        sys.exit(0)

    def serve(self, c, name):
        """Serve the calls of a thread of a client."""
        threading.current_thread().name = name
        c.send(("#RETURN", None))
        self._serve_calls(c, Holder())
        sys.exit(0)

    def serve_client(self, conn):
        """Serve the calls of a thread of a client that is CPython's."""
        self._serve_calls(conn, None)

    def _serve_calls(self, conn, holder):
        # The tickets in a reply are the connection's.
        self._thread.holder = holder
        try:
            while not self.stop_event.is_set():
                try:
                    data = receive(conn)
                except (EOFError, OSError):
                    return
                try:
                    request = (
                        _cpython_clients.loads(self, conn, data) if holder is None else loads(conn, data)
                    )
                except BaseException as error:
                    reply = self._failure(holder, error, "#TRACEBACK")
                else:
                    # The client has what the last reply had for it.
                    self._discard(holder)
                    try:
                        reply = self._reply(conn, holder, request)
                    except HungUp:
                        return
                    # Nothing here may keep what is dropped while it waits.
                    del request
                data = self._dumped(conn, holder, reply)
                del reply
                try:
                    conn.send_bytes(data)
                except OSError as error:
                    util.info("manager could not reply: %r", error)
                    return
                del data
        finally:
            self._discard(holder)
            self._thread.holder = None

    def _dumped(self, conn, holder, reply):
        try:
            return dumps(conn, reply)
        except BaseException as error:
            return dumps(conn, self._failure(holder, error, "#UNSERIALIZABLE"))

    def _failure(self, holder, error, kind):
        """The reply when what is in a message does not get through. Another manager's end is none of this one's."""
        if holder is not None and isinstance(error, ManagerDied):
            return "#ERROR", Raised(error)
        return kind, format_exc()

    def _reply(self, conn, holder, request):
        try:
            ident, method, args, kwds = request
        except Exception:
            return "#TRACEBACK", format_exc()
        if ident is None:
            try:
                assert method in self.public, f"{method!r} unrecognized"
                return "#RETURN", getattr(self, method)(conn, *args, **kwds)
            except BaseException:
                # SystemExit too: it would end only this thread, and the client would hear nothing.
                return "#TRACEBACK", format_exc()
        kind, result = self.perform(conn, ident, method, args, kwds)
        try:
            if kind == "#ERROR" and holder is not None:
                return kind, Raised(result)
            if kind == "#ERROR":
                return kind, ExceptionWithTraceback(result, result.__traceback__)
            if kind == "#PROXY" and holder is None:
                exposed, token, _ = result
                return kind, (exposed, THEIR_TOKEN(token.typeid, token.address, token.id))
            return kind, result
        finally:
            # An exception refers to this frame by its traceback, and so to what is dropped next.
            del result

    # Sessions

    def open_session(self, c, name):
        """Serve the session of a process, until that ends."""
        holder = Holder()
        self._named[name] = holder
        sock = socket.socket(fileno=os.dup(c.fileno()))
        c.send(("#RETURN", (os.getpid(), self.nonce)))
        self._serve_session(sock, holder)
        sys.exit(0)

    def _serve_session(self, sock, holder, greeting=b""):
        with self.mutex:
            self._open.add(sock)
            self._holders.add(holder)
        received = b""
        descriptors = deque()
        try:
            sock.sendall(greeting)
            while True:
                data, fds, _, _ = socket.recv_fds(sock, 65536, 16)
                descriptors += fds
                if not data:
                    return
                *lines, received = (received + data).split(b"\n")
                for line in lines:
                    words = line.decode().split(" ")
                    try:
                        reply = self._attend(holder, words, descriptors)
                    except Exception as error:
                        # It costs only this request.
                        util.info("manager could not attend to %r: %r", line, error)
                        reply = f"{words[1]} {error!r}"
                    if reply is not None:
                        sock.sendall(reply.encode() + b"\n")
        except OSError as error:
            util.info("the session of a process has ended: %r", error)
        finally:
            for fd in descriptors:
                os.close(fd)
            self._close(sock)
            self._end(holder)

    def attend(self, c, name, *words):
        """Attend to a request of a session's in a call: the process is in the middle of another one."""
        reply = self._attend(self._named[name], [words[0], "-", *words[1:]], deque())
        return reply.partition(" ")[2]

    def _attend(self, holder, words, descriptors):
        match words:
            case ("hold" | "show") as word, number, key, ident, ticket:
                try:
                    with self.mutex:
                        holder.held[key] = self.claim(ident, ticket, word == "hold")
                except _stdlib.RemoteError:
                    return f"{number} gone"
                return f"{number} ok"
            case "drop", *keys:
                for key in keys:
                    # One that was never held is of a process that was interrupted.
                    holder.held.pop(key, None)
            case ("ticket" | "lend") as word, number, key, ticket:
                entry = holder.held.get(key)
                if entry is None:
                    return f"{number} gone"
                self.issue(entry, ticket, holder.lent if word == "lend" else holder.tickets)
                return f"{number} ok"
            case "settle", ticket:
                self.settle(ticket)
            case "sync", number:
                return f"{number} ok"
            case "fork", name:
                self._fork(name, Holder(holder.held), descriptors)
            case "adopt", origin, *pairs:
                self._adopt(holder, origin, zip(pairs[::2], pairs[1::2], strict=True))
            case _:
                util.info("a session said what this manager does not know: %r", words)
        return None

    def _fork(self, name, holder, descriptors):
        """Hold for a child what its parent holds, until the child's connection says more or ends."""
        # There is none if the parent had none to spare, nor if this process has no number left for it.
        if descriptors:
            sock = socket.socket(fileno=descriptors.popleft())
            args = sock, holder, b"ok\n"
            self._named[name] = holder
            try:
                threading.Thread(target=self._serve_session, args=args, daemon=True).start()
                return
            except RuntimeError as error:
                util.info("a child has to connect by itself: %r", error)
                sock.close()
        with self._cloned:
            self._clones[name] = time.monotonic() + self.unborn_seconds, holder
            self._cloned.notify_all()

    def _adopt(self, holder, origin, references):
        """What a child by fork holds, which has connected by itself."""
        with self._cloned:
            if origin != "-":
                # Its parent's word comes over another connection.
                self._cloned.wait_for(lambda: origin in self._clones, self.adoption_seconds)
            _, clone = self._clones.pop(origin, (None, Holder()))
            for key, ident in references:
                entry = clone.held.get(key) or self._entries.get(ident)
                if entry is not None:
                    holder.held[key] = entry
        # Outside of the lock: it may be the end of objects.
        del clone

    def _end(self, holder):
        with self.mutex:
            self._holders.discard(holder)
            until = time.monotonic() + self.transit_seconds
            for ticket in holder.tickets:
                entry, _ = self._tickets[ticket]
                self._tickets[ticket] = entry, None
                self._orphans[ticket] = until
            holder.tickets.clear()
            held = dict(holder.held)
            holder.held.clear()
        self._discard(holder)
        # Outside of the lock: it may be the end of objects.
        del held


def _after_fork_in_child():
    for server in list(_servers):
        server._forked()


os.register_at_fork(after_in_child=_after_fork_in_child)


class SharedMemoryServer(Server):
    """The server of a manager of blocks of shared memory."""

    public = [*Server.public, "track_segment", "release_segment", "list_segments"]

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        address = os.fsdecode(self.address) if isinstance(self.address, bytes) else self.address
        self.shared_memory_context = _stdlib._SharedMemoryTracker(f"shm_{address}_{os.getpid()}")

    def create(self, c, typeid, /, *args, **kwargs):
        """Make an object that is not in a block of shared memory."""
        if hasattr(self.registry[typeid][-1], "_shared_memory_proxy"):
            kwargs["shared_memory_context"] = self.shared_memory_context
        return super().create(c, typeid, *args, **kwargs)

    def shutdown(self, c):
        """Remove all blocks and end."""
        for name in list(self.shared_memory_context.segment_names):
            try:
                self.shared_memory_context.destroy_segment(name)
            except FileNotFoundError as error:
                util.info("a block has been removed by somebody else: %r", error)
        return super().shutdown(c)

    track_segment = _stdlib.SharedMemoryServer.track_segment
    release_segment = _stdlib.SharedMemoryServer.release_segment
    list_segments = _stdlib.SharedMemoryServer.list_segments
