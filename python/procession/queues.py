"""Queues between processes, in shared memory.

The classes of ``multiprocessing.queues`` with the same methods. There is no thread behind a queue: ``put`` returns when the
object is where any other process can get it, and raises what cannot be pickled. A process that is killed, in the middle of
whatever, never blocks the others.

A queue may be used by any process that has it: one that was forked, one that was given it as an argument, or one that received it in
another queue, through a pipe, or in a pool's task. It is gone with the last process that has it.
"""

import os
import types
from queue import Empty, Full

from . import _procession
from ._procession import DeliveryLost, ShutDown

__all__ = ['Queue', 'SimpleQueue', 'JoinableQueue', 'Empty', 'Full', 'ShutDown', 'DeliveryLost']


class _Base(_procession.BaseQueue):
    """What all three classes have."""

    __class_getitem__ = classmethod(types.GenericAlias)

    def __getstate__(self):
        return (self._handle(),)

    def __setstate__(self, state):
        handle, = state
        self._open(handle)

    def _closed_error(self):
        return ValueError(f'Queue {self!r} is closed')

    def _has_feeder_error_hook(self):
        return False


class Queue(_Base):
    """A first-in, first-out queue of objects between processes: many may put, many may get.

    maxsize is the most objects at a time; put waits for room. 0 or less means no bound: then put never waits, and
    raises MemoryError when what is queued would take more than max_bytes (half of the machine's or cgroup's memory, if
    None). ctx is accepted as by multiprocessing; a queue needs nothing of it.

    With a name, other processes of this user can have the queue by ``Queue.open(name)`` as long as one process uses it.
    """

    def __init__(self, maxsize=0, *, ctx=None, name=None, max_bytes=None):
        self._create(maxsize, name, max_bytes, False)

    @classmethod
    def open(cls, name):
        """Open the queue that a process made under this name.

        Raises OSError when no living process uses one, and ValueError when the name is a JoinableQueue's.
        """
        self = cls.__new__(cls)
        self._open_named(name, False)
        return self

    def close(self):
        """Use this queue no more in this process: put and get raise ValueError from now on."""
        self._close()

    def join_thread(self):
        """Return at once: what was put is in shared memory already. For programs written for multiprocessing."""
        assert self._closed, f'Queue {self!r} not closed'

    def cancel_join_thread(self):
        """Do nothing: no thread is waited for. For programs written for multiprocessing."""

    @staticmethod
    def _on_queue_feeder_error(e, obj):
        """What a subclass may define to be told of an object that cannot be pickled, in place of the exception from put."""
        raise e

    def _has_feeder_error_hook(self):
        return type(self)._on_queue_feeder_error is not Queue._on_queue_feeder_error


class JoinableQueue(Queue):
    """A Queue of tasks, each of which is declared done by ``task_done``; ``join`` waits for all of them."""

    def __init__(self, maxsize=0, *, ctx=None, name=None, max_bytes=None):
        self._create(maxsize, name, max_bytes, True)

    @classmethod
    def open(cls, name):
        """Open the queue that a process made under this name.

        Raises OSError when no living process uses one, and ValueError when the name is a Queue's.
        """
        self = cls.__new__(cls)
        self._open_named(name, True)
        return self

    def task_done(self):
        """Declare one task done that was taken by get. Any process may declare any task done.

        Raises ValueError when no task is unfinished.
        """
        self._task_done()

    def join(self):
        """Wait until all tasks that were put are done.

        Raises DeliveryLost once all that are unfinished were taken by processes that died.
        """
        self._join()


class SimpleQueue(_Base):
    """A Queue without a bound, for which put, get, empty and close are all that multiprocessing has."""

    def __init__(self, *, ctx=None):
        self._create(0, None, None, False)

    def close(self):
        """Use this queue no more in this process: put and get raise OSError from now on."""
        self._close()

    def _closed_error(self):
        return OSError('handle is closed')


os.register_at_fork(before=_procession._make_private)
