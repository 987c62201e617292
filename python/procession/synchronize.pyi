import threading
from typing import Final

from . import _procession
from ._procession import (
    BoundedSemaphore as BoundedSemaphore,
)
from ._procession import (
    Condition as Condition,
)
from ._procession import (
    Event as Event,
)
from ._procession import (
    Lock as Lock,
)
from ._procession import (
    OwnerDied as OwnerDied,
)
from ._procession import (
    OwnerDiedWarning as OwnerDiedWarning,
)
from ._procession import (
    RLock as RLock,
)
from ._procession import (
    Semaphore as Semaphore,
)
from ._procession import (
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
