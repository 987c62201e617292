"""Subclasses that use the private parts of CPython's queues and pools.

Software such as loky, joblib and torch derives from these classes and replaces what is private in
them: the thread that feeds a queue, its pipe, the queues of a pool. The classes of this package
have no such parts. A subclass that uses one gets copies of CPython's methods in front of this
package's, and works as CPython's.
"""

import functools
import itertools
import types

from ._private_names import Answer

_THEIRS, _OURS = "multiprocessing.", "procession."
_STORE = "STORE_ATTR"


def keep(cls, always=False):
    """Put CPython's methods in front of this package's in a new subclass, if it uses private parts.

    CPython's class is the first of ``multiprocessing`` among the bases of `cls`, and ours the first
    of this package. With `always`, whether it does or not.
    """
    if cls.__module__.startswith(_OURS) or any(base in _fronts for base in cls.__mro__):
        return
    ours = _first(cls, _OURS)
    if not always and not _uses_private_parts(cls, ours):
        return
    front = _front(ours, _first(ours, _THEIRS))
    # Behind all that derives from ours.
    for base in itertools.takewhile(lambda base: base is not ours, cls.__mro__):
        if ours in base.__bases__:
            at = base.__bases__.index(ours)
            base.__bases__ = (*base.__bases__[:at], front, *base.__bases__[at:])


def restore(obj, state):
    """Do what ``__setstate__`` of CPython's class does, for an object whose class derived from that
    where it was pickled.

    There the class was defined before the package was installed. It derives from CPython's here too
    from now on.
    """
    cls = type(obj)
    keep(cls, always=True)
    _first(cls, _THEIRS).__setstate__(obj, state)


def separate(cls):
    """Have the methods of a class of CPython's find each other when names of its module are
    replaced."""
    for name, member in _separated(cls).items():
        setattr(cls, name, member)


def _uses_private_parts(cls, ours):
    parts, provided = _parts(ours), _provided(ours)
    for base in itertools.takewhile(lambda base: base is not ours, cls.__mro__):
        # What this package's methods do not call would be defined without effect.
        if not provided.called.issuperset(parts.intersection(vars(base))):
            return True
        for code in _codes(base):
            used = parts.intersection(code.co_names)
            if not provided.named.issuperset(used):
                return True
            if used & provided.fixed and used & provided.fixed & _stored(code):
                return True
    return False


@functools.cache
def _parts(ours):
    """The names of the private attributes of CPython's class, and of its instances."""
    names = set()
    for base in _classes(ours, _THEIRS):
        names.update(vars(base), *(code.co_names for code in _codes(base)))
        names.difference_update(*(function.__globals__ for function in _functions(base)))
    return frozenset(name for name in names if name[0] == "_" and not name.startswith("__"))


@functools.cache
def _provided(ours):
    """Of such names those that this package's class has."""
    called, named, fixed = set(), set(), set()
    for base in _classes(ours, _OURS):
        called.update(*(code.co_names for code in _codes(base)))
        # What only looks like a part of CPython's is none to build upon.
        named.update(name for name, member in vars(base).items() if not isinstance(member, Answer))
        fixed.update(name for name, member in vars(base).items() if hasattr(type(member), "__set__"))
    return types.SimpleNamespace(called=called, named=named | called, fixed=fixed)


@functools.cache
def _front(ours, theirs):
    """A class with the methods of CPython's class and nothing to derive from."""
    # Their instances set these, which a property of ours would refuse.
    members = dict.fromkeys(_parts(ours) & _provided(ours).fixed)
    for base in reversed(_classes(ours, _THEIRS)):
        members.update(vars(base))
        members.update(_separated(base))
    for name in ("__dict__", "__weakref__"):
        members.pop(name, None)
    members.update(getattr(ours, "_front_members", {}))
    front = type(theirs.__name__, (), members)
    _fronts.add(front)
    return front


_fronts: set[type] = set()


def _first(cls, package):
    return next(base for base in cls.__mro__ if base.__module__.startswith(package))


def _classes(ours, package):
    return [base for base in ours.__mro__ if base.__module__.startswith(package)]


def _stored(code):
    import dis

    return {step.argval for step in dis.get_instructions(code) if step.opname == _STORE}


def _functions(cls):
    for member in vars(cls).values():
        if isinstance(member, property):
            candidates = member.fget, member.fset, member.fdel
        elif isinstance(member, (functools.cached_property, functools.partialmethod)):
            candidates = (member.func,)
        else:
            candidates = (getattr(member, "__func__", member),)
        for function in candidates:
            # What a decorator returns refers to what was decorated.
            while isinstance(function, types.FunctionType):
                yield function
                function = vars(function).get("__wrapped__")


def _codes(cls):
    """The code of the methods of a class, and of the functions in these."""
    codes = [function.__code__ for function in _functions(cls)]
    for code in codes:
        yield code
        codes.extend(constant for constant in code.co_consts if isinstance(constant, types.CodeType))


def _separated(cls):
    """The functions in a class, by name, each with the names that its module has now."""
    separated = {}
    for name, member in vars(cls).items():
        function = getattr(member, "__func__", member)
        if isinstance(function, types.FunctionType):
            copy = _with_names(function, _snapshot(cls.__module__))
            separated[name] = copy if function is member else type(member)(copy)
    return separated


@functools.cache
def _snapshot(module):
    import sys

    return dict(vars(sys.modules[module]))


def _with_names(function, names):
    copy = types.FunctionType(
        function.__code__, names, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__dict__.update(function.__dict__)
    for name in ("__doc__", "__kwdefaults__", "__module__", "__qualname__"):
        setattr(copy, name, getattr(function, name))
    return copy
