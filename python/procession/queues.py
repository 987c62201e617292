"""Queues between processes, in shared memory.

The classes of ``multiprocessing.queues`` with the same methods. There is no thread behind a queue: ``put``
returns when the object is where any other process can get it, and raises what cannot be pickled. A process
that is killed, in the middle of whatever, never blocks the others.

A queue may be used by any process that has it: one that was forked, one that was given it as an argument,
or one that received it in another queue, through a pipe, or in a pool's task. It is gone with the last
process that has it.
"""

import os
import time
import types
from multiprocessing import connection, queues as _stdlib
from queue import Empty, Full

from . import _asyncio, _pickler, _private_names, _private_parts, _procession
from ._procession import Abandoned, DeliveryLost, ShutDown

__all__ = ["Queue", "SimpleQueue", "JoinableQueue", "Empty", "Full", "ShutDown", "DeliveryLost", "Abandoned"]

# Another one may be put here, as in CPython's module.
_ForkingPickler = _pickler.original
_pickler.watch(__name__)


class _End:
    """One end of a queue, for software that looks inside of CPython's queues.

    Its methods use the base class, as CPython's pipes know nothing of what a subclass of Queue does in put
    and get.
    """

    _name = None

    def __init__(self, queue):
        self._queue = queue

    @property
    def closed(self):
        return self._queue._closed or self._name in vars(self._queue)

    def close(self):
        """Use this end no more."""
        setattr(self._queue, self._name, True)

    def _check(self):
        if self.closed:
            raise OSError("handle is closed")

    def __eq__(self, other):
        return type(self) is type(other) and self._queue is other._queue

    def __hash__(self):
        return hash((self._name, id(self._queue)))


class _Reader(_End):
    """The end of a queue that objects come out of."""

    _name = "_reader_closed"
    readable, writable = True, False

    def fileno(self):
        """A descriptor that is readable while recv has something to return, to be polled and nothing else.

        It is up to date when this returns: poll it at once, and ask again before the next time.
        """
        self._check()
        return self._queue._readable_fd()

    def poll(self, timeout=0.0):
        """Whether there is an object, waiting for one for timeout seconds at most (None: without end)."""
        self._check()
        if not self._queue.empty():
            return True
        if timeout is not None and timeout <= 0:
            return False
        return bool(connection.wait([self], timeout))

    def recv(self):
        """As get."""
        self._check()
        return _procession.BaseQueue.get(self._queue)

    def recv_bytes(self, maxlength=None):
        """The pickle of the next object, or its bytes in the queue's codec."""
        self._check()
        message = self._queue._get_encoded()
        pickled = message if self._queue._codec is not None else _procession._pickle_of(message)
        if maxlength is not None and len(pickled) > maxlength:
            raise OSError("got bad message length")
        return pickled


class _Writer(_End):
    """The end of a queue that objects go into."""

    _name = "_writer_closed"
    readable, writable = False, True

    def fileno(self):
        """A descriptor that is readable (not writable) while there is room, as that of _Reader else."""
        self._check()
        return self._queue._writable_fd()

    def send(self, obj):
        """As put."""
        self._check()
        _procession.BaseQueue.put(self._queue, obj)

    def send_bytes(self, buf, offset=0, size=None):
        """Put the object of a pickle, or of bytes in the queue's codec."""
        self._check()
        end = None if size is None else offset + size
        message = bytes(memoryview(buf).cast("B")[offset:end])
        if self._queue._codec is None:
            message = _procession._message_of(message)
        self._queue._put_encoded(message)


