import ctypes
from _ctypes import _CData
from collections.abc import Callable, Iterable, Iterator, Sequence
from ctypes import _SimpleCData, c_char
from multiprocessing import sharedctypes as _stdlib
from multiprocessing.context import BaseContext
from typing import Any, Generic, Literal, SupportsIndex, TypeAlias, TypeVar, overload, type_check_only
from weakref import WeakKeyDictionary

from . import _procession
from ._procession import Block, _LockLike

__all__ = ["RawValue", "RawArray", "Value", "Array", "copy", "synchronized"]

_T = TypeVar("_T")
_CT = TypeVar("_CT", bound=_CData)
_Fields = TypeVar("_Fields", bound=ctypes.Structure | ctypes.Union)

# The typecodes, by the type of their values.
_Int: TypeAlias = Literal["b", "B", "h", "H", "i", "I", "l", "L", "q", "Q"]
_Float: TypeAlias = Literal["f", "d"]
_Char: TypeAlias = Literal["c"]
_Wide: TypeAlias = Literal["u"]

_LockArgument: TypeAlias = Literal[True] | _LockLike | None
_Contents: TypeAlias = int | Sequence[Any]

typecode_to_type: dict[str, type[_SimpleCData[Any]]]

@overload
def RawValue(typecode_or_type: type[_CT], *args: Any) -> _CT: ...
@overload
def RawValue(typecode_or_type: str, *args: Any) -> Any: ...
@overload
def RawArray(typecode_or_type: type[_CT], size_or_initializer: _Contents) -> ctypes.Array[_CT]: ...
@overload
def RawArray(typecode_or_type: str, size_or_initializer: _Contents) -> Any: ...
@overload
def Value(
    typecode_or_type: type[_CT], *args: Any, lock: Literal[False], ctx: BaseContext | None = None
) -> _CT: ...
@overload
def Value(
    typecode_or_type: type[_SimpleCData[_T]],
    *args: Any,
    lock: _LockArgument = True,
    ctx: BaseContext | None = None,
) -> Synchronized[_T]: ...
@overload
def Value(
    typecode_or_type: type[_Fields], *args: Any, lock: _LockArgument = True, ctx: BaseContext | None = None
) -> _SynchronizedFields[_Fields]: ...
@overload
def Value(
    typecode_or_type: _Int, *args: Any, lock: _LockArgument = True, ctx: BaseContext | None = None
) -> Synchronized[int]: ...
@overload
def Value(
    typecode_or_type: _Float, *args: Any, lock: _LockArgument = True, ctx: BaseContext | None = None
) -> Synchronized[float]: ...
@overload
def Value(
    typecode_or_type: _Char, *args: Any, lock: _LockArgument = True, ctx: BaseContext | None = None
) -> Synchronized[bytes]: ...
@overload
def Value(
    typecode_or_type: _Wide, *args: Any, lock: _LockArgument = True, ctx: BaseContext | None = None
) -> Synchronized[str]: ...
@overload
def Value(
    typecode_or_type: str, *args: Any, lock: _LockArgument = True, ctx: BaseContext | None = None
) -> Synchronized[Any]: ...
@overload
def Value(
    typecode_or_type: str | type[_CData],
    *args: Any,
    lock: bool | _LockArgument = True,
    ctx: BaseContext | None = None,
) -> Any: ...
@overload
def Array(
    typecode_or_type: type[_CT],
    size_or_initializer: _Contents,
    *,
    lock: Literal[False],
    ctx: BaseContext | None = None,
) -> ctypes.Array[_CT]: ...
@overload
def Array(
    typecode_or_type: type[c_char] | _Char,
    size_or_initializer: _Contents,
    *,
    lock: _LockArgument = True,
    ctx: BaseContext | None = None,
) -> SynchronizedString: ...
@overload
def Array(
    typecode_or_type: type[_SimpleCData[_T]],
    size_or_initializer: _Contents,
    *,
    lock: _LockArgument = True,
    ctx: BaseContext | None = None,
) -> SynchronizedArray[_T]: ...
@overload
def Array(
    typecode_or_type: _Int,
    size_or_initializer: _Contents,
    *,
    lock: _LockArgument = True,
    ctx: BaseContext | None = None,
) -> SynchronizedArray[int]: ...
@overload
def Array(
    typecode_or_type: _Float,
    size_or_initializer: _Contents,
    *,
    lock: _LockArgument = True,
    ctx: BaseContext | None = None,
) -> SynchronizedArray[float]: ...
@overload
def Array(
    typecode_or_type: _Wide,
    size_or_initializer: _Contents,
    *,
    lock: _LockArgument = True,
    ctx: BaseContext | None = None,
) -> SynchronizedArray[str]: ...
@overload
def Array(
    typecode_or_type: str | type[_CData],
    size_or_initializer: _Contents,
    *,
    lock: _LockArgument = True,
    ctx: BaseContext | None = None,
) -> SynchronizedArray[Any]: ...
@overload
def Array(
    typecode_or_type: str | type[_CData],
    size_or_initializer: _Contents,
    *,
    lock: bool | _LockArgument = True,
    ctx: BaseContext | None = None,
) -> Any: ...
def copy(obj: _CT) -> _CT: ...
@overload
def synchronized(
    obj: _SimpleCData[_T], lock: _LockLike | None = None, ctx: BaseContext | None = None
) -> Synchronized[_T]: ...
@overload
def synchronized(
    obj: ctypes.Array[c_char], lock: _LockLike | None = None, ctx: BaseContext | None = None
) -> SynchronizedString: ...
@overload
def synchronized(
    obj: ctypes.Array[_SimpleCData[_T]], lock: _LockLike | None = None, ctx: BaseContext | None = None
) -> SynchronizedArray[_T]: ...
@overload
def synchronized(
    obj: _Fields, lock: _LockLike | None = None, ctx: BaseContext | None = None
) -> _SynchronizedFields[_Fields]: ...
@overload
def synchronized(
    obj: _CT, lock: _LockLike | None = None, ctx: BaseContext | None = None
) -> SynchronizedBase[_CT]: ...
def reduce_ctype(obj: _CData) -> tuple[Callable[..., _CData], tuple[type[_CData], Block, int | None]]: ...
def rebuild_ctype(type_: type[_CData], wrapper: Block, length: int | None) -> Any: ...
def rebuild_synchronized(place: tuple[type[_CData], Block, int | None], lock: _LockLike) -> Any: ...
def make_property(name: str) -> property: ...

