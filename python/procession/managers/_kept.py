"""The objects of a manager that are in shared memory: its process makes and keeps them.

Who asks for one uses the object itself: no process stands between those who share it.
"""

from array import array
from functools import wraps
from multiprocessing import managers as _stdlib

from .. import _procession, queues, synchronize


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
