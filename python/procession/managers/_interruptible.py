"""Calls that wait in a manager's process for what they then take.

Nobody can end a thread that waits. So that none takes what it was to take for a process that has died
meanwhile (an element of a queue, a lock), those of the standard library's classes wait piece by piece.
"""

import queue
import socket
import threading
import time
from inspect import signature

_PIECE = 0.1
_LOCKS = (type(threading.Lock()), type(threading.RLock()), threading.Semaphore, threading.Condition)


class HungUp(Exception):
    """Nobody waits for the result any more."""


def waits_for(obj, method):
    """The method of the standard library's that such a call waits in and that takes something; else None."""
    if isinstance(obj, queue.Queue) and method in ("get", "put"):
        theirs = getattr(queue.Queue, method)
        return theirs if getattr(type(obj), method) is theirs else None
    if isinstance(obj, _LOCKS) and method == "acquire":
        # Of locks in C there is no signature.
        return threading.Semaphore.acquire
    return None


def call(function, theirs, conn, args, kwds):
    """Call a bound method that waits, as long as somebody is there for its result."""
    try:
        given = signature(theirs).bind(None, *args, **kwds)
    except TypeError:
        # It says itself what is wrong.
        return function(*args, **kwds)
    given.apply_defaults()
    options = dict(given.arguments)
    options.pop("self")
    flag = "block" if "block" in options else "blocking"
    timeout = options["timeout"]
    if timeout == -1 and flag == "blocking":
        timeout = None
    if not options[flag] or (timeout is not None and not 0 <= timeout < threading.TIMEOUT_MAX):
        return function(*args, **kwds)
    del options[flag], options["timeout"]
    until = None if timeout is None else time.monotonic() + timeout
    while True:
        left = _PIECE if until is None else min(_PIECE, max(0, until - time.monotonic()))
        try:
            result = function(*options.values(), True, left)
            if result is not False or theirs is not threading.Semaphore.acquire:
                return result
        except (queue.Empty, queue.Full):
            if until is not None and time.monotonic() >= until:
                raise
        if until is not None and time.monotonic() >= until:
            return False
        if hung_up(conn):
            raise HungUp


def hung_up(conn):
    """Whether the other end of a connection has been closed."""
    sock = socket.socket(fileno=conn.fileno())
    try:
        return sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        sock.detach()
