"""Connections to a manager's process: made, and messages on them."""

import errno
import socket
import struct
import time
from multiprocessing import connection, managers as _stdlib, reduction

_ATTEMPTS = 4
# Pickle's default before Python 3.14. With protocol 5, read-only arrays arrive read-only.
_PROTOCOL = 4


def keep_alive(sock):
    """Have the kernel notice that the machine at the other end is gone."""
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def means_the_end(error):
    """Whether an error of a connection says that nobody is at its other end.

    This process may also have run out of descriptors, or be refused by the system.
    """
    gone = EOFError, ConnectionError, FileNotFoundError, TimeoutError
    hosts = errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN
    # Without a number: the end came within a message, or the connection is closed.
    return isinstance(error, gone) or error.errno is None or error.errno in hosts


def set_timeouts(sock, seconds):
    """Have operations on a socket fail after so long. Never, if that is 0."""
    value = struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)


def connect(address, authkey, serializer, timeout=None):
    """An authenticated connection. With a timeout, OSError if any one step takes longer."""
    if serializer != "pickle":
        return _stdlib.listener_client[serializer][1](address, authkey=authkey)
    for attempt in range(_ATTEMPTS):
        with socket.socket(getattr(socket, connection.address_type(address))) as sock:
            if timeout is not None:
                set_timeouts(sock, max(timeout, 1e-6))
            sock.connect(address)
            keep_alive(sock)
            made = connection.Connection(sock.detach())
        try:
            connection.answer_challenge(made, authkey)
            connection.deliver_challenge(made, authkey)
            return made
        except (EOFError, ConnectionResetError, BrokenPipeError):
            made.close()
            # This process may have been stopped for longer than the manager waits.
            if attempt == _ATTEMPTS - 1:
                raise
            time.sleep(0.01 * 2**attempt)
        except BaseException:
            made.close()
            raise


def receive(file):
    """The bytes of one message."""
    return file._recv_bytes().getbuffer() if isinstance(file, connection.Connection) else file.recv_bytes()


def loads(file, data):
    """What the bytes say."""
    return pickler().loads(data) if isinstance(file, connection.Connection) else file._loads(data)


def dumps(file, message):
    """The bytes of a message."""
    if not isinstance(file, connection.Connection):
        return file._dumps(message)
    write = pickler().dumps
    # A program's own may take no protocol.
    is_cpythons = getattr(write, "__module__", None) == reduction.__name__
    return write(message, _PROTOCOL) if is_cpythons else write(message)


def pickler():
    """The one of connections, which the program may have replaced since."""
    return connection._ForkingPickler
