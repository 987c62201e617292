from multiprocessing import queues as _stdlib
from multiprocessing.context import BaseContext
from queue import Empty as Empty, Full as Full
from types import GenericAlias
from typing import Any, Literal, TypeAlias, TypeVar

from typing_extensions import Self

from ._procession import (
    Abandoned as Abandoned,
    BaseQueue,
    DeliveryLost as DeliveryLost,
    ShutDown as ShutDown,
)

__all__ = ["Queue", "SimpleQueue", "JoinableQueue", "Empty", "Full", "ShutDown", "DeliveryLost", "Abandoned"]

_T = TypeVar("_T")
_Codec: TypeAlias = Literal["msgpack", "bytes"] | None

class _Base(BaseQueue[_T]):
    def __class_getitem__(cls, item: Any, /) -> GenericAlias: ...
    def __init_subclass__(cls, **options: Any) -> None: ...
    def __setattr__(self, name: str, value: Any) -> None: ...
    def __getstate__(self) -> tuple[bytes, _Codec, bool]: ...
    def __setstate__(self, state: tuple[bytes, _Codec, bool]) -> None: ...
    async def aget(self) -> _T: ...
    async def aput(self, obj: _T) -> None: ...

class Queue(_Base[_T], _stdlib.Queue[_T]):  # type: ignore[misc]
    def __init__(
        self,
        maxsize: int = 0,
        *,
        ctx: BaseContext | None = None,
        name: str | None = None,
        max_bytes: int | None = None,
        codec: _Codec = None,
        abandonable: bool = False,
    ) -> None: ...
    @classmethod
    def open(cls, name: str, *, codec: _Codec = None) -> Self: ...
    def close(self) -> None: ...
    def join_thread(self) -> None: ...
    def cancel_join_thread(self) -> None: ...

class JoinableQueue(Queue[_T], _stdlib.JoinableQueue[_T]):  # type: ignore[misc]
    def __init__(
        self,
        maxsize: int = 0,
        *,
        ctx: BaseContext | None = None,
        name: str | None = None,
        max_bytes: int | None = None,
        codec: _Codec = None,
        redeliver: bool = False,
        abandonable: bool = False,
    ) -> None: ...
    @classmethod
    def open(cls, name: str, *, codec: _Codec = None, redeliver: bool = False) -> Self: ...
    def task_done(self) -> None: ...
    def join(self) -> None: ...

class SimpleQueue(_Base[_T], _stdlib.SimpleQueue[_T]):  # type: ignore[misc]
    def __init__(self, *, ctx: BaseContext | None = None, abandonable: bool = False) -> None: ...
    def close(self) -> None: ...
