"""The objects of a manager that are in shared memory: its process makes and keeps them.

Each is an object in shared memory and a proxy at once. Its methods use the memory: no process
stands between the processes that share it.
"""

import threading
from copyreg import __newobj__
from functools import wraps
from multiprocessing import managers as _stdlib
from queue import Queue

from .. import _procession, queues, synchronize
from . import _session, _table
from ._proxy import BaseProxy
from ._token import Token
from ._types import AcquirerProxy, BarrierProxy, ConditionProxy, EventProxy


class Kept:
    """A base before the class of an object in shared memory and that of its proxy: a manager's
    process keeps the object.

    A pickle of it names that process, which keeps the object, and not the process that pickles it,
    which may end before it is unpickled.
    """

    # What the manager's process pickled; None in that process.
    _kept = None
    # None of an object that is a part of another one.
    _token = None
    # In the process that asked for it: as long as it is there, the manager is.
    _manager = None
    _serializer = "pickle"

    def __reduce__(self):
        return __newobj__, (type(self),), self.__getstate__()

    def __getstate__(self):
        token = self._token
        identity = None if token is None else (token.typeid, token.address, token.id)
        return identity, super().__getstate__() if self._kept is None else self._kept

    def __setstate__(self, state):
        identity, self._kept = state
        if identity is not None:
            self._identify(Token(*identity))
        super().__setstate__(self._kept)

    def _backing(self):
        """What the manager's process has for what does not fit in shared memory; None if all
        does."""
        return None

    def _identify(self, token):
        over = _session.context.session
        if over is not None and over.nonce is not None and token.id.startswith(over.nonce):
            # The process that put it there may know the manager by another address.
            token.address = over.address
        self._token = token
        self._id = token.id

    @property
    def _authkey(self):
        return _table.key_of(self._token.address)

    def _callmethod(self, methodname, args=(), kwds={}):
        """Call a method that a proxy of such an object has, in this process."""
        if methodname == "__repr__":
            return str(self)
        if methodname not in self._exposed_:
            raise _stdlib.RemoteError(
                f"AttributeError: method {methodname!r} of {self!r} is not in exposed={self._exposed_!r}\n"
            )
        return getattr(self, methodname)(*args, **kwds)

    def __deepcopy__(self, memo):
        # What CPython's proxy copies is the object itself, and a lock or queue has no copy.
        return self

    def __repr__(self):
        """What CPython's proxy of such an object has."""
        if self._token is None:
            return super().__repr__()
        typeid = self._token.typeid
        proxy = _stdlib.SyncManager._registry[typeid][-1]
        name = f"AutoProxy[{typeid}]" if proxy is _stdlib.AutoProxy else proxy.__name__
        return f"<{name} object, typeid {typeid!r} at {id(self):#x}>"

    def __str__(self):
        return super().__repr__()


def _acquire(self, blocking=True, timeout=None):
    """Acquire it, as the classes of `threading` do. Return whether it was acquired.

    It waits if `blocking`, `timeout` seconds at most if that is not None or -1.
    """
    if timeout is not None:
        # For its errors, which differ from version to version.
        threading.Lock().acquire(blocking, timeout)
        if timeout == -1:
            timeout = None
    return self._acquire_shared(blocking, timeout)


def _acquire_permit(self, blocking=True, timeout=None):
    """Acquire it, as the classes of `threading` do. Return whether it was acquired.

    It waits if `blocking`, `timeout` seconds at most if that is not None.
    """
    if not blocking and timeout is not None:
        raise ValueError("can't specify timeout for non-blocking acquire")
    return self._acquire_shared(blocking, timeout)


def _raising(method, error, reason, becomes=RuntimeError):
    """The method, with the exception of `threading` in place of `error`."""

    @wraps(method)
    def call(self, *args, **kwargs):
        try:
            return method(self, *args, **kwargs)
        except error:
            raise becomes(reason) from None

    return call


class ManagedLock(Kept, synchronize.Lock, AcquirerProxy):
    """A manager's lock. Any process and thread may release it."""

    _acquire_shared = synchronize.Lock.acquire
    acquire = _acquire
    release = _raising(synchronize.Lock.release, ValueError, "release unlocked lock")


class ManagedRLock(Kept, synchronize.RLock, AcquirerProxy):
    """A manager's lock that its owner, a thread of a process, may take again."""

    _acquire_shared = synchronize.RLock.acquire
    acquire = _acquire
    release = _raising(synchronize.RLock.release, AssertionError, "cannot release un-acquired lock")


class _Permits:
    def __init__(self, value=1):
        if value < 0:
            raise ValueError("semaphore initial value must be >= 0")
        super().__init__(value)


class ManagedSemaphore(Kept, _Permits, synchronize.Semaphore, AcquirerProxy):
    """A manager's semaphore."""

    _acquire_shared = synchronize.Semaphore.acquire
    acquire = _acquire_permit


class ManagedBoundedSemaphore(Kept, _Permits, synchronize.BoundedSemaphore, AcquirerProxy):
    """A manager's semaphore that never has more permits than it started with."""

    _acquire_shared = synchronize.BoundedSemaphore.acquire
    acquire = _acquire_permit
    release = _raising(
        synchronize.BoundedSemaphore.release, ValueError, "Semaphore released too many times", ValueError
    )


class ManagedCondition(Kept, synchronize.Condition, ConditionProxy):
    """A manager's condition variable over one of its locks."""

    _acquire_shared = synchronize.Condition.acquire
    acquire = _acquire
    release = _raising(
        synchronize.Condition.release, (AssertionError, ValueError), "cannot release un-acquired lock"
    )
    wait = _raising(synchronize.Condition.wait, AssertionError, "cannot wait on un-acquired lock")
    notify = _raising(synchronize.Condition.notify, AssertionError, "cannot notify on un-acquired lock")
    notify_all = _raising(
        synchronize.Condition.notify_all, AssertionError, "cannot notify on un-acquired lock"
    )

    def __init__(self, lock=None):
        # Its own lock has to be kept as it is itself.
        super().__init__(ManagedRLock() if lock is None else lock)

    def wait_for(self, predicate, timeout=None):
        """Wait until `predicate()` is true, for `timeout` seconds at most. Return what it returned
        last."""
        # By `wait`, whose exceptions these are. The predicate may raise any.
        return _stdlib.ConditionProxy.wait_for(self, predicate, timeout)


class ManagedEvent(Kept, synchronize.Event, EventProxy):
    """A manager's event."""


class ManagedBarrier(Kept, synchronize.Barrier, BarrierProxy):
    """A manager's barrier. Its action is called in one of the processes that wait."""


class ManagedQueue(Kept, _procession.BaseManagedQueue, queues.JoinableQueue, BaseProxy):
    """A manager's queue, with the methods of `queue.Queue`."""

    _exposed_ = tuple(_stdlib.public_methods(Queue()))
    _isauto = True
