import ctypes
from _ctypes import _CData
from collections.abc import Callable, Iterable
from ctypes import _SimpleCData, c_char
from multiprocessing import context as _stdlib
from multiprocessing.context import (
    AuthenticationError as AuthenticationError,
    BufferTooShort as BufferTooShort,
    ProcessError as ProcessError,
    TimeoutError as TimeoutError,
    assert_spawning as assert_spawning,
    get_spawning_popen as get_spawning_popen,
    set_spawning_popen as set_spawning_popen,
)
from typing import Any, ClassVar, Literal, TypeVar, overload

from . import managers, pool, process, queues, synchronize
from ._procession import _LockLike, _Robust
from .sharedctypes import (
    Synchronized,
    SynchronizedArray,
    SynchronizedString,
    _Char,
    _Contents,
    _Fields,
    _Float,
    _Int,
    _LockArgument,
    _SynchronizedFields,
    _Wide,
)

__all__ = ()

_T = TypeVar("_T")
_CT = TypeVar("_CT", bound=_CData)

class BaseContext(_stdlib.BaseContext):
    def Manager(self) -> managers.SyncManager: ...
    def Lock(self, *, robust: _Robust = True) -> synchronize.Lock: ...
    def RLock(self, *, robust: _Robust = True) -> synchronize.RLock: ...
    def Condition(self, lock: _LockLike | None = None) -> synchronize.Condition: ...  # type: ignore[override]
    def Semaphore(self, value: int = 1, *, robust: bool = False) -> synchronize.Semaphore: ...
    def BoundedSemaphore(self, value: int = 1, *, robust: bool = False) -> synchronize.BoundedSemaphore: ...
    def Event(self) -> synchronize.Event: ...
    def Barrier(
        self, parties: int, action: Callable[[], object] | None = None, timeout: float | None = None
    ) -> synchronize.Barrier: ...
    def Queue(
        self,
        maxsize: int = 0,
        *,
        name: str | None = None,
        max_bytes: int | None = None,
        codec: queues._Codec = None,
        abandonable: bool = False,
    ) -> queues.Queue[Any]: ...
    def JoinableQueue(
        self,
        maxsize: int = 0,
        *,
        name: str | None = None,
        max_bytes: int | None = None,
        codec: queues._Codec = None,
        redeliver: bool = False,
        abandonable: bool = False,
    ) -> queues.JoinableQueue[Any]: ...
    def SimpleQueue(self, *, abandonable: bool = False) -> queues.SimpleQueue[Any]: ...
    def Pool(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        **options: Any,
    ) -> pool.Pool: ...
    @overload
    def RawValue(self, typecode_or_type: type[_CT], *args: Any) -> _CT: ...
    @overload
    def RawValue(self, typecode_or_type: str, *args: Any) -> Any: ...
    @overload
    def RawArray(self, typecode_or_type: type[_CT], size_or_initializer: _Contents) -> ctypes.Array[_CT]: ...
    @overload
    def RawArray(self, typecode_or_type: str, size_or_initializer: _Contents) -> Any: ...
    @overload  # type: ignore[override]
    def Value(self, typecode_or_type: type[_CT], *args: Any, lock: Literal[False]) -> _CT: ...
    @overload
    def Value(
        self, typecode_or_type: type[_SimpleCData[_T]], *args: Any, lock: _LockArgument = True
    ) -> Synchronized[_T]: ...
    @overload
    def Value(
        self, typecode_or_type: type[_Fields], *args: Any, lock: _LockArgument = True
    ) -> _SynchronizedFields[_Fields]: ...
    @overload
    def Value(self, typecode_or_type: _Int, *args: Any, lock: _LockArgument = True) -> Synchronized[int]: ...
    @overload
    def Value(
        self, typecode_or_type: _Float, *args: Any, lock: _LockArgument = True
    ) -> Synchronized[float]: ...
    @overload
    def Value(
        self, typecode_or_type: _Char, *args: Any, lock: _LockArgument = True
    ) -> Synchronized[bytes]: ...
    @overload
    def Value(self, typecode_or_type: _Wide, *args: Any, lock: _LockArgument = True) -> Synchronized[str]: ...
    @overload
    def Value(self, typecode_or_type: str, *args: Any, lock: _LockArgument = True) -> Synchronized[Any]: ...
    @overload
    def Value(
        self, typecode_or_type: str | type[_CData], *args: Any, lock: bool | _LockArgument = True
    ) -> Any: ...
    @overload  # type: ignore[override]
    def Array(
        self, typecode_or_type: type[_CT], size_or_initializer: _Contents, *, lock: Literal[False]
    ) -> ctypes.Array[_CT]: ...
    @overload
    def Array(
        self,
        typecode_or_type: type[c_char] | _Char,
        size_or_initializer: _Contents,
        *,
        lock: _LockArgument = True,
    ) -> SynchronizedString: ...
    @overload
    def Array(
        self,
        typecode_or_type: type[_SimpleCData[_T]],
        size_or_initializer: _Contents,
        *,
        lock: _LockArgument = True,
    ) -> SynchronizedArray[_T]: ...
    @overload
    def Array(
        self, typecode_or_type: _Int, size_or_initializer: _Contents, *, lock: _LockArgument = True
    ) -> SynchronizedArray[int]: ...
    @overload
    def Array(
        self, typecode_or_type: _Float, size_or_initializer: _Contents, *, lock: _LockArgument = True
    ) -> SynchronizedArray[float]: ...
    @overload
    def Array(
        self, typecode_or_type: _Wide, size_or_initializer: _Contents, *, lock: _LockArgument = True
    ) -> SynchronizedArray[str]: ...
    @overload
    def Array(
        self,
        typecode_or_type: str | type[_CData],
        size_or_initializer: _Contents,
        *,
        lock: _LockArgument = True,
    ) -> SynchronizedArray[Any]: ...
    @overload
    def Array(
        self,
        typecode_or_type: str | type[_CData],
        size_or_initializer: _Contents,
        *,
        lock: bool | _LockArgument = True,
    ) -> Any: ...
    @overload  # type: ignore[override]
    def get_context(self, method: None = None) -> BaseContext: ...
    @overload
    def get_context(self, method: Literal["fork"]) -> ForkContext: ...
    @overload
    def get_context(self, method: Literal["spawn"]) -> SpawnContext: ...
    @overload
    def get_context(self, method: Literal["forkserver"]) -> ForkServerContext: ...
    @overload
    def get_context(self, method: str) -> ForkContext | SpawnContext | ForkServerContext: ...

class Process(process.BaseProcess, _stdlib.Process): ...
class ForkProcess(process.BaseProcess, _stdlib.ForkProcess): ...
class SpawnProcess(process.BaseProcess, _stdlib.SpawnProcess): ...
class ForkServerProcess(process.BaseProcess, _stdlib.ForkServerProcess): ...

class ForkContext(BaseContext, _stdlib.ForkContext):
    Process: ClassVar[type[ForkProcess]]

class SpawnContext(BaseContext, _stdlib.SpawnContext):
    Process: ClassVar[type[SpawnProcess]]

class ForkServerContext(BaseContext, _stdlib.ForkServerContext):
    Process: ClassVar[type[ForkServerProcess]]

class DefaultContext(BaseContext, _stdlib.DefaultContext):
    Process: ClassVar[type[Process]]
    def __init__(self) -> None: ...

_default_context: DefaultContext