prop_cache: dict[str, property]
class_cache: WeakKeyDictionary[type, type]

class SynchronizedBase(  # type: ignore[misc]
    _procession.SynchronizedBase[_CT], _stdlib.SynchronizedBase[_CT], Generic[_CT]
): ...
class Synchronized(  # type: ignore[misc]
    _procession.Synchronized[_T],
    SynchronizedBase[ctypes._SimpleCData[_T]],
    _stdlib.Synchronized[_T],
    Generic[_T],
): ...

class SynchronizedArray(  # type: ignore[misc]
    SynchronizedBase[ctypes.Array[_SimpleCData[_T]]], _stdlib.SynchronizedArray[_T], Generic[_T]
):
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[_T]: ...
    @overload
    def __getitem__(self, i: slice) -> list[_T]: ...
    @overload
    def __getitem__(self, i: SupportsIndex) -> _T: ...
    @overload
    def __setitem__(self, i: slice, value: Iterable[_T]) -> None: ...
    @overload
    def __setitem__(self, i: SupportsIndex, value: _T) -> None: ...

class SynchronizedString(SynchronizedArray[bytes], _stdlib.SynchronizedString):  # type: ignore[misc]
    @overload  # type: ignore[override]
    def __getitem__(self, i: slice) -> bytes: ...
    @overload
    def __getitem__(self, i: SupportsIndex) -> bytes: ...
    @overload  # type: ignore[override]
    def __setitem__(self, i: slice, value: bytes) -> None: ...
    @overload
    def __setitem__(self, i: SupportsIndex, value: bytes) -> None: ...
    value: bytes
    raw: bytes

# The class that is made for a structure or union: each field of it is an attribute.
@type_check_only
class _SynchronizedFields(SynchronizedBase[_Fields], Generic[_Fields]):
    def __getattr__(self, name: str, /) -> Any: ...
    def __setattr__(self, name: str, value: Any, /) -> None: ...
