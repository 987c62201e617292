from collections.abc import Callable, Iterable, Iterator, Mapping
from multiprocessing import pool as _stdlib
from multiprocessing.context import BaseContext
from multiprocessing.pool import (
    CLOSE as CLOSE,
    INIT as INIT,
    RUN as RUN,
    TERMINATE as TERMINATE,
    ThreadPool as ThreadPool,
)
from multiprocessing.process import BaseProcess
from types import GenericAlias, TracebackType
from typing import Any, Generic, TypeVar

from typing_extensions import Self

from ._errors import (
    PoolBroken as PoolBroken,
    PoolTerminated as PoolTerminated,
    TaskTimeoutError as TaskTimeoutError,
    WorkerDied as WorkerDied,
)
from ._procession import Job, ResultIterator

__all__ = ["Pool", "ThreadPool"]

_S = TypeVar("_S")
_T = TypeVar("_T")

class ApplyResult(Job[_T], _stdlib.ApplyResult[_T], Generic[_T]):
    def __init__(self) -> None: ...
    def cancel(self, *, kill: bool = False) -> bool: ...
    def __class_getitem__(cls, item: Any, /) -> GenericAlias: ...

AsyncResult = ApplyResult

class MapResult(ApplyResult[list[_T]], _stdlib.MapResult[_T], Generic[_T]): ...

class IMapIterator(ResultIterator[_T], _stdlib.IMapIterator[_T], Generic[_T]):  # type: ignore[misc]
    def __init__(self) -> None: ...
    def __del__(self) -> None: ...

class IMapUnorderedIterator(IMapIterator[_T], _stdlib.IMapUnorderedIterator[_T], Generic[_T]): ...  # type: ignore[misc]

class Pool(_stdlib.Pool):
    def __init_subclass__(cls, **options: Any) -> None: ...
    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: BaseContext | None = None,
        *,
        retries: int = 0,
        timeout: float | None = None,
        max_memory_per_child: int | None = None,
        daemon: bool = True,
    ) -> None: ...
    @staticmethod
    def Process(ctx: BaseContext, *args: Any, **kwds: Any) -> BaseProcess: ...  # type: ignore[override]
    def apply(
        self,
        func: Callable[..., _T],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] = {},
        *,
        retries: int | None = None,
        timeout: float | None = None,
    ) -> _T: ...
    def apply_async(
        self,
        func: Callable[..., _T],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] = {},
        callback: Callable[[_T], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
        *,
        retries: int | None = None,
        timeout: float | None = None,
    ) -> ApplyResult[_T]: ...
    def map(
        self,
        func: Callable[[_S], _T],
        iterable: Iterable[_S],
        chunksize: int | None = None,
        *,
        retries: int | None = None,
        timeout: float | None = None,
        progress: bool = False,
    ) -> list[_T]: ...
    def starmap(
        self,
        func: Callable[..., _T],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        *,
        retries: int | None = None,
        timeout: float | None = None,
        progress: bool = False,
    ) -> list[_T]: ...
    def map_async(
        self,
        func: Callable[[_S], _T],
        iterable: Iterable[_S],
        chunksize: int | None = None,
        callback: Callable[[list[_T]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
        *,
        retries: int | None = None,
        timeout: float | None = None,
    ) -> MapResult[_T]: ...
    def starmap_async(
        self,
        func: Callable[..., _T],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callable[[list[_T]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
        *,
        retries: int | None = None,
        timeout: float | None = None,
    ) -> MapResult[_T]: ...
    def imap(  # type: ignore[override]
        self,
        func: Callable[[_S], _T],
        iterable: Iterable[_S],
        chunksize: int = 1,
        *,
        buffersize: int | None = None,
        retries: int | None = None,
        timeout: float | None = None,
        progress: bool = False,
    ) -> IMapIterator[_T] | Iterator[_T]: ...
    def imap_unordered(  # type: ignore[override]
        self,
        func: Callable[[_S], _T],
        iterable: Iterable[_S],
        chunksize: int = 1,
        *,
        buffersize: int | None = None,
        retries: int | None = None,
        timeout: float | None = None,
        progress: bool = False,
    ) -> IMapUnorderedIterator[_T] | Iterator[_T]: ...
    async def aapply(
        self,
        func: Callable[..., _T],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] = {},
        *,
        retries: int | None = None,
        timeout: float | None = None,
    ) -> _T: ...
    def resize(self, processes: int) -> None: ...
    def close(self) -> None: ...
    def terminate(self) -> None: ...
    def join(self) -> None: ...
    def describe(self) -> str: ...
    def __del__(self, _warn: Callable[..., object] = ..., RUN: str = ...) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None: ...

class MaybeEncodingError(Exception):
    exc: str
    value: str
    def __init__(self, exc: BaseException, value: object) -> None: ...

class ExceptionWithTraceback:
    exc: BaseException
    tb: str
    def __init__(self, exc: BaseException, tb: Any) -> None: ...
