"""Every public name of `multiprocessing` is here, and takes the arguments that it takes there.

Compared with the running interpreter's package: what a call may pass there it may pass here, and it means the
same if it is left out. Here there may be more keyword-only arguments.
"""

import functools
import importlib
import inspect
import multiprocessing
import multiprocessing.managers
import queue
import types

import procession
import procession.managers
import pytest

MODULES = [
    "",
    "connection",
    "context",
    "dummy",
    "dummy.connection",
    "managers",
    "pool",
    "process",
    "queues",
    "shared_memory",
    "sharedctypes",
    "synchronize",
]

PRIVATE_PARTS = ["forkserver", "heap", "reduction", "resource_sharer", "resource_tracker", "spawn", "util"]

# Where arguments differ, and why that is well.
DIFFERENT = {
    # Made once, by the module itself.
    "context.DefaultContext",
    "context.DefaultContext.__init__",
    # Made by a pool alone.
    "pool.ApplyResult",
    "pool.AsyncResult",
    "pool.IMapIterator",
    "pool.IMapUnorderedIterator",
    "pool.MapResult",
    # A wrapper of what a lock or semaphore is made of, which no program makes.
    "synchronize.SemLock",
    # They take `block` and `timeout` too, by position as the other queues do.
    "queues.SimpleQueue.get",
    "queues.SimpleQueue.put",
    "SimpleQueue().get",
    "SimpleQueue().put",
}

SPECIAL_METHODS = ["__init__", "__enter__", "__exit__", "__len__", "__getitem__", "__setitem__", "__call__"]

# How objects are made whose methods are compared. What they have as attributes is theirs, and no class's.
MADE = {
    "Array": ("i", 3),
    "Barrier": (2,),
    "BoundedSemaphore": (2,),
    "Condition": (),
    "Event": (),
    "JoinableQueue": (),
    "Lock": (),
    "Process": (),
    "Queue": (),
    "RLock": (),
    "Semaphore": (),
    "SimpleQueue": (),
    "Value": ("i", 0),
}


# A manager's objects that are in shared memory here, and what they are there: a proxy's class, or what is
# behind a proxy that passes on any arguments.
PROXIES = {
    "Array": multiprocessing.managers.ArrayProxy,
    "Barrier": multiprocessing.managers.BarrierProxy,
    "BoundedSemaphore": multiprocessing.managers.AcquirerProxy,
    "Condition": multiprocessing.managers.ConditionProxy,
    "Event": multiprocessing.managers.EventProxy,
    "JoinableQueue": queue.Queue,
    "Lock": multiprocessing.managers.AcquirerProxy,
    "Queue": queue.Queue,
    "RLock": multiprocessing.managers.AcquirerProxy,
    "Semaphore": multiprocessing.managers.AcquirerProxy,
    "Value": multiprocessing.managers.ValueProxy,
}


def pair(module):
    """The module of multiprocessing and the one of the same name here."""
    return tuple(
        importlib.import_module(f"{package.__name__}.{module}".rstrip("."))
        for package in (multiprocessing, procession)
    )


def public_names(module):
    """The names that a module has for its users: those that it lists, and what it defines itself."""
    listed = set(getattr(module, "__all__", ()))
    defined = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (getattr(value, "__module__", None) == module.__name__ or name.isupper())
    }
    return sorted(listed | defined)


def signature(function, bound=True):
    """What can be passed, without `self`; None where nothing is told."""
    try:
        told = inspect.signature(function)
    except ValueError:
        return None
    parameters = list(told.parameters.values())
    if not bound and parameters and parameters[0].kind in POSITIONAL:
        parameters = parameters[1:]
    return told.replace(parameters=parameters)


EMPTY = inspect.Parameter.empty
KEYWORD = inspect.Parameter.KEYWORD_ONLY
VAR_POSITIONAL, VAR_KEYWORD = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
NAMED = inspect.Parameter.POSITIONAL_OR_KEYWORD
POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, NAMED)


