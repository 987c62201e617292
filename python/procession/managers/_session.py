"""A process's side of its traffic with a manager's process.

A process has one *session* with each manager whose objects it uses: a connection over which it says of what
objects it has proxies. What the session holds is held until it says otherwise or the connection ends, which
the kernel sees to however the process ends. Calls have connections of their own, one for each thread.

A child by `fork` gets a session that holds the same: before the fork the parent makes the connection and hands
its other end to the manager through its own session, so that no proxy is without its object for a moment.
"""

import os
import socket
import threading
import time
import weakref
from collections import Counter, deque
from contextlib import closing
from multiprocessing import process, util
from multiprocessing.context import AuthenticationError
from multiprocessing.managers import RemoteError, dispatch

from ._connection import connect, dumps, loads, means_the_end, receive
from ._errors import ManagerDied, gone

_sessions = {}
_making = threading.RLock()
# Held by the thread that forks, whose sessions these are.
_forks = threading.Lock()
_forking = []
# What is being unpickled comes over this session.
context = threading.local()


def _keys():
    """The keys of managers that are not this process's own; children get them with the rest of `_config`."""
    return process.current_process()._config.setdefault("procession_manager_keys", {})


def remember_key(address, authkey):
    """Have proxies of the manager that arrive without a key use this one."""
    if authkey != process.current_process().authkey:
        _keys()[address] = process.AuthenticationString(authkey)


def key_of(address):
    """The key of the manager at an address."""
    return _keys().get(address) or process.current_process().authkey


class _Base:
    """What sessions with this package's managers have in common with those with CPython's."""

    def __init__(self, address, authkey, serializer):
        self.address = address
        self.authkey = authkey
        self.serializer = serializer
        self.pid = None
        self.dead = False
        self._calls = threading.local()
        self._connections = weakref.WeakSet()

    def died(self, doing=None):
        """The error of who finds the manager gone."""
        self.dead = True
        return ManagerDied(self.address, self.pid, doing)

    def connection(self):
        """This thread's connection for calls."""
        made = getattr(self._calls, "connection", None)
        if made is None:
            if self.dead:
                raise self.died()
            name = process.current_process().name
            if threading.current_thread() is not threading.main_thread():
                name += "|" + threading.current_thread().name
            try:
                made = connect(self.address, self.authkey, self.serializer)
                dispatch(made, None, self._serve, (name,))
            except (OSError, EOFError) as error:
                if not means_the_end(error) or self._is_busy(error):
                    raise
                raise self.died() from error
            self._connections.add(made)
            self._calls.connection = made
        return made

    def disconnect(self):
        """Close this thread's connection; the next call makes another."""
        made = self._calls.__dict__.pop("connection", None)
        if made is not None:
            made.close()

    def call(self, ident, method, args=(), kwds={}):
        """Call a method of an object, or of the server if `ident` is None. Return the reply's two parts."""
        made = self.connection()
        before = getattr(context, "calling", None)
        context.calling = self
        try:
            data = dumps(made, (ident, method, args, kwds))
        finally:
            context.calling = before
        try:
            made.send_bytes(data)
            del data
            reply = receive(made)
        except (OSError, EOFError) as error:
            self.disconnect()
            if not means_the_end(error):
                raise
            raise self.died(f"a call of {method!r}") from error
        except BaseException:
            # The reply would be taken for that of the next call.
            self.disconnect()
            raise
        before = getattr(context, "session", None)
        context.session = self
        try:
            return loads(made, reply)
        finally:
            context.session = before

    def close(self):
        """Have no more to do with the manager."""
        self.dead = True
        # Other threads may be in a call, so that none is closed here: each is closed when nobody has it.
        self._connections = weakref.WeakSet()
        self._calls = threading.local()

    def _close_connections(self):
        """Close copies of the parent's."""
        for made in list(self._connections):
            made.close()
        self._connections = weakref.WeakSet()
        self._calls = threading.local()