class _Base(_procession.BaseQueue):
    """What all three classes have."""

    __class_getitem__ = classmethod(types.GenericAlias)

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        _private_parts.keep(cls)

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        if name in ("get", "put"):
            self._hook()

    def __getstate__(self):
        return (self._handle(), self._codec, self._redelivers)

    def __setstate__(self, state):
        if isinstance(state[0], bytes):
            self._open(*state)
        else:
            _private_parts.restore(self, state)

    # For an object with another `put` or `get` than the class here has. The arguments are passed as
    # CPython's methods pass them.

    def _put_each(self, iterable, block, timeout):
        deadline = None if timeout is None else time.monotonic() + timeout
        count = 0
        try:
            for obj in iterable:
                self.put(obj, *_arguments(block, deadline))
                count += 1
        except BaseException as error:
            error.put_count = count
            raise
        return count

    def _get_each(self, most, block, timeout):
        deadline = None if timeout is None else time.monotonic() + timeout
        objects = []
        failed = None
        while most is None or len(objects) < most:
            try:
                objects.append(self.get(*_arguments(block and not objects, deadline)))
                if most is None:
                    # Only the objects that are there now: a peer may continue to add more.
                    most = 1 + self.qsize()
            except (Empty, ShutDown, Abandoned):
                if not objects and failed is None:
                    raise
                break
            except Exception as error:
                failed = failed or error
        if failed is not None:
            failed.objects = objects
            raise failed
        return objects

    def _iterate(self):
        while True:
            try:
                obj = self.get()
            except (ShutDown, Abandoned):
                return
            yield obj

    async def aget(self):
        """Remove and return an object from the queue; other tasks run until there is one. No thread is used.

        A task that is cancelled while it waits has taken nothing.
        """
        while True:
            try:
                return self.get_nowait()
            except Empty:
                pass
            await _asyncio.wait(self._readable_fd, self._notices_deaths or self._abandonable)
            if self._abandonable and self.empty():
                self._check_abandoned()

    async def aput(self, obj):
        """Put obj into the queue; other tasks run until there is room. No thread is used.

        A task that is cancelled while it waits has put nothing. An object that waits for room is pickled
        anew each time that there may be some.
        """
        while True:
            try:
                return self.put_nowait(obj)
            except Full:
                pass
            await _asyncio.wait(self._writable_fd, self._waits_for_bytes)

    @property
    def _reader(self):
        """The end that objects come out of, as CPython's queues have it."""
        return _Reader(self)

    @property
    def _writer(self):
        """The end that objects go into, as CPython's queues have it."""
        return _Writer(self)

    @property
    def _poll(self):
        return _Reader(self).poll

    def _closed_error(self):
        return ValueError(f"Queue {self!r} is closed")

    def _closed_empty(self, empty):
        # As CPython's: one that was never used tells that it is empty.
        if not empty:
            raise OSError(f"Queue {self!r} is closed")
        return empty

    def _has_feeder_error_hook(self):
        return False


def _arguments(block, deadline):
    """The arguments of `put` and `get` after the object."""
    if not block:
        return (False,)
    return () if deadline is None else (True, max(deadline - time.monotonic(), 0))


class Queue(_Base, _stdlib.Queue):
    """A first-in, first-out queue of objects between processes: many may put, many may get.

    >>> queue = Queue(maxsize=2)
    >>> queue.put({"answer": 42})
    >>> queue.put("words")
    >>> queue.full()
    True
    >>> queue.get()
    {'answer': 42}
    >>> queue.shutdown()
    >>> list(queue)
    ['words']

    An object is got by exactly one process. One that dies takes with it what it had got, and puts all or
    nothing of what it was putting; the others go on.

    maxsize is the most objects at a time, and max_bytes the most bytes of memory that they may
    take; put waits for room. A maxsize of 0 or less means no bound. Without a max_bytes, put raises
    MemoryError when what is queued would take more than half of the machine's or cgroup's memory.
    ctx is accepted as by multiprocessing; a queue needs nothing of it.

    With a name, other processes of this user can have the queue by ``Queue.open(name)`` as long as one
    process uses it; FileExistsError is raised when the name is in use.

    codec says how objects become bytes. None: any that can be pickled. "msgpack": None, bool, int of 64
    bits, float, str, bytes, and lists (tuples arrive as lists) and dicts of them, as MessagePack. "bytes":
    any bytes-like object, as it is; get returns bytes. The latter two are for named queues that programs in
    other languages use, too; all sides of a queue have to agree.

    With abandonable, a get that waits raises Abandoned, an EOFError, when no process is left to
    put: the queue is empty, and no other living process has it or is about to receive it. A process
    whose only thread waits in get without a timeout does not count, so that each of several
    consumers gets the error. Nor do other threads of the caller. A parent that neither puts nor
    gets closes the queue.
    """

    def __init__(self, maxsize=0, *, ctx=None, name=None, max_bytes=None, codec=None, abandonable=False):
        self._create(maxsize, name, max_bytes, codec, False, False, abandonable)

    @classmethod
    def open(cls, name, *, codec=None):
        """Open the queue that a process made under this name; codec as it was made.

        Raises FileNotFoundError when no living process uses one, and ValueError when the name is a
        JoinableQueue's.
        """
        self = cls.__new__(cls)
        self._open_named(name, codec, False, False)
        return self

    def close(self):
        """Use this queue no more in this process: put and get raise ValueError from now on."""
        self._close()

    def join_thread(self):
        """Return at once, as what was put is in shared memory already."""
        assert self._closed, f"Queue {self!r} not closed"

    def cancel_join_thread(self):
        """Do nothing, as there is no thread to wait for."""

    def _terminate_broken(self):
        # concurrent.futures calls it when a worker has died.
        self._reader.close()
        self.close()
        self.join_thread()

    @staticmethod
    def _on_queue_feeder_error(e, obj):
        """Told of an object that put cannot pickle, in place of the exception, if a subclass defines it."""
        raise e

    def _has_feeder_error_hook(self):
        return type(self)._on_queue_feeder_error is not Queue._on_queue_feeder_error


