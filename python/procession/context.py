"""Contexts: CPython's start methods, with objects in shared memory.

Each class is a subclass of the one of the same name in :mod:`multiprocessing.context`. The start method that
is set for one of the two packages is set for both, since there is one default start method in a process.
"""

from multiprocessing import context as _stdlib
from multiprocessing.context import (
    AuthenticationError,
    BufferTooShort,
    ProcessError,
    TimeoutError,
    assert_spawning,
    get_spawning_popen,
    set_spawning_popen,
)

from . import _pickler, process

__all__ = ()


class BaseContext(_stdlib.BaseContext):
    """What all contexts have: the classes and functions that are also the names of the package."""

    @property
    def reducer(self):
        """How objects are pickled, for all contexts: ``multiprocessing.reduction`` or what is put
        in its place."""
        return _stdlib.reduction

    @reducer.setter
    def reducer(self, reduction):
        _stdlib.reduction = reduction
        _pickler.refresh()

    def Manager(self):
        """Start a process that keeps shared objects, and return its manager."""
        from .managers import SyncManager

        manager = SyncManager(ctx=self.get_context())
        manager.start()
        return manager

    def Lock(self, *, robust=True):
        """Return a lock, which need not be released by the process or thread that took it."""
        from .synchronize import Lock

        return Lock(ctx=self.get_context(), robust=robust)

    def RLock(self, *, robust=True):
        """Return a lock that its owner may take again."""
        from .synchronize import RLock

        return RLock(ctx=self.get_context(), robust=robust)

    def Condition(self, lock=None):
        """Return a condition variable over `lock`, by default an `RLock` of its own."""
        from .synchronize import Condition

        return Condition(lock, ctx=self.get_context())

    def Semaphore(self, value=1, *, robust=False):
        """Return a semaphore of `value` permits."""
        from .synchronize import Semaphore

        return Semaphore(value, ctx=self.get_context(), robust=robust)

    def BoundedSemaphore(self, value=1, *, robust=False):
        """Return a semaphore that never has more permits than the `value` it started with."""
        from .synchronize import BoundedSemaphore

        return BoundedSemaphore(value, ctx=self.get_context(), robust=robust)

    def Event(self):
        """Return an event, which is not set."""
        from .synchronize import Event

        return Event(ctx=self.get_context())

    def Barrier(self, parties, action=None, timeout=None):
        """Return a barrier for `parties` processes or threads."""
        from .synchronize import Barrier

        return Barrier(parties, action, timeout, ctx=self.get_context())

    def Queue(self, maxsize=0, **options):
        """Return a queue of at most `maxsize` objects, or without a bound if that is 0 or less.

        The options are those of `procession.queues.Queue`.
        """
        from .queues import Queue

        return Queue(maxsize, ctx=self.get_context(), **options)

    def JoinableQueue(self, maxsize=0, **options):
        """Return a queue that knows how many of its objects are still worked on.

        The options are those of `procession.queues.JoinableQueue`.
        """
        from .queues import JoinableQueue

        return JoinableQueue(maxsize, ctx=self.get_context(), **options)

    def SimpleQueue(self, **options):
        """Return a queue with `put`, `get`, `empty` and `close` only."""
        from .queues import SimpleQueue

        return SimpleQueue(ctx=self.get_context(), **options)

    def Pool(self, processes=None, initializer=None, initargs=(), maxtasksperchild=None, **options):
        """Return a pool of worker processes.

        The options are those of `procession.pool.Pool`.
        """
        from .pool import Pool

        return Pool(processes, initializer, initargs, maxtasksperchild, context=self.get_context(), **options)

    def RawValue(self, typecode_or_type, *args):
        """Return a ctypes object in shared memory, without a lock."""
        from .sharedctypes import RawValue

        return RawValue(typecode_or_type, *args)

    def RawArray(self, typecode_or_type, size_or_initializer):
        """Return a ctypes array in shared memory, without a lock."""
        from .sharedctypes import RawArray

        return RawArray(typecode_or_type, size_or_initializer)

    def Value(self, typecode_or_type, *args, lock=True):
        """Return a ctypes object in shared memory, by default with a lock around each access."""
        from .sharedctypes import Value

        return Value(typecode_or_type, *args, lock=lock, ctx=self.get_context())

    def Array(self, typecode_or_type, size_or_initializer, *, lock=True):
        """Return a ctypes array in shared memory, by default with a lock around each access."""
        from .sharedctypes import Array

        return Array(typecode_or_type, size_or_initializer, lock=lock, ctx=self.get_context())

    def freeze_support(self):
        """In a frozen program: if it was started to be a child of itself, be that, and exit.

        Call it first in ``if __name__ == "__main__":``. In other programs it does nothing.
        """
        from ._frozen import freeze_support

        freeze_support()

    def get_context(self, method=None):
        """Return the context of a start method; without one, this context itself."""
        if method is None:
            return self
        try:
            context = _concrete_contexts[method]
        except KeyError:
            raise ValueError(f"cannot find context for {method!r}") from None
        context._check_available()
        return context


