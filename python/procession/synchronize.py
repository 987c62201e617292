"""Locks, semaphores, conditions, events and barriers between processes, as in
``multiprocessing.synchronize``.

A process that is killed while it holds a lock does not hang the others: see the argument ``robust`` of each
class. Everything here can be pickled and sent to any process, under every start method.

Each class derives from CPython's of the same name, so that software that asks for that one
recognises it.
"""

from multiprocessing import synchronize as _stdlib

from . import _private_names, _procession
from ._procession import OwnerDied, OwnerDiedWarning, SemLock

__all__ = [
    "Barrier",
    "BoundedSemaphore",
    "Condition",
    "Event",
    "Lock",
    "OwnerDied",
    "OwnerDiedWarning",
    "RLock",
    "Semaphore",
]

RECURSIVE_MUTEX, SEMAPHORE = 0, 1
SEM_VALUE_MAX = SemLock.SEM_VALUE_MAX


class Lock(_procession.Lock, _stdlib.Lock):
    __doc__ = _procession.Lock.__doc__


class RLock(_procession.RLock, _stdlib.RLock):
    __doc__ = _procession.RLock.__doc__


class Semaphore(_procession.Semaphore, _stdlib.Semaphore):
    __doc__ = _procession.Semaphore.__doc__


class BoundedSemaphore(_procession.BoundedSemaphore, Semaphore, _stdlib.BoundedSemaphore):
    __doc__ = _procession.BoundedSemaphore.__doc__


class Condition(_procession.Condition, _stdlib.Condition):
    __doc__ = _procession.Condition.__doc__

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        self._hook()


class Event(_procession.Event, _stdlib.Event):
    __doc__ = _procession.Event.__doc__

    # As CPython's, and of these classes it alone: its attributes are pickled with it.
    def __getstate__(self):
        return (*super().__getstate__(), vars(self))

    def __setstate__(self, state):
        *state, attributes = state
        super().__setstate__(tuple(state))
        vars(self).update(attributes)


class Barrier(_procession.Barrier, _stdlib.Barrier):
    __doc__ = _procession.Barrier.__doc__


for _cls in (Lock, RLock, Semaphore, BoundedSemaphore):
    _procession._quicken(_cls)

_private_names.add(Event, _private_names.EVENT)
_private_names.add(Barrier, _private_names.BARRIER)
