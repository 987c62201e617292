"""Managers, as in ``multiprocessing.managers``, whose queues, locks and values are in shared memory.

A manager's process makes those objects and keeps them, so that they are there for as long as the manager is.
Who asks for one uses the object itself: no process stands between those who share it. Dictionaries, lists,
sets, namespaces, pools and registered types stay in the manager's process, and who asks for one gets a proxy
of it.
"""

import resource
from array import array
from functools import wraps
from multiprocessing import managers as _stdlib
from multiprocessing.managers import BaseManager, BaseProxy, MakeProxyType, Server, State, Token, dispatch

from . import _procession, queues, synchronize
from .context import _default_context
from .pool import Pool
from .process import _end_with_starter, _starter

__all__ = ["BaseManager", "BaseProxy", "SharedMemoryManager", "SyncManager", "Token"]


class _Kept:
    """An object that a manager's process keeps.

    What its pickles name is always that process, which lives as long as the object is to be had, and not the
    process that pickles it, which may end before it is unpickled.
    """

    _kept = None

    def __setstate__(self, state):
        super().__setstate__(state)
        self._kept = state

    def __getstate__(self):
        # The manager's process has made it, not received it.
        return super().__getstate__() if self._kept is None else self._kept

    def __repr__(self):
        return _repr(self)

    def __str__(self):
        return super().__repr__()


def _repr(kept):
    """What CPython's proxy of such an object has."""
    typeid = next(typeid for typeid, cls in _KEPT.items() if isinstance(kept, cls))
    proxy = _stdlib.SyncManager._registry[typeid][-1]
    name = f"AutoProxy[{typeid}]" if proxy is _stdlib.AutoProxy else proxy.__name__
    return f"<{name} object, typeid {typeid!r} at {id(kept):#x}>"


def _acquire(self, blocking=True, timeout=None):
    """Acquire it, as the classes of `threading` do. Return whether it was acquired.

    It waits if `blocking`, `timeout` seconds at most if that is not None or -1.
    """
    return self._acquire_shared(blocking, None if timeout == -1 else timeout)


def _with_error_of_threading(method, error):
    """The method with RuntimeError in the place of `error`."""

    @wraps(method)
    def call(self, *args, **kwargs):
        try:
            return method(self, *args, **kwargs)
        except error as reason:
            raise RuntimeError(str(reason)) from None

    return call


class ManagedLock(_Kept, synchronize.Lock):
    """A manager's lock. Any process and thread may release it."""

    _acquire_shared = synchronize.Lock.acquire
    acquire = _acquire
    release = _with_error_of_threading(synchronize.Lock.release, ValueError)


class ManagedRLock(_Kept, synchronize.RLock):
    """A manager's lock that its owner, a thread of a process, may take again."""

    _acquire_shared = synchronize.RLock.acquire
    acquire = _acquire
    release = _with_error_of_threading(synchronize.RLock.release, AssertionError)


class _Permits:
    def __init__(self, value=1):
        if value < 0:
            raise ValueError("semaphore initial value must be >= 0")
        super().__init__(value)


class ManagedSemaphore(_Kept, _Permits, synchronize.Semaphore):
    """A manager's semaphore."""

    _acquire_shared = synchronize.Semaphore.acquire
    acquire = _acquire


class ManagedBoundedSemaphore(_Kept, _Permits, synchronize.BoundedSemaphore):
    """A manager's semaphore that never has more permits than it started with."""

    _acquire_shared = synchronize.BoundedSemaphore.acquire
    acquire = _acquire


class ManagedCondition(_Kept, synchronize.Condition):
    """A manager's condition variable over one of its locks."""

    _acquire_shared = synchronize.Condition.acquire
    acquire = _acquire
    release = _with_error_of_threading(synchronize.Condition.release, (AssertionError, ValueError))
    wait = _with_error_of_threading(synchronize.Condition.wait, AssertionError)
    notify = _with_error_of_threading(synchronize.Condition.notify, AssertionError)
    notify_all = _with_error_of_threading(synchronize.Condition.notify_all, AssertionError)

    def __init__(self, lock=None):
        # Its own lock has to be kept as it is itself.
        super().__init__(ManagedRLock() if lock is None else lock)


class ManagedEvent(_Kept, synchronize.Event):
    """A manager's event."""


class ManagedBarrier(_Kept, synchronize.Barrier):
    """A manager's barrier. Its action is called in one of the processes that wait."""


class ManagedQueue(_Kept, queues.JoinableQueue):
    """A manager's queue, with the methods of `queue.Queue`."""