def difference(theirs, ours):
    """What a call may pass to theirs and not to ours, or another default; None if there is nothing."""
    if theirs is None:
        return None
    if ours is None:
        return "no signature"
    mine = ours.parameters
    places = [name for name, parameter in mine.items() if parameter.kind in POSITIONAL]
    kinds = {parameter.kind for parameter in mine.values()}
    positional = [parameter for parameter in theirs.parameters.values() if parameter.kind in POSITIONAL]
    for place, parameter in enumerate(positional):
        if VAR_POSITIONAL in kinds and VAR_KEYWORD in kinds:
            break
        if place >= len(places):
            return f"no {parameter.name}"
        same = mine[places[place]]
        if parameter.kind is NAMED:
            if same.name != parameter.name:
                return f"{same} in the place of {parameter}"
            if same.kind is not NAMED:
                return f"{same}, to be passed by position, in the place of {parameter}"
        if parameter.default is not EMPTY and same.default != parameter.default:
            return f"{same} in the place of {parameter}"
    for parameter in theirs.parameters.values():
        if parameter.kind is VAR_POSITIONAL and VAR_POSITIONAL not in kinds and len(places) < 3:
            # __exit__ has three arguments, which CPython's classes do not count.
            return "no *args"
        if parameter.kind is VAR_KEYWORD and VAR_KEYWORD not in kinds:
            return "no **kwargs"
        if parameter.kind is KEYWORD and parameter.name not in mine and VAR_KEYWORD not in kinds:
            return f"no {parameter.name}"
        if parameter.kind is KEYWORD and parameter.name in mine and parameter.default is not EMPTY:
            if mine[parameter.name].default != parameter.default:
                return f"{mine[parameter.name]} in the place of {parameter}"
    more = places[len(positional) :]
    if more and not any(parameter.kind is VAR_POSITIONAL for parameter in theirs.parameters.values()):
        return f"{more} by position"
    for name, parameter in mine.items():
        if parameter.kind is KEYWORD and name not in theirs.parameters and parameter.default is EMPTY:
            return f"{name} has to be passed"
    return None


def passes_on(told):
    """Whether the signature says nothing of the arguments, which go to something else."""
    return told is not None and [parameter.kind for parameter in told.parameters.values()] == [
        VAR_POSITIONAL,
        VAR_KEYWORD,
    ]


def compare(name, theirs, ours, bound=True):
    """The differences as lines `name: reason`, of a class those of its methods too."""
    if theirs is ours or not callable(theirs):
        return
    told = signature(theirs, bound)
    if not passes_on(told):
        yield from compare_signatures(name, told, signature(ours, bound))
    if inspect.isclass(theirs):
        for method in methods(theirs):
            if not hasattr(ours, method):
                yield f"{name}.{method}: missing"
            elif method == "__init__" and not isinstance(ours.__init__, types.FunctionType):
                # Of a class in Rust, the class itself tells.
                continue
            else:
                static = isinstance(inspect.getattr_static(theirs, method), (staticmethod, classmethod))
                yield from compare(
                    f"{name}.{method}", getattr(theirs, method), getattr(ours, method), bound=static
                )


def compare_signatures(name, theirs, ours):
    reason = difference(theirs, ours)
    return [f"{name}: {reason}"] if reason else []


def methods(theirs):
    return [name for name in dir(theirs) if not name.startswith("_") or name in SPECIAL_METHODS]


@pytest.mark.parametrize("module", MODULES + PRIVATE_PARTS)
def test_every_name_is_here(module):
    theirs, ours = pair(module)
    names = public_names(theirs)
    assert names
    assert [name for name in names if not hasattr(ours, name)] == []
    assert set(getattr(theirs, "__all__", ())) <= set(getattr(ours, "__all__", ()))


def test_every_module_is_here():
    names = [name for name, value in vars(multiprocessing).items() if inspect.ismodule(value)]
    assert {"context", "process", "reduction"} <= set(names)
    for name in names:
        if inspect.getattr_static(multiprocessing, name).__name__.startswith("multiprocessing."):
            assert hasattr(procession, name), name


def test_what_is_listed_is_there():
    for module in MODULES:
        _, ours = pair(module)
        missing = [name for name in ours.__all__ if not hasattr(ours, name)]
        assert missing == [], module


def differences_in(module):
    theirs, ours = pair(module)
    for name in public_names(theirs):
        yield from compare(f"{module}.{name}".lstrip("."), getattr(theirs, name), getattr(ours, name))


