from collections.abc import Callable, Iterable
from multiprocessing import pool as _stdlib
from multiprocessing.context import BaseContext
from multiprocessing.pool import (
    CLOSE as CLOSE,
)
from multiprocessing.pool import (
    INIT as INIT,
)
from multiprocessing.pool import (
    RUN as RUN,
)
from multiprocessing.pool import (
    TERMINATE as TERMINATE,
)
from multiprocessing.pool import (
    ApplyResult as ApplyResult,
)
from multiprocessing.pool import (
    AsyncResult as AsyncResult,
)
from multiprocessing.pool import (
    IMapIterator as IMapIterator,
)
from multiprocessing.pool import (
    IMapUnorderedIterator as IMapUnorderedIterator,
)
from multiprocessing.pool import (
    MapResult as MapResult,
)
from multiprocessing.pool import (
    ThreadPool as ThreadPool,
)
from typing import Any

__all__ = ["Pool", "ThreadPool"]

class Pool(_stdlib.Pool):
    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: BaseContext | None = None,
    ) -> None: ...

class MaybeEncodingError(Exception):
    exc: str
    value: str
    def __init__(self, exc: BaseException, value: object) -> None: ...

class ExceptionWithTraceback:
    exc: BaseException
    tb: str
    def __init__(self, exc: BaseException, tb: Any) -> None: ...