class Process(process.BaseProcess, _stdlib.Process):
    """A process started by the default start method: it calls ``target(*args, **kwargs)`` and ends.

    A subclass may define `run` instead. `join` waits for the end, for `timeout` seconds at most; `exitcode`
    is then 0, what `sys.exit` was given, 1 after another exception, or minus the number of the signal that
    killed it. A daemon ends with its parent, also when that is killed.

        process = Process(target=print, args=("Hello",))
        process.start()
        process.join()
    """

    @staticmethod
    def _Popen(process_obj):
        return _default_context.get_context().Process._Popen(process_obj)


class ForkProcess(process.BaseProcess, _stdlib.ForkProcess):
    """A process that is a copy of its parent."""

    @staticmethod
    def _Popen(process_obj):
        from ._popen import Popen

        return Popen(process_obj)


class SpawnProcess(process.BaseProcess, _stdlib.SpawnProcess):
    """A process with an interpreter of its own."""

    @staticmethod
    def _Popen(process_obj):
        from ._popen_exec import SpawnPopen

        return SpawnPopen(process_obj)


class ForkServerProcess(process.BaseProcess, _stdlib.ForkServerProcess):
    """A process forked from a server that has few resources."""

    @staticmethod
    def _Popen(process_obj):
        from ._popen_exec import ForkServerPopen

        process._preload("procession._forkserver_preload")
        return ForkServerPopen(process_obj)


class ForkContext(BaseContext, _stdlib.ForkContext):
    """The start method ``fork``."""

    Process = ForkProcess


class SpawnContext(BaseContext, _stdlib.SpawnContext):
    """The start method ``spawn``."""

    Process = SpawnProcess


class ForkServerContext(BaseContext, _stdlib.ForkServerContext):
    """The start method ``forkserver``."""

    Process = ForkServerProcess


_concrete_contexts = {"fork": ForkContext(), "spawn": SpawnContext(), "forkserver": ForkServerContext()}


# CPython's own.
_THEIRS = _stdlib.ForkContext, _stdlib.SpawnContext, _stdlib.ForkServerContext


def _ours(context):
    """The context of this package in the place of one of CPython's own; another one, or None, as it is."""
    if type(context) is _stdlib.DefaultContext:
        return _default_context.get_context()
    return _concrete_contexts[context._name] if type(context) in _THEIRS else context


class DefaultContext(BaseContext, _stdlib.DefaultContext):
    """The context whose start method can be set."""

    Process = Process

    def __init__(self):
        # The start method is kept where multiprocessing keeps it: a starting child is told it by CPython's
        # own code.
        pass

    @property
    def _default_context(self):
        return _ours(_stdlib._default_context._default_context)

    @property
    def _actual_context(self):
        return _ours(_stdlib._default_context._actual_context)

    @_actual_context.setter
    def _actual_context(self, context):
        _stdlib._default_context._actual_context = context and _stdlib._concrete_contexts[context._name]

    def get_context(self, method=None):
        """Return the context of a start method; without one, of the default."""
        if method is None:
            return _ours(_stdlib._default_context.get_context())
        return super().get_context(method)


_default_context = DefaultContext()


def __getattr__(name):
    return getattr(_stdlib, name)