def differences_of(name):
    """Of the objects of that name."""
    theirs, ours = (
        getattr(package.get_context("spawn"), name)(*MADE[name]) for package in (multiprocessing, procession)
    )
    for method in methods(theirs):
        if method == "__init__":
            continue
        if method not in dir(ours):
            yield f"{name}().{method}: missing"
        elif callable(inspect.getattr_static(theirs, method)):
            yield from compare(f"{name}().{method}", getattr(theirs, method), getattr(ours, method))


def differences_of_managed(name):
    theirs, ours = PROXIES[name], procession.managers._manager._SHARED_TYPES[name]
    for method in methods(theirs):
        # Only a with statement calls `__exit__`.
        if method in ("__init__", "__exit__"):
            continue
        if not hasattr(ours, method):
            yield f"Manager().{name}().{method}: missing"
        else:
            method_here = f"Manager().{name}().{method}"
            yield from compare(method_here, getattr(theirs, method), getattr(ours, method), bound=False)


def unexpected(differences):
    return [line for line in differences if line.partition(":")[0] not in DIFFERENT]


@pytest.mark.parametrize("module", MODULES)
def test_the_arguments_are_the_same(module):
    assert unexpected(differences_in(module)) == []


@pytest.mark.parametrize("name", MADE)
def test_the_methods_take_the_same(name):
    assert unexpected(differences_of(name)) == []


@pytest.mark.parametrize("name", PROXIES)
def test_the_methods_of_a_managers_objects_take_the_same(name):
    assert unexpected(differences_of_managed(name)) == []


def test_a_manager_makes_its_objects_from_the_same():
    """What CPython's manager passes on to the class that it registered."""
    theirs, ours = multiprocessing.managers.SyncManager, procession.managers.SyncManager
    compared = set()
    differences = []
    for typeid, (made, *_) in theirs._registry.items():
        # Some are made by methods of others only.
        if not hasattr(theirs, typeid):
            continue
        here = signature(getattr(ours, typeid), bound=False)
        there = signature(made) if not isinstance(made, type) or made.__module__ != "builtins" else None
        if not passes_on(here) and not passes_on(there):
            compared.add(typeid)
            differences += compare_signatures(typeid, there, here)
    assert {"Queue", "JoinableQueue", "Semaphore", "Barrier", "Condition", "Value", "Array"} <= compared
    assert differences == []


def test_what_is_listed_as_different_is_so():
    found = [line for module in MODULES for line in differences_in(module)]
    found += [line for name in MADE for line in differences_of(name)]
    found += [line for name in PROXIES for line in differences_of_managed(name)]
    assert {line.partition(":")[0] for line in found} >= DIFFERENT


def test_exceptions_are_the_same():
    for name in ("ProcessError", "BufferTooShort", "AuthenticationError", "TimeoutError"):
        assert getattr(procession, name) is getattr(multiprocessing, name)
    queues = pair("queues")
    assert queues[0].Empty is queues[1].Empty
    assert queues[0].Full is queues[1].Full


def test_a_difference_is_found():
    """The comparison itself."""

    def of(function):
        return signature(function)

    same = functools.partial(difference, of(lambda a, b=1, *, c=2: None))
    assert same(of(lambda a, b=1, *, c=2: None)) is None
    assert same(of(lambda a=0, b=1, c=2: None)) == "['c'] by position"
    assert same(of(lambda a, b=1, *, c=2, d=3: None)) is None
    assert same(of(lambda a, b=1, **options: None)) is None
    assert same(of(lambda a, b=2, *, c=2: None)) == "b=2 in the place of b=1"
    assert same(of(lambda a, x=1, *, c=2: None)) == "x=1 in the place of b=1"
    assert same(of(lambda a, b=1, /, *, c=2: None)) == "a, to be passed by position, in the place of a"
    assert same(of(lambda a, b=1, *, c=0: None)) == "c=0 in the place of c=2"
    assert same(of(lambda a, b=1: None)) == "no c"
    assert same(of(lambda a, *, c=2: None)) == "no b"
    assert same(of(lambda a, b=1, *, c=2, d: None)) == "d has to be passed"
    assert same(None) == "no signature"
