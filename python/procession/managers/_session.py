"""A process's side of its traffic with a manager's process.

A process has one *session* with each manager whose objects it uses: a connection over which it says of what
objects it has proxies. What the session holds is held until it says otherwise or the connection ends, which
the kernel sees to however the process ends. Calls have connections of their own, one for each thread.

A child by `fork` gets a session that holds the same: before the fork the parent hands the other end of the child's
connection to the manager through its own session, so that no proxy is without its object for a moment. Where that
does not come through, the child connects and says of what objects it has proxies, at its first use of the manager.
"""

import itertools
import os
import select
import socket
import threading
import time
import weakref
from contextlib import closing
from functools import partial
from multiprocessing import process, util
from multiprocessing.connection import address_type
from multiprocessing.context import AuthenticationError
from multiprocessing.managers import RemoteError, dispatch

from .. import _procession
from ._connection import connect, dumps, loads, means_the_end, receive, set_timeouts
from ._errors import ManagerDied, gone
from ._session_writer import SessionWriter

# What a forked child waits for a manager that is stopped; and what it waits, when it uses a manager, for that to get
# the connection that the parent has made for it.
_FORK_SECONDS = 0.3
_TAKEN_SECONDS = 0.5


class _Context(threading.local):
    # What is being unpickled comes over this session.
    session = None
    # What is being pickled is for a call over this session, and what undoes the tickets in it.
    calling = None
    tickets = None


context = _Context()


def _take_back(tickets):
    for settle in tickets:
        settle()


def new_ticket(settle):
    """A ticket for what is being pickled. It is settled if the message is known not to be sent."""
    ticket = os.urandom(12).hex()
    settle = partial(settle, ticket)
    if context.tickets is None:
        _procession._when_not_sent(settle)
    else:
        context.tickets.append(settle)
    return ticket


def _check(reply, ident):
    if reply == "gone":
        raise gone(ident)
    if reply != "ok":
        raise RemoteError(f"the manager could not keep object {ident!r}: {reply}\n")


class Base:
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
        """This thread's connection for calls, which whoever takes it gives back by `_give_back`."""
        made = self._calls.__dict__.pop("connection", None)
        if made is not None:
            return made
        if self.dead:
            raise self.died()
        name = process.current_process().name
        if threading.current_thread() is not threading.main_thread():
            name += "|" + threading.current_thread().name
        try:
            made = connect(self.address, self.authkey, self.serializer)
            dispatch(made, None, self._serve, (name,))
        except (OSError, EOFError) as error:
            if not means_the_end(error):
                raise
            raise self._hung_up(error) from error
        self._connections.add(made)
        return made

    def _give_back(self, made):
        calls = self._calls.__dict__
        if calls.setdefault("connection", made) is not made:
            # A signal's handler has called something meanwhile, over another one.
            made.close()

    def reconnect(self):
        """Have this thread's next call go over a connection that is made now."""
        made = self._calls.__dict__.pop("connection", None)
        if made is not None:
            made.close()
        self._give_back(self.connection())

    def call(self, ident, method, args=(), kwds={}):
        """Call a method of an object, or of the server if `ident` is None. Return the reply's two parts."""
        self._ensure()
        tickets = []
        try:
            made = self.connection()
            data = self._pickled(made, (ident, method, args, kwds), tickets)
            reply = self._exchange(made, method, data)
            before = context.session
            try:
                context.session = self
                kind, result = loads(made, reply)
            finally:
                context.session = before
            if kind not in ("#RETURN", "#PROXY"):
                # Perhaps not all of the arguments were read.
                _take_back(tickets)
            return kind, result
        except BaseException:
            _take_back(tickets)
            raise

    def _pickled(self, made, request, tickets):
        before = context.calling, context.tickets
        try:
            context.calling, context.tickets = self, tickets
            return dumps(made, request)
        except BaseException:
            self._give_back(made)
            raise
        finally:
            context.calling, context.tickets = before

    def _exchange(self, made, method, data):
        try:
            made.send_bytes(data)
            del data
            reply = receive(made)
            self._give_back(made)
            return reply
        except BaseException as error:
            # What comes yet would be taken for the reply to the next call; and it may have been given back just now.
            calls = self._calls.__dict__
            if calls.get("connection") is made:
                del calls["connection"]
            made.close()
            if not isinstance(error, (OSError, EOFError)) or not means_the_end(error):
                raise
            raise self._hung_up(error, f"a call of {method!r}") from error

    def _hung_up(self, error, doing=None):
        """The error of who finds a connection ended."""
        if not self._lives(error):
            return self.died(doing)
        during = "" if doing is None else f" during {doing}: whether that was carried out is not known"
        return ConnectionResetError(f"the manager at {self.address!r} lives, but has hung up{during}")

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


