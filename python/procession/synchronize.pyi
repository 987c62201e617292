from multiprocessing import synchronize as _stdlib
from multiprocessing.context import BaseContext
from typing import Any, Final

from . import _procession
from ._procession import (
    OwnerDied as OwnerDied,
    OwnerDiedWarning as OwnerDiedWarning,
    SemLock as SemLock,
    _Robust,
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

class Lock(_procession.Lock, _stdlib.Lock): ...
class RLock(_procession.RLock, _stdlib.RLock): ...
class Semaphore(_procession.Semaphore, _stdlib.Semaphore): ...
class BoundedSemaphore(_procession.BoundedSemaphore, Semaphore, _stdlib.BoundedSemaphore): ...

class Condition(_procession.Condition, _stdlib.Condition):
    def __setattr__(self, name: str, value: Any) -> None: ...

class Event(_procession.Event, _stdlib.Event):
    def __getstate__(self) -> tuple[Any, ...]: ...
    def __setstate__(self, state: tuple[Any, ...]) -> None: ...

class Barrier(_procession.Barrier, _stdlib.Barrier): ...