class _Memory:
    """Numbers in a block of memory that a manager's process keeps."""

    def __init__(self, typecode, format, size):
        block = _procession.Block(size * array(format).itemsize)
        self._attach(typecode, format, block, None)

    def _attach(self, typecode, format, block, kept):
        self._typecode = typecode
        self._format = format
        self._block = block
        self._kept = kept
        self._cells = block.create_memoryview().cast(format)

    def __getstate__(self):
        return self._typecode, self._format, self._kept or self._block.__getstate__()

    def __setstate__(self, state):
        typecode, format, kept = state
        block = _procession.Block.__new__(_procession.Block)
        block.__setstate__(kept)
        self._attach(typecode, format, block, kept)

    def __repr__(self):
        return _repr(self)


class ManagedValue(_Memory):
    """A manager's number.

    Integers have 64 bits whatever the typecode is; floating-point numbers are doubles. What cannot be one
    raises TypeError or ValueError, and nothing changes.
    """

    _FORMATS = {**dict.fromkeys("bBhHiIlq", "q"), **dict.fromkeys("LQ", "Q"), **dict.fromkeys("fd", "d")}

    def __init__(self, typecode, value, lock=True):
        super().__init__(typecode, self._FORMATS[typecode], 1)
        self.set(value)

    @classmethod
    def can_hold(cls, typecode, value):
        """Whether the value is such a number."""
        format = cls._FORMATS.get(typecode) if isinstance(typecode, str) else None
        if format is None or type(value) not in (int, float):
            return False
        try:
            return array(format, (value,))[0] == value
        except (OverflowError, TypeError):
            return False

    def get(self):
        """Return the number."""
        return self._cells[0]

    def set(self, value):
        """Set the number."""
        self._cells[0] = value

    value = property(get, set)

    def __str__(self):
        return f"Value({self._typecode!r}, {self.value!r})"


class ManagedArray(_Memory):
    """A manager's array of numbers, as `array.array`, but for its length, which stays."""

    _TYPECODES = frozenset("bBhHiIlLqQfd")

    def __init__(self, typecode, sequence, lock=True):
        data = array(typecode, sequence)
        super().__init__(typecode, typecode, len(data))
        self._lock = ManagedLock()
        self._cells[:] = memoryview(data)

    @classmethod
    def can_hold(cls, typecode, sequence):
        """Whether the typecode is that of numbers."""
        return isinstance(typecode, str) and typecode in cls._TYPECODES

    def __getstate__(self):
        return super().__getstate__(), self._lock

    def __setstate__(self, state):
        memory, self._lock = state
        super().__setstate__(memory)

    def __len__(self):
        return len(self._cells)

    def __getitem__(self, index):
        if not isinstance(index, slice):
            return self._cells[index]
        with self._lock:
            return array(self._typecode, self._cells[index].tobytes())

    def __setitem__(self, index, value):
        if not isinstance(index, slice):
            # Through an array for its conversions and errors.
            self._cells[index] = array(self._typecode, (value,))[0]
            return
        if not isinstance(value, array) or value.typecode != self._typecode:
            raise TypeError(f"a slice is set to an array of typecode {self._typecode!r} only, not {value!r}")
        cells = self._cells[index]
        if len(cells) != len(value):
            raise ValueError(f"a manager's array keeps its length: {len(value)} elements for {len(cells)}")
        with self._lock:
            cells[:] = memoryview(value)

    def __str__(self):
        return str(self[:])


_KEPT = {
    "Queue": ManagedQueue,
    "JoinableQueue": ManagedQueue,
    "Lock": ManagedLock,
    "RLock": ManagedRLock,
    "Semaphore": ManagedSemaphore,
    "BoundedSemaphore": ManagedBoundedSemaphore,
    "Condition": ManagedCondition,
    "Event": ManagedEvent,
    "Barrier": ManagedBarrier,
    "Value": ManagedValue,
    "Array": ManagedArray,
}


class _Server(Server):
    """A manager's server that makes and keeps objects in shared memory too."""

    public = [*Server.public, "keep"]

    def __init__(self, *args):
        super().__init__(*args)
        self._kept = []

    def keep(self, connection, typeid, /, *args, **kwds):
        """Make an object and keep it; who asked gets it by its handle."""
        kept = _KEPT[typeid](*args, **kwds)
        self._kept.append(kept)
        return kept


class _Started:
    """A manager whose process ends with the one that started it, however that ends."""

    def start(self, initializer=None, initargs=()):
        """Start the manager's process, in which `initializer(*initargs)` is called first."""
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        super().start(_initialize, (_starter(), initializer, initargs))


def _initialize(starter, initializer, initargs):
    _end_with_starter(starter)
    # A descriptor or two for each queue that is kept.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if initializer is not None:
        initializer(*initargs)


