from multiprocessing import shared_memory as _stdlib
from typing import TypeVar

__all__ = ["SharedMemory", "ShareableList"]

_T = TypeVar("_T", int, float, bool, str, bytes, None)

class SharedMemory(_stdlib.SharedMemory):
    def __init__(
        self, name: str | None = None, create: bool = False, size: int = 0, *, track: bool = True
    ) -> None: ...

class ShareableList(_stdlib.ShareableList[_T]): ...
