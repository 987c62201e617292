import threading
from typing import Final

from . import _procession
from ._procession import (
    BoundedSemaphore as BoundedSemaphore,
    Condition as Condition,
    Event as Event,
    Lock as Lock,
    OwnerDied as OwnerDied,
    OwnerDiedWarning as OwnerDiedWarning,
    RLock as RLock,
    Semaphore as Semaphore,
    SemLock as SemLock,
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

RECURSIVE_MUTEX: Final = 0
SEMAPHORE: Final = 1
SEM_VALUE_MAX: Final[int]

class Barrier(_procession.Barrier, threading.Barrier): ...