class SyncManager(_Started, _stdlib.SyncManager):
    """A manager of queues, locks, values, dictionaries, lists, sets and namespaces.

    `Manager()` makes one and starts it. A queue, lock, value, … of a manager is usable in every process that
    has got it, in a pool's tasks too, and is there as long as the manager.
    """

    _Server = _Server

    def __init__(self, address=None, authkey=None, serializer="pickle", ctx=None, **options):
        super().__init__(address, authkey, serializer, ctx or _default_context.get_context(), **options)

    def get_server(self):
        """Return the server, to be run in this process by its `serve_forever`."""
        if self._state.value != State.INITIAL:
            return super().get_server()
        return self._Server(self._registry, self._address, self._authkey, self._serializer)

    def _keep(self, typeid, /, *args, **kwds):
        if self._serializer != "pickle":
            # Nothing but a proxy gets through XML.
            return getattr(super(), typeid)(*args, **kwds)
        assert self._state.value == State.STARTED, "server not yet started"
        with self._Client(self._address, authkey=self._authkey) as connection:
            return dispatch(connection, None, "keep", (typeid, *args), kwds)

    def Queue(self, maxsize=0):
        """Return a queue with the methods of `queue.Queue`; `maxsize` above 0 is a bound."""
        return self._keep("Queue", maxsize)

    def JoinableQueue(self, maxsize=0):
        """Return a queue with the methods of `queue.Queue`; `maxsize` above 0 is a bound."""
        return self._keep("JoinableQueue", maxsize)

    def Lock(self):
        """Return a lock."""
        return self._keep("Lock")

    def RLock(self):
        """Return a lock that its owner may take again."""
        return self._keep("RLock")

    def Semaphore(self, value=1):
        """Return a semaphore of `value` permits."""
        return self._keep("Semaphore", value)

    def BoundedSemaphore(self, value=1):
        """Return a semaphore that never has more permits than the `value` it started with."""
        return self._keep("BoundedSemaphore", value)

    def Condition(self, lock=None):
        """Return a condition variable over `lock`, a manager's; by default over an `RLock` of its own."""
        return self._keep("Condition", lock)

    def Event(self):
        """Return an event, which is not set."""
        return self._keep("Event")

    def Barrier(self, parties, action=None, timeout=None):
        """Return a barrier for `parties` processes or threads."""
        return self._keep("Barrier", parties, action, timeout)

    def Value(self, typecode, value, lock=True):
        """Return an object with an attribute `value`.

        It is in shared memory if it is a number of a numeric typecode.
        """
        if ManagedValue.can_hold(typecode, value):
            return self._keep("Value", typecode, value)
        return super().Value(typecode, value, lock)

    def Array(self, typecode, sequence, lock=True):
        """Return an array. It is in shared memory if the typecode is that of numbers."""
        if ManagedArray.can_hold(typecode, sequence):
            return self._keep("Array", typecode, array(typecode, sequence))
        return super().Array(typecode, sequence, lock)


SyncManager.register("Pool", Pool, _stdlib.PoolProxy)
SyncManager.Pool.__doc__ = "Return a proxy of a pool of worker processes that the manager's process starts."

if "set" not in SyncManager._registry:
    _operators = ("and", "or", "sub", "xor")
    _BaseSetProxy = MakeProxyType(
        "BaseSetProxy",
        (
            *(f"__{name}__" for name in ("contains", "iter", "len", "ge", "gt", "le", "lt")),
            *(f"__{prefix}{name}__" for name in _operators for prefix in ("", "i", "r")),
            *("add", "clear", "copy", "difference", "difference_update", "discard", "intersection"),
            *("intersection_update", "isdisjoint", "issubset", "issuperset", "pop", "remove"),
            *("symmetric_difference", "symmetric_difference_update", "union", "update"),
        ),
    )
    _BaseSetProxy._method_to_typeid_ = {"__iter__": "Iterator"}

    class SetProxy(_BaseSetProxy):
        """A proxy of a set in a manager's process."""

        def __iand__(self, other):
            self._callmethod("__iand__", (other,))
            return self

        def __ior__(self, other):
            self._callmethod("__ior__", (other,))
            return self

        def __isub__(self, other):
            self._callmethod("__isub__", (other,))
            return self

        def __ixor__(self, other):
            self._callmethod("__ixor__", (other,))
            return self

    SyncManager.register("set", set, SetProxy)
    SyncManager.set.__doc__ = "Return a proxy of a set in the manager's process, of what the iterable yields."


class SharedMemoryManager(_Started, _stdlib.SharedMemoryManager):
    """A manager of blocks of shared memory, which are gone when it ends."""

    def __init__(self, address=None, authkey=None, serializer="pickle", ctx=None, **options):
        super().__init__(address, authkey, serializer, ctx or _default_context.get_context(), **options)


def __getattr__(name):
    return getattr(_stdlib, name)
