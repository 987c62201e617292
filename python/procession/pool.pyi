from collections.abc import Callable, Iterable
from multiprocessing import pool as _stdlib
from multiprocessing.context import BaseContext
from multiprocessing.pool import (
    CLOSE as CLOSE,
    INIT as INIT,
    RUN as RUN,
    TERMINATE as TERMINATE,
    ApplyResult as ApplyResult,
    AsyncResult as AsyncResult,
    IMapIterator as IMapIterator,
    IMapUnorderedIterator as IMapUnorderedIterator,
    MapResult as MapResult,
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
