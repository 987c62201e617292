"""A manager's process: the objects, who holds them, and the connections of those who use them."""

import os
import socket
import sys
import threading
import time
import weakref
from collections import OrderedDict, deque
from multiprocessing import connection, managers as _stdlib, process, util
from multiprocessing.pool import ExceptionWithTraceback
from traceback import format_exc

from ._connection import dumps, keep_alive, loads, receive
from ._errors import Raised
from ._objects import Holder, Objects
from ._waiting import HungUp

# `procession.install` replaces the name.
THEIR_TOKEN = _stdlib.Token
_servers = weakref.WeakSet()


def server_of(ident):
    """The server in this process that has the object; None if there is none."""
    for server in list(_servers):
        if ident.startswith(server.nonce):
            return server
    return None


class Server(Objects, _stdlib.Server):
    """The server of a manager of this package.

    Peers that do not know the key have `handshake_seconds` to prove it, at most `handshakes` of them at a
    time; when there are more, the oldest goes. What a process has sent in a message that nobody has received
    is kept as long as the process lives, and `transit_seconds` longer.
    """

    public = [*_stdlib.Server.public, "make", "open_session", "serve"]
    handshake_seconds = 10.0
    handshakes = 64
    transit_seconds = 3600.0

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
        self._clones = {}
        self._cloned = threading.Condition(self.mutex)
        self._pending = OrderedDict()
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
            try:
                accepted = self.listener.accept()
            except OSError as error:
                util.info("manager cannot accept: %r", error)
                # No descriptor is left, perhaps. Those of peers that prove nothing come back.
                self._abort_oldest()
                time.sleep(0.05)
                continue
            with self.mutex:
                self._open.add(accepted)
                self._pending[accepted] = time.monotonic() + self.handshake_seconds
                if len(self._pending) > self.handshakes:
                    self._abort_oldest()
            try:
                threading.Thread(target=self.handle_request, args=(accepted,), daemon=True).start()
            except RuntimeError as error:
                util.info("manager cannot start a thread: %r", error)
                self._close(accepted)

    def _abort_oldest(self):
        with self.mutex:
            if self._pending:
                accepted, _ = self._pending.popitem(last=False)
                # Its thread sees the end of the file and closes it.
                sock = socket.socket(fileno=accepted.fileno())
                try:
                    sock.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
                finally:
                    sock.detach()

    def _close(self, accepted):
        with self.mutex:
            self._pending.pop(accepted, None)
            self._open.discard(accepted)
            accepted.close()

    def _tidy(self):
        now = time.monotonic()
        with self.mutex:
            while self._pending and next(iter(self._pending.values())) < now:
                self._abort_oldest()
            while self._orphans and self._orphans[0][0] < now:
                self._tickets.pop(self._orphans.popleft()[1], None)
            for name, (deadline, _) in list(self._clones.items()):
                if deadline < now:
                    del self._clones[name]

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
                connection.deliver_challenge(conn, self.authkey)
                connection.answer_challenge(conn, self.authkey)
                keep_alive(conn)
                with self.mutex:
                    if self._pending.pop(conn, None) is None:
                        return
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
        request = None
        try:
            request = c.recv()
            _, name, args, kwds = request
            assert name in self.public, f"{name!r} unrecognized"
            message = "#RETURN", getattr(self, name)(c, *args, **kwds)
        except (EOFError, ConnectionError):
            return
        except Exception:
            message = "#TRACEBACK", format_exc()
        try:
            c.send(message)
        except OSError as error:
            util.info("manager could not reply to %r: %r", request, error)
        except Exception:
            c.send(("#TRACEBACK", format_exc()))

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
                    request = loads(conn, data)
                except Exception:
                    reply = "#TRACEBACK", format_exc()
                else:
                    # The client has what the last reply had for it.
                    self._discard(holder)
                    try:
                        reply = self._reply(conn, holder, request)
                    except HungUp:
                        return
                    # Nothing here may keep what is dropped while it waits.
                    del request
                try:
                    data = dumps(conn, reply)
                except Exception:
                    data = dumps(conn, ("#UNSERIALIZABLE", format_exc()))
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

    def _reply(self, conn, holder, request):
        try:
            ident, method, args, kwds = request
        except Exception:
            return "#TRACEBACK", format_exc()
        if ident is None:
            try:
                assert method in self.public, f"{method!r} unrecognized"
                return "#RETURN", getattr(self, method)(conn, *args, **kwds)
            except Exception:
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

    def open_session(self, c, clone=""):
        """Serve the session of a process, until that ends."""
        holder = Holder()
        if clone:
            with self._cloned:
                # The parent's word that it forks comes over another connection.
                self._cloned.wait_for(lambda: clone in self._clones, self.handshake_seconds)
                _, holder = self._clones.pop(clone)
        c.send(("#RETURN", (os.getpid(), self.nonce)))
        self._serve_session(socket.socket(fileno=os.dup(c.fileno())), holder)
        sys.exit(0)

    def _serve_session(self, sock, holder):
        with self.mutex:
            self._open.add(sock)
            self._holders.add(holder)
        received = b""
        descriptors = deque()
        try:
            while True:
                data, fds, _, _ = socket.recv_fds(sock, 65536, 16)
                descriptors += fds
                if not data:
                    return
                *lines, received = (received + data).split(b"\n")
                for line in lines:
                    reply = self._attend(holder, line.decode().split(" "), descriptors)
                    if reply is not None:
                        sock.sendall(reply.encode() + b"\n")
        except OSError as error:
            util.info("the session of a process has ended: %r", error)
        finally:
            for fd in descriptors:
                os.close(fd)
            self._close(sock)
            self._end(holder)

    def _attend(self, holder, words, descriptors):
        match words:
            case "hold", number, ident, ticket:
                try:
                    with self.mutex:
                        holder.hold(self.claim(ident, ticket))
                except _stdlib.RemoteError:
                    return f"{number} gone"
                return f"{number} ok"
            case "drop", *idents:
                for ident in idents:
                    holder.drop(ident)
            case ("ticket" | "lend") as word, number, ident:
                tickets = holder.lent if word == "lend" else holder.tickets
                pair = holder.held.get(ident)
                return f"{number} {self.issue(pair[0], tickets) if pair else 'gone'}"
            case "sync", number:
                return f"{number} ok"
            case "fork", "-":
                sock = socket.socket(fileno=descriptors.popleft())
                threading.Thread(
                    target=self._serve_session, args=(sock, Holder(holder.held)), daemon=True
                ).start()
            case "fork", clone:
                with self._cloned:
                    self._clones[clone] = time.monotonic() + 60, Holder(holder.held)
                    self._cloned.notify_all()
            case _:
                util.info("a session said what this manager does not know: %r", words)
        return None

    def _end(self, holder):
        with self.mutex:
            self._holders.discard(holder)
            until = time.monotonic() + self.transit_seconds
            for ticket in holder.tickets:
                entry, _ = self._tickets[ticket]
                self._tickets[ticket] = entry, None
                self._orphans.append((until, ticket))
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
        self.shared_memory_context.unlink()
        return super().shutdown(c)

    track_segment = _stdlib.SharedMemoryServer.track_segment
    release_segment = _stdlib.SharedMemoryServer.release_segment
    list_segments = _stdlib.SharedMemoryServer.list_segments