class Session(_Base):
    """A session with a manager of this package."""

    _serve = "serve"

    def __init__(self, address, authkey, serializer):
        super().__init__(address, authkey, serializer)
        self._open()
        self._prepare()

    def _open(self, clone=""):
        made = connect(self.address, self.authkey, self.serializer)
        self.pid, self.nonce = dispatch(made, None, "open_session", (clone,))
        self._sock = socket.socket(fileno=os.dup(made.fileno()))
        made.close()
        self._local = self._sock.family == socket.AF_UNIX

    def _prepare(self):
        self._request = threading.Lock()
        # Held only while something is written, and over a fork.
        self._write = threading.Lock()
        self._number = 0
        self._received = b""
        self._out = bytearray()
        self._dropped = deque()
        self._child = None

    def _is_busy(self, error):
        """Whether the manager has hung up on a new connection, and lives."""
        if isinstance(error, (FileNotFoundError, ConnectionRefusedError)):
            return False
        until = time.monotonic() + 0.5
        while not self.ended() and time.monotonic() < until:
            time.sleep(0.01)
        return not self.dead

    def ended(self):
        """Whether the manager is known to have ended."""
        if not self.dead:
            try:
                self.dead = self._sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
            except BlockingIOError:
                pass
            except OSError:
                self.dead = True
        return self.dead

    def hold(self, ident, ticket=None):
        """Have the manager keep an object for this process; once more, if it does already."""
        if self._ask("hold", ident, ticket or "-") != "ok":
            raise gone(ident)

    def ticket(self, ident):
        """Have the manager keep an object for whoever will show this ticket."""
        # What is in a call of this very manager is of no use to anybody else.
        ticket = self._ask("lend" if getattr(context, "calling", None) is self else "ticket", ident)
        if ticket == "gone":
            raise gone(ident)
        return ticket

    def drop(self, ident):
        """Undo one `hold`. Never waits: it is called wherever an object may be deleted."""
        self._dropped.append(ident)
        self._send_dropped()

    def synchronize(self):
        """Wait until the manager knows all that was dropped."""
        self._ask("sync")

    def close(self):
        """End the session, and with it what it holds."""
        super().close()
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        # Not under the feet of another thread, whose last look at it this is. If a garbage collection in this
        # very thread's request has led here, it is closed when the session is deleted.
        if self._request.acquire(timeout=1):
            if self._write.acquire(timeout=1):
                self._sock.close()
                self._write.release()
            self._request.release()

    def _ask(self, *words):
        with self._request:
            if self.dead:
                raise self.died()
            self._number += 1
            number = str(self._number)
            try:
                self._send(" ".join((words[0], number, *words[1:])))
                while True:
                    while b"\n" not in self._received:
                        data = self._sock.recv(4096)
                        if not data:
                            raise EOFError
                        self._received += data
                    line, _, self._received = self._received.partition(b"\n")
                    # An interrupted request has left its reply.
                    if line.startswith(number.encode() + b" "):
                        return line.decode().partition(" ")[2]
            except (OSError, EOFError) as error:
                raise self.died() from error

    def _send(self, line):
        with self._write:
            self._collect()
            self._out += line.encode() + b"\n"
            self._push(0)
        self._send_dropped()

    def _send_dropped(self):
        # Who holds the lock does this after it, also if that is this very thread, in which a garbage
        # collection has come in between.
        while self._dropped and not self.dead and self._write.acquire(blocking=False):
            try:
                self._collect()
                if not self._push(socket.MSG_DONTWAIT):
                    return
            except OSError:
                self.dead = True
            finally:
                self._write.release()

    def _collect(self):
        dropped = []
        while self._dropped:
            dropped.append(self._dropped.popleft())
        if dropped:
            self._out += f"drop {' '.join(dropped)}\n".encode()

    def _push(self, flags):
        while self._out:
            try:
                sent = self._sock.send(self._out, flags)
            except BlockingIOError:
                return False
            del self._out[:sent]
        return True

    def before_fork(self):
        # A second: another thread that writes to a stopped manager's process holds it.
        self._forking = not self.dead and self._write.acquire(timeout=1)
        self._child = None
        if not self._forking:
            return
        try:
            self._collect()
            if not self._push(socket.MSG_DONTWAIT):
                return
            if self._local:
                mine, theirs = socket.socketpair()
                with theirs:
                    socket.send_fds(self._sock, [b"fork -\n"], [theirs.fileno()], socket.MSG_DONTWAIT)
                self._child = mine
            else:
                clone = os.urandom(16).hex()
                self._sock.send(f"fork {clone}\n".encode(), socket.MSG_DONTWAIT)
                self._child = clone
        except OSError:
            pass

    def after_fork_in_parent(self):
        if isinstance(self._child, socket.socket):
            self._child.close()
        self._child = None
        if self._forking:
            self._write.release()
            self._send_dropped()

    def after_fork_in_child(self):
        child = self._child
        self._sock.close()
        self._close_connections()
        self._prepare()
        try:
            if isinstance(child, socket.socket):
                self._sock = child
            elif child is not None:
                self._open(child)
            else:
                self.dead = True
        except (OSError, EOFError, AuthenticationError, RemoteError):
            self.dead = True


