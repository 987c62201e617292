"""Locks, semaphores, conditions, events and barriers between processes, as in
``multiprocessing.synchronize``.

A process that is killed while it holds a lock does not hang the others: see the argument ``robust`` of each
class. Everything here can be pickled and sent to any process, under every start method.
"""

import threading

from ._procession import (
    Barrier as _Barrier,
    BoundedSemaphore,
    Condition,
    Event,
    Lock,
    OwnerDied,
    OwnerDiedWarning,
    RLock,
    Semaphore,
    SemLock,
)

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


class Barrier(_Barrier, threading.Barrier):
    __doc__ = _Barrier.__doc__
