"""What a process says to a manager's without waiting, and what it has asked that to hold."""

import itertools
import socket
import threading
import weakref
from array import array
from collections import deque


class Reference(weakref.ref):
    """A proxy, for which the manager keeps an object: `ident` is the object's, `key` this reference's."""

    __slots__ = ("flushing", "ident", "key")


class _Line(bytes):
    """A line, with a socket that goes with it."""

    sock = None

    def close(self):
        if self.sock is not None:
            self.sock.close()


class SessionWriter:
    """Lines on their way to a manager's process, and the references whose ends are among them.

    A signal's handler may run, and raise, after any call; it may come back here, and so may a garbage collection.
    So whatever happens is one call of a function in C or one assignment, and who goes on sees all that was done.
    The lock is never held while something is waited for, except for a fork; and a garbage collection, which may have
    begun anywhere, does not wait for the lock.
    """

    def __init__(self):
        self._keys = itertools.count(1)
        self.references = {}
        self._lines = deque()
        # Those that are gone, put here by the interpreter itself.
        self._dropped = deque()
        # What is being sent, the sizes of the pieces that were, and what it was made from.
        self._batch = b"", [], [], []
        self.renew()

    def renew(self):
        """Forget what is on its way: a forked child's parent sends it."""
        self.lock = threading.RLock()
        # Whether somebody is sending, who will see what is added now; whether this process is being forked.
        self._busy = False
        self.forking = False
        for line in (*self._lines, *self._batch[2]):
            line.close()
        for each in self._batch[3]:
            self.references.pop(each.key, None)
        self._lines.clear()
        self._batch = b"", [], [], []

    def begin_again(self):
        """Send what is being sent over another connection from its beginning on."""
        data, _, lines, dropped = self._batch
        self._batch = data, [], lines, dropped

    def refer(self, proxy, ident, flush):
        """A new reference. When the proxy is gone, `flush` is called, and has to push."""
        # Callbacks are called in reverse.
        flushing = weakref.ref(proxy, flush)
        reference = Reference(proxy, self._dropped.append)
        reference.flushing = flushing
        reference.ident = ident
        reference.key = f"{next(self._keys):x}"
        self.references[reference.key] = reference
        return reference.key

    def living(self):
        """The references whose proxies are there."""
        return [each for each in list(self.references.values()) if each() is not None]

    def interrupted(self):
        """Whether this very thread is at it: what it was to send goes on its way only afterwards."""
        return self.lock._is_owned()

    def is_taken(self):
        """Whether what is added now will be sent without another push."""
        return self._busy or self.forking

    def add(self, text, sock=None):
        """Add a line, and a socket that is closed here when the manager has it."""
        line = _Line(text.encode() + b"\n")
        line.sock = sock
        self._lines.append(line)

    def add_dropped(self):
        """Have what has been dropped be said before what is added next."""
        dropped = list(self._dropped)
        if dropped:
            self.add(_drop(dropped))

    def push(self, sock):
        """Send what can be sent without waiting. False if there is more."""
        while True:
            with self.lock:
                if self._busy:
                    return False
                try:
                    self._busy = True
                    done = self._send(sock)
                except BlockingIOError:
                    return False
                finally:
                    self._busy = False
            # What came meanwhile found it busy.
            if done and not self._lines and not self._dropped:
                return True

    def _send(self, sock):
        """Send a piece; True if there is nothing to be sent."""
        data, sent, lines, dropped = self._batch
        self._remove(self._lines, lines)
        self._remove(self._dropped, dropped)
        for each in dropped:
            self.references.pop(each.key, None)
        if sum(sent) == len(data):
            for line in lines:
                line.close()
            lines, dropped = self._next()
            said = b"".join(lines)
            if dropped:
                said += _drop(dropped).encode() + b"\n"
            self._batch = said, [], lines, dropped
            data, sent, _, _ = self._batch
            if not data:
                return True
        rest = memoryview(data)[sum(sent) :]
        ancillary = []
        if not sent and lines and lines[0].sock is not None:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [lines[0].sock.fileno()]))]
        # No handler comes between the end of the system call and the note that it was made.
        sent.extend(map(sock.sendmsg, ([rest],), (ancillary,), (socket.MSG_DONTWAIT,)))
        return False

    def _next(self):
        """What is to be sent next. A line with a socket goes alone, and what is dropped after all lines.

        One of the lines may be what an interrupted thread has asked for a reference that was dropped since, or be
        for a child that has it yet.
        """
        lines = list(self._lines)
        for index, line in enumerate(lines):
            if line.sock is not None:
                return lines[:index] or [line], []
        return lines, list(self._dropped)

    @staticmethod
    def _remove(queue, taken):
        for each in taken:
            if queue and queue[0] is each:
                queue.popleft()


def _drop(references):
    return f"drop {' '.join(each.key for each in references)}"