class ForeignSession(_Base):
    """A session with one of CPython's managers, which counts references and does not see who dies."""

    _serve = "accept_connection"
    nonce = None

    def __init__(self, address, authkey, serializer):
        super().__init__(address, authkey, serializer)
        self._held = Counter()

    def _is_busy(self, error):
        return False

    def ended(self):
        return self.dead

    def _tell(self, method, ident):
        try:
            with closing(connect(self.address, self.authkey, self.serializer)) as made:
                return dispatch(made, None, method, (ident,))
        except (OSError, EOFError) as error:
            if not means_the_end(error):
                raise
            raise self.died() from error

    def hold(self, ident, ticket=None):
        self._tell("incref", ident)
        self._held[ident] += 1

    def ticket(self, ident):
        return None

    def drop(self, ident):
        self._held[ident] -= 1
        try:
            self._tell("decref", ident)
        except (OSError, RemoteError) as error:
            util.info("a manager of CPython's goes on counting a proxy: %r", error)

    def synchronize(self):
        pass

    def before_fork(self):
        pass

    def after_fork_in_parent(self):
        pass

    def after_fork_in_child(self):
        self._close_connections()
        try:
            for ident in self._held.elements():
                self._tell("incref", ident)
        except (ManagerDied, RemoteError):
            pass


def session(address, authkey, serializer, anew=False):
    """This process's session with the manager at an address, which it makes if it has none."""
    found = _sessions.get(address)
    if found is None or found.dead or (anew and found.ended()):
        with _making:
            found = _sessions.get(address)
            if found is None or found.dead:
                found = _sessions[address] = _open(address, authkey, serializer, found and found.pid)
    return found


def _open(address, authkey, serializer, pid):
    try:
        return Session(address, authkey, serializer)
    except RemoteError as error:
        if "unrecognized" not in str(error):
            raise
        return ForeignSession(address, authkey, serializer)
    except (OSError, EOFError) as error:
        if not means_the_end(error):
            raise
        raise ManagerDied(address, pid) from error


def discard_ended(address):
    """End the session with a manager that was at the address before another one."""
    found = _sessions.pop(address, None)
    if found is not None:
        if found.ended():
            found.close()
        else:
            _sessions[address] = found


def forget(address):
    """End the session with a manager that has been shut down."""
    _keys().pop(address, None)
    found = _sessions.pop(address, None)
    if found is not None:
        found.close()


def _close_all():
    for address in list(_sessions):
        forget(address)


def _before_fork():
    _forks.acquire()
    for each in list(_sessions.values()):
        _forking.append(each)
        each.before_fork()


def _after_fork_in_parent():
    while _forking:
        _forking.pop().after_fork_in_parent()
    _forks.release()


def _after_fork_in_child():
    global _making, _forks
    _making = threading.RLock()
    _forks = threading.Lock()
    while _forking:
        _forking.pop().after_fork_in_child()


os.register_at_fork(
    before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
)
# After what the program's managers do at its end.
util.Finalize(None, _close_all, exitpriority=-10)
