"""ctypes objects in shared memory, as in ``multiprocessing.sharedctypes``.

``Value`` and ``Array`` put a lock beside the object, ``RawValue`` and ``RawArray`` do not. All can be pickled
and sent to any process, under every start method. The memory goes with the last process that has the object
or a view of it.
"""

import ctypes
import weakref
from multiprocessing import sharedctypes as _stdlib

from . import _procession
from ._pickler import register
from ._procession import Block
from .synchronize import RLock

__all__ = ["RawValue", "RawArray", "Value", "Array", "copy", "synchronized"]

typecode_to_type = {
    "c": ctypes.c_char,
    "b": ctypes.c_byte,
    "B": ctypes.c_ubyte,
    "u": ctypes.c_wchar,
    "h": ctypes.c_short,
    "H": ctypes.c_ushort,
    "i": ctypes.c_int,
    "I": ctypes.c_uint,
    "l": ctypes.c_long,
    "L": ctypes.c_ulong,
    "q": ctypes.c_longlong,
    "Q": ctypes.c_ulonglong,
    "f": ctypes.c_float,
    "d": ctypes.c_double,
}


def _new_value(type_):
    try:
        size = ctypes.sizeof(type_)
    except TypeError as error:
        *others, last = typecode_to_type
        codes = f"{', '.join(others)} or {last}"
        raise TypeError(f"bad typecode (must be a ctypes type or one of {codes})") from error
    element = type_._type_ if issubclass(type_, ctypes.Array) else type_
    return _attach(type_, Block(size, ctypes.sizeof(element)))


def RawValue(typecode_or_type, *args):
    """Return a ctypes object in shared memory, without a lock.

    The first argument is a ctypes type or one of the typecodes of the module ``array``, or ``"c"``; the
    others initialize the object, whose bytes are zero without them.

    >>> RawValue("d", 0.5).value
    0.5
    """
    type_ = typecode_to_type.get(typecode_or_type, typecode_or_type)
    obj = _new_value(type_)
    obj.__init__(*args)
    return obj


def RawArray(typecode_or_type, size_or_initializer):
    """Return a ctypes array in shared memory, without a lock.

    Its elements are zero if there is a size, or what the initializer, a sequence, contains.

    >>> RawArray("i", [1, 2, 3])[1:]
    [2, 3]
    """
    type_ = typecode_to_type.get(typecode_or_type, typecode_or_type)
    if isinstance(size_or_initializer, int):
        return _new_value(type_ * size_or_initializer)
    result = _new_value(type_ * len(size_or_initializer))
    result.__init__(*size_or_initializer)
    return result


def Value(typecode_or_type, *args, lock=True, ctx=None):
    """Return a ctypes object in shared memory together with a lock: see `RawValue` and `synchronized`.

    With ``lock=False`` it is the object alone; another ``lock`` than ``True`` or ``None`` is used in place of
    a new ``RLock``.

    >>> counter = Value("i", 7)
    >>> with counter:
    ...     counter.value += 1
    >>> counter.value
    8
    """
    obj = RawValue(typecode_or_type, *args)
    if lock is False:
        return obj
    return synchronized(obj, _lock(lock, ctx), ctx=ctx)


def Array(typecode_or_type, size_or_initializer, *, lock=True, ctx=None):
    """Return a ctypes array in shared memory together with a lock: see `RawArray` and `synchronized`.

    With ``lock=False`` it is the array alone; another ``lock`` than ``True`` or ``None`` is used in place of
    a new ``RLock``.

    >>> array = Array("d", 3)
    >>> array[0] = 0.5
    >>> array[:]
    [0.5, 0.0, 0.0]
    """
    obj = RawArray(typecode_or_type, size_or_initializer)
    if lock is False:
        return obj
    return synchronized(obj, _lock(lock, ctx), ctx=ctx)


def _lock(lock, ctx):
    if lock in (True, None):
        return ctx.RLock() if ctx else RLock()
    if not hasattr(lock, "acquire"):
        raise AttributeError(f"{lock!r} has no method 'acquire'")
    return lock


def copy(obj):
    """Return a copy of a ctypes object in shared memory, without a lock."""
    new_obj = _new_value(type(obj))
    ctypes.pointer(new_obj)[0] = obj
    return new_obj