class Session(Base):
    """A session with a manager of this package.

    A thread that has been interrupted by a signal, in the middle of a request, makes others over connections for
    calls.
    """

    _serve = "serve"

    def __init__(self, address, authkey, serializer):
        super().__init__(address, authkey, serializer)
        self.nonce = None
        self._local = address_type(address) == "AF_UNIX"
        self._writer = SessionWriter()
        self._prepare("-", None)
        self._ensure()

    def _prepare(self, origin, sock):
        self._request = threading.RLock()
        self._asking = False
        self._numbers = itertools.count(1)
        self._received = []
        # By what name the manager knows who is the parent's child; the socket, if it has the other end already.
        self._origin = origin
        self._sock = sock
        self._name = origin
        # One whose other end the manager has not got in time. What it keeps is kept until the manager has been told.
        self._offered = None
        # What becomes of a fork that is going on.
        self._child = None
        # Whether the manager has been told all that this process holds.
        self._ready = False

    def _ensure(self):
        """Have a connection over which the manager has been told what this process holds."""
        if self._ready:
            return
        with self._request:
            if self.dead:
                raise self.died()
            if self._sock is not None and self._origin == self._name and not self._was_taken():
                self._offered, self._sock = self._sock, None
            if self._sock is None:
                try:
                    self._open()
                except (OSError, EOFError) as error:
                    if self.pid is None or not means_the_end(error):
                        raise
                    raise self._hung_up(error) from error
            if self._origin != self._name:
                pairs = [f" {each.key} {each.ident}" for each in self._writer.living()]
                if self._origin != "-" or pairs:
                    self._writer.add(f"adopt {self._origin}{''.join(pairs)}")
            self._ready = True
            if self._offered is not None:
                self._request_reply("sync")
                self._offered.close()
                self._offered = None
        self._flush()

    def _was_taken(self):
        """Whether the manager has got the other end that the parent sends it. Waits a while for that."""
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        try:
            return bool(poll.poll(_TAKEN_SECONDS * 1000)) and self._sock.recv(1, socket.MSG_PEEK) != b""
        except OSError:
            return False

    def _open(self, timeout=None):
        name = os.urandom(16).hex()
        with closing(connect(self.address, self.authkey, self.serializer, timeout)) as made:
            pid, nonce = dispatch(made, None, "open_session", (name,))
            if self.nonce not in (None, nonce):
                # Another one, in the place of this.
                raise self.died()
            sock = socket.socket(fileno=os.dup(made.fileno()))
        set_timeouts(sock, 0)
        if self._ready:
            # A signal's handler has made another one meanwhile.
            sock.close()
            return
        self._writer.begin_again()
        self.pid, self.nonce = pid, nonce
        self._name, self._sock = name, sock

    def _lives(self, error):
        """Whether the manager has hung up on a connection, and lives."""
        if isinstance(error, (FileNotFoundError, ConnectionRefusedError)):
            return False
        until = time.monotonic() + 0.5
        while not self.ended() and time.monotonic() < until:
            time.sleep(0.01)
        return not self.dead

    def ended(self):
        """Whether the manager is known to have ended."""
        if not self.dead and self._ready:
            poll = select.poll()
            # There may be replies yet to requests that were interrupted.
            poll.register(self._sock, select.POLLRDHUP)
            self.dead = bool(poll.poll(0))
        return self.dead

    def hold(self, proxy, ident, ticket=None):
        """Have the manager keep an object as long as the proxy is there. Return what the reference is called."""
        key = self._writer.refer(proxy, ident, self._flush)
        word = "hold"
        # Whoever reads the message again shows the ticket again.
        if ticket is not None and _procession._when_settled(partial(self.settle, ticket)):
            word = "show"
        _check(self._ask(word, key, ident, ticket or "-"), ident)
        return key

    def ticket(self, key, ident):
        """Have the manager keep an object for whoever will show this ticket."""
        # What is in a call of this very manager is of no use to anybody else.
        word = "lend" if context.calling is self else "ticket"
        ticket = new_ticket(self.settle)
        _check(self._ask(word, key, ticket), ident)
        return ticket

    def settle(self, ticket):
        """Nobody will show the ticket any more. Never waits."""
        self._writer.add(f"settle {ticket}")
        self._flush()

    def synchronize(self):
        """Wait until the manager knows all that was dropped."""
        self._writer.add_dropped()
        self._ask("sync")

    def close(self):
        """End the session, and with it what it holds."""
        super().close()
        sock = self._sock
        if sock is None:
            return
        try:
            sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        # Not under the feet of another thread, whose last look at it this is.
        if self._request.acquire(timeout=1):
            try:
                with self._writer.lock:
                    sock.close()
            finally:
                self._request.release()

    def _ask(self, word, *words):
        if self._writer.interrupted():
            return self._ask_beside(word, *words)
        with self._request:
            if self._asking:
                return self._ask_beside(word, *words)
            try:
                self._asking = True
                self._ensure()
                return self._request_reply(word, *words)
            finally:
                self._asking = False

    def _request_reply(self, word, *words):
        if self.dead:
            raise self.died()
        number = str(next(self._numbers))
        self._writer.add(" ".join((word, number, *words)))
        try:
            while not self._writer.push(self._sock):
                poll = select.poll()
                poll.register(self._sock, select.POLLOUT)
                poll.poll()
            return self._reply_to(number)
        except (OSError, EOFError) as error:
            raise self.died() from error

    def _ask_beside(self, word, *words):
        """Ask over this thread's connection for calls."""
        _, reply = self.call(None, "attend", (self._name, word, *words))
        return reply

    def _reply_to(self, number):
        # An interrupted request has left its reply, or the half of it.
        while True:
            *lines, rest = b"".join(self._received).split(b"\n")
            for line in lines:
                found, _, reply = line.decode().partition(" ")
                if found == number:
                    self._received = [rest]
                    return reply
            self._received = [rest]
            self._received.extend(map(self._sock.recv, (65536,)))
            if not self._received[-1]:
                raise EOFError

    def _flush(self, _reference=None):
        # Called wherever a proxy may be deleted.
        if not self._writer.is_taken():
            self._push()

    def _push(self):
        if self._sock is not None and not self.dead:
            try:
                self._writer.push(self._sock)
            except OSError:
                # Else it has not taken the other end that the parent sent it.
                self.dead = self._ready

    def before_fork(self):
        """Have the manager hold for the child what it holds for this process. Waits for nothing."""
        self._child = None
        # What is dropped from now on is dropped by both.
        self._writer.forking = True
        self._writer.lock.acquire()
        if self.dead or self._sock is None:
            return
        name, mine, theirs = os.urandom(16).hex(), None, None
        if self._local:
            try:
                mine, theirs = socket.socketpair()
            except OSError as error:
                util.info("a child has to connect by itself: %r", error)
        self._child = name, mine
        self._writer.add_dropped()
        self._writer.add(f"fork {name}", theirs)
        self._push()

    def after_fork_in_parent(self):
        if self._writer.interrupted():
            self._writer.lock.release()
        self._writer.forking = False
        _, mine = self._child or (None, None)
        if mine is not None:
            mine.close()
        self._child = None
        self._flush()

    def after_fork_in_child(self):
        for sock in self._sock, self._offered:
            if sock is not None:
                sock.close()
        self._close_connections()
        self._writer.renew()
        origin, sock = self._child or ("-" if self._ready else self._origin, None)
        self._prepare(origin, sock)
        if not self.dead and sock is None and not self._local and self.serializer == "pickle":
            try:
                self._open(_FORK_SECONDS)
                self._ensure()
                self._flush()
            except (OSError, EOFError, AuthenticationError, RemoteError) as error:
                util.info("a child's session is made later: %r", error)