class JoinableQueue(Queue, _stdlib.JoinableQueue):
    """A Queue of tasks, each of which is declared done by task_done; join waits for all of them.

    >>> tasks = JoinableQueue()
    >>> tasks.put("sweep")
    >>> tasks.get()
    'sweep'
    >>> tasks.task_done()
    >>> tasks.join()

    With redeliver, a task is handed out again when the process that got it dies before its task_done, or
    lets go of the queue: before those that wait, once a process that waits or asks has noticed the death.
    So a task may be worked on twice, but none is lost. Then task_done acknowledges a task that the caller's
    own process has: the oldest one that its thread got, else the oldest.

    The other arguments are those of Queue.
    """

    def __init__(
        self,
        maxsize=0,
        *,
        ctx=None,
        name=None,
        max_bytes=None,
        codec=None,
        redeliver=False,
        abandonable=False,
    ):
        self._create(maxsize, name, max_bytes, codec, True, redeliver, abandonable)

    @classmethod
    def open(cls, name, *, codec=None, redeliver=False):
        """Open the queue that a process made under this name; redeliver is for what this process gets.

        Raises FileNotFoundError when no living process uses one, and ValueError when the name is a Queue's.
        """
        self = cls.__new__(cls)
        self._open_named(name, codec, True, redeliver)
        return self

    def task_done(self):
        """Declare one task done that was taken by get.

        Without redelivery, any process may declare any task done.

        Raises ValueError when no task is unfinished; with redelivery, when this process has none.
        """
        self._task_done()

    def join(self):
        """Wait until all tasks that were put are done.

        A process that dies with a task does not block this: the task is handed out again if its process
        took it from a queue with redelivery. Otherwise DeliveryLost is raised once all that are unfinished
        were taken by processes that died; they are forgotten then.
        """
        self._join()


class SimpleQueue(_Base, _stdlib.SimpleQueue):
    """A Queue without a bound, for which put, get, empty and close are all that multiprocessing has.

    >>> queue = SimpleQueue()
    >>> queue.put((1, 2.5, "three"))
    >>> queue.get()
    (1, 2.5, 'three')

    abandonable is that of Queue.
    """

    def __init__(self, *, ctx=None, abandonable=False):
        self._create(0, None, None, None, False, False, abandonable)

    def close(self):
        """Use this queue no more in this process: put and get raise OSError from now on."""
        self._close()

    def _closed_error(self):
        return OSError("handle is closed")

    def _closed_empty(self, empty):
        raise OSError(f"Queue {self!r} is closed")


os.register_at_fork(before=_procession._make_private, after_in_child=_procession._make_private)

_private_names.add(Queue, _private_names.QUEUE)
_private_names.add(JoinableQueue, _private_names.JOINABLE_QUEUE)
_private_names.add(
    SimpleQueue,
    _private_names.without(
        "_rlock _wlock", "no lock is held between calls; use get(timeout=...) or _reader.poll()"
    ),
)