def synchronized(obj, lock=None, ctx=None):
    """Return a wrapper of a ctypes object that takes ``lock``, a new ``RLock`` by default, for each access.

    It has the object's ``value``, ``raw``, elements or fields, and ``get_obj``, ``get_lock``, ``acquire`` and
    ``release``; as a context manager it holds the lock. A statement such as ``v.value += 1`` is two accesses:
    hold the lock around it.
    """
    assert not isinstance(obj, SynchronizedBase), "object already synchronized"
    if isinstance(obj, ctypes._SimpleCData):
        return Synchronized(obj, lock, ctx)
    if isinstance(obj, ctypes.Array):
        if obj._type_ is ctypes.c_char:
            return SynchronizedString(obj, lock, ctx)
        return SynchronizedArray(obj, lock, ctx)
    cls = type(obj)
    try:
        scls = class_cache[cls]
    except KeyError:
        names = [field[0] for base in cls.__mro__ for field in vars(base).get("_fields_", ())]
        make = make_property
        if "acquire" in names or "release" in names:
            make = _make_property_beside_methods
        members = {name: make(name) for name in names}
        scls = class_cache[cls] = type("Synchronized" + cls.__name__, (SynchronizedBase,), members)
    return scls(obj, lock, ctx)


def reduce_ctype(obj):
    """How `ForkingPickler` pickles the ctypes objects that this module makes."""
    type_, lengths = type(obj), []
    # Types that ``type * length`` has made have no name by which they could be imported.
    while issubclass(type_, ctypes.Array) and type_ is type_._type_ * type_._length_:
        lengths.append(type_._length_)
        type_ = type_._type_
    if len(lengths) > 1:
        return rebuild_ctype, (type_, obj._wrapper, tuple(lengths))
    return rebuild_ctype, (type_, obj._wrapper, lengths[0] if lengths else None)


def rebuild_ctype(type_, wrapper, length):
    """The ctypes object of that type in the memory ``wrapper``: an array if ``length`` is a number,
    an array of arrays if it is a tuple, outermost first."""
    lengths = length if isinstance(length, tuple) else () if length is None else (length,)
    for length in reversed(lengths):
        type_ = type_ * length
    return _attach(type_, wrapper)


def rebuild_synchronized(place, lock):
    """The wrapper of the ctypes object that `rebuild_ctype` makes of ``place``."""
    return synchronized(rebuild_ctype(*place), lock)


def _attach(type_, wrapper):
    register(type_, reduce_ctype)
    obj = type_.from_buffer(wrapper.create_memoryview())
    obj._wrapper = wrapper
    return obj


def make_property(name):
    """A property for the attribute ``name`` of a wrapped object, read and written with the lock held."""
    try:
        return prop_cache[name]
    except KeyError:
        pass

    def get(self):
        self.acquire()
        try:
            return getattr(self._obj, name)
        finally:
            self.release()

    def set(self, value):
        self.acquire()
        try:
            setattr(self._obj, name, value)
        finally:
            self.release()

    doc = f"The object's ``{name}``, read and written with the lock held."
    return prop_cache.setdefault(name, property(get, set, doc=doc))


def _make_property_beside_methods(name):
    """`make_property` for a class with a field that hides `acquire` or `release`."""

    def get(self):
        with self:
            return getattr(self._obj, name)

    def set(self, value):
        with self:
            setattr(self._obj, name, value)

    return property(get, set)


prop_cache: dict[str, property] = {}
class_cache: weakref.WeakKeyDictionary[type, type] = weakref.WeakKeyDictionary()


class SynchronizedBase(_procession.SynchronizedBase, _stdlib.SynchronizedBase):
    __doc__ = _procession.SynchronizedBase.__doc__


class Synchronized(_procession.Synchronized, SynchronizedBase, _stdlib.Synchronized):
    __doc__ = _procession.Synchronized.__doc__


class SynchronizedArray(SynchronizedBase, _stdlib.SynchronizedArray):
    """A ctypes array in shared memory together with a lock, which each access takes.

    >>> array = Array("i", range(4))
    >>> array[1:3] = [10, 20]
    >>> sum(array)
    33
    """

    def __len__(self):
        return len(self._obj)

    def __getitem__(self, i):
        with self:
            return self._obj[i]

    def __setitem__(self, i, value):
        with self:
            self._obj[i] = value


class SynchronizedString(SynchronizedArray, _stdlib.SynchronizedString):
    """An array of bytes in shared memory together with a lock, which each access takes.

    ``value`` is what comes before the first zero byte, ``raw`` all of it.

    >>> text = Array("c", 5)
    >>> text.value = b"abc"
    >>> text.value, text.raw
    (b'abc', b'abc\\x00\\x00')
    """

    value = make_property("value")
    raw = make_property("raw")


for _cls in (SynchronizedBase, Synchronized, SynchronizedArray, SynchronizedString):
    _procession._quicken(_cls)
