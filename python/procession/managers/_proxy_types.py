"""The classes of proxies: CPython's, with the methods that its later versions have too."""

from collections.abc import MutableMapping, MutableSequence, MutableSet
from multiprocessing import managers as _stdlib
from types import GenericAlias

from ._proxy import BaseProxy, methods


def _with(theirs, *names):
    """A base that exposes more than `theirs` does."""
    more = tuple(name for name in names if name not in theirs._exposed_)
    body = {**methods(more), "_exposed_": (*theirs._exposed_, *more), "__doc__": BaseProxy.__doc__}
    return type(theirs.__name__, (BaseProxy, theirs), body)


def _in_place(name):
    def operator(self, other):
        self._callmethod(name, (other,))
        return self

    operator.__name__ = operator.__qualname__ = name
    operator.__doc__ = f"Call `{name}` of the object in the manager's process; return the proxy."
    return operator


class IteratorProxy(BaseProxy, _stdlib.IteratorProxy):
    """A proxy of an iterator or generator."""


class AcquirerProxy(BaseProxy, _stdlib.AcquirerProxy):
    """A proxy of a lock or semaphore."""


class ConditionProxy(AcquirerProxy, _stdlib.ConditionProxy):
    """A proxy of a condition variable."""


class EventProxy(BaseProxy, _stdlib.EventProxy):
    """A proxy of an event."""


class BarrierProxy(BaseProxy, _stdlib.BarrierProxy):
    """A proxy of a barrier."""


class NamespaceProxy(BaseProxy, _stdlib.NamespaceProxy):
    """A proxy of a namespace."""


class ValueProxy(BaseProxy, _stdlib.ValueProxy):
    """A proxy of a value."""


BaseListProxy = _with(_stdlib.BaseListProxy, "__imul__", "clear", "copy")


class ListProxy(BaseListProxy, _stdlib.ListProxy):
    """A proxy of a list."""

    __class_getitem__ = classmethod(GenericAlias)


class DictProxy(_with(_stdlib.DictProxy, "__or__", "__ror__", "__ior__", "__reversed__", "fromkeys")):
    """A proxy of a dictionary."""

    _method_to_typeid_ = {"__iter__": "Iterator"}
    __class_getitem__ = classmethod(GenericAlias)
    __ior__ = _in_place("__ior__")


class ArrayProxy(BaseProxy, _stdlib.ArrayProxy):
    """A proxy of an array."""


class PoolProxy(BaseProxy, _stdlib.PoolProxy):
    """A proxy of a pool."""


_SET = (
    *(f"__{name}__" for name in ("contains", "iter", "len", "ge", "gt", "le", "lt")),
    *(f"__{side}{name}__" for name in ("and", "or", "sub", "xor") for side in ("", "i", "r")),
    *("add", "clear", "copy", "difference", "difference_update", "discard", "intersection"),
    *("intersection_update", "isdisjoint", "issubset", "issuperset", "pop", "remove"),
    *("symmetric_difference", "symmetric_difference_update", "union", "update"),
)
_theirs = getattr(_stdlib, "SetProxy", None) or _stdlib.MakeProxyType("BaseSetProxy", _SET)


class SetProxy(_with(_theirs, *_SET)):
    """A proxy of a set."""

    _method_to_typeid_ = {"__iter__": "Iterator"}
    __class_getitem__ = classmethod(GenericAlias)
    __iand__ = _in_place("__iand__")
    __ior__ = _in_place("__ior__")
    __isub__ = _in_place("__isub__")
    __ixor__ = _in_place("__ixor__")


MutableMapping.register(DictProxy)
MutableSequence.register(BaseListProxy)
MutableSet.register(SetProxy)

# By the names of CPython's.
PROXIES = {
    name: cls
    for name, cls in list(globals().items())
    if isinstance(cls, type) and issubclass(cls, BaseProxy) and not name.startswith("_")
}
