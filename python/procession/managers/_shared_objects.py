"""The objects of a manager that are in shared memory.

Each is an object in shared memory and a proxy at once. Its methods use the memory: no process
stands between the processes that share it. As a proxy it holds the object in the manager's process,
which keeps the memory open for the next process that is sent the object.
"""

import threading
from functools import wraps
from multiprocessing import managers as _stdlib
from queue import Queue

from .. import _procession, queues, synchronize
from ._errors import ManagerDied
from ._proxy import BaseProxy, RebuildProxy
from ._proxy_types import AcquirerProxy, BarrierProxy, ConditionProxy, EventProxy


class SharedObject:
    """A base before the class of an object in shared memory and that of its proxy.

    A pickle of it names the manager's process, which has the memory open, and not the process that
    pickles it, which may end before it is unpickled.
    """

    # By what any process opens the memory. The manager's process makes it.
    _state = None
    # None for a part of another object.
    _token = None

    def _shared_state(self):
        """Return what opens the memory while the manager's process has the object."""
        if self._state is None:
            # The manager's process holds the object itself until no process can open it any more.
            # So it need not count which handles were opened.
            self._state = _procession._held_handles(super().__getstate__)
        return self._state

    def _open_memory(self, state):
        self._state = state
        super().__setstate__(state)

    def __reduce__(self):
        if self._token is None:
            return _open_part, (type(self), self._shared_state())
        return BaseProxy.__reduce__(self)

    def _new_ticket(self):
        try:
            return super()._new_ticket()
        except ManagerDied:
            # Other processes that have the object open serve those that get it from this one.
            return None

    def _recipe(self):
        return RebuildProxy, open_shared, {"cls": type(self), "state": self._state}

    def _backing(self):
        """What the manager's process has for what does not fit in shared memory; None if all
        does."""
        return None

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


def open_shared(
    token, serializer, *, cls, state, manager=None, authkey=None, incref=True, manager_owned=False
):
    """Open an object, of which the manager holds what the token names."""
    made = cls.__new__(cls)
    try:
        # Before the memory is opened: the manager's process has it open as long as it is held.
        BaseProxy.__init__(made, token, serializer, manager, authkey, None, incref, manager_owned)
    except ManagerDied as error:
        try:
            made._open_memory(state)
        except Exception:
            raise error from error.__cause__
    else:
        made._open_memory(state)
    return made


def _open_part(cls, state):
    made = cls.__new__(cls)
    made._open_memory(state)
    return made


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


class ManagedLock(SharedObject, synchronize.Lock, AcquirerProxy):
    """A manager's lock. Any process and thread may release it."""

    _acquire_shared = synchronize.Lock.acquire
    acquire = _acquire
    release = _raising(synchronize.Lock.release, ValueError, "release unlocked lock")


class ManagedRLock(SharedObject, synchronize.RLock, AcquirerProxy):
    """A manager's lock that its owner, a thread of a process, may take again."""

    _acquire_shared = synchronize.RLock.acquire
    acquire = _acquire
    release = _raising(synchronize.RLock.release, AssertionError, "cannot release un-acquired lock")


class _Permits:
    def __init__(self, value=1):
        if value < 0:
            raise ValueError("semaphore initial value must be >= 0")
        super().__init__(value)


class ManagedSemaphore(SharedObject, _Permits, synchronize.Semaphore, AcquirerProxy):
    """A manager's semaphore."""

    _acquire_shared = synchronize.Semaphore.acquire
    acquire = _acquire_permit


class ManagedBoundedSemaphore(SharedObject, _Permits, synchronize.BoundedSemaphore, AcquirerProxy):
    """A manager's semaphore that never has more permits than it started with."""

    _acquire_shared = synchronize.BoundedSemaphore.acquire
    acquire = _acquire_permit
    release = _raising(
        synchronize.BoundedSemaphore.release, ValueError, "Semaphore released too many times", ValueError
    )


class ManagedCondition(SharedObject, synchronize.Condition, ConditionProxy):
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
        # A lock of its own is opened as the condition is.
        super().__init__(ManagedRLock() if lock is None else lock)

    def wait_for(self, predicate, timeout=None):
        """Wait until `predicate()` is true, for `timeout` seconds at most. Return what it returned
        last."""
        # By `wait`, whose exceptions these are. The predicate may raise any.
        return _stdlib.ConditionProxy.wait_for(self, predicate, timeout)


class ManagedEvent(SharedObject, synchronize.Event, EventProxy):
    """A manager's event."""


class ManagedBarrier(SharedObject, synchronize.Barrier, BarrierProxy):
    """A manager's barrier. Its action is called in one of the processes that wait."""


class ManagedQueue(SharedObject, _procession.BaseManagedQueue, queues.JoinableQueue, BaseProxy):
    """A manager's queue, with the methods of `queue.Queue`."""

    _exposed_ = tuple(_stdlib.public_methods(Queue()))
    _isauto = True
