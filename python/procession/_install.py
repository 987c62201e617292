"""Putting the package in the place of :mod:`multiprocessing`."""

import multiprocessing
import multiprocessing.managers
import multiprocessing.pool
import multiprocessing.process
import multiprocessing.queues
import multiprocessing.sharedctypes
import multiprocessing.spawn
import multiprocessing.synchronize
import types
from importlib import import_module

_KEY = "procession"
_REPLACED = {
    "queues": ("JoinableQueue", "Queue", "SimpleQueue"),
    "synchronize": ("Barrier", "BoundedSemaphore", "Condition", "Event", "Lock", "RLock", "Semaphore"),
    "sharedctypes": ("Array", "RawArray", "RawValue", "Value", "copy", "synchronized"),
    "managers": ("SyncManager",),
    "pool": ("Pool",),
}

_installed = False


class _Marker:
    """Installs the package where it is unpickled."""

    def __reduce__(self):
        return install, ()


def install():
    """See :func:`procession.install`."""
    global _installed
    if _installed:
        return
    # All are imported before the first is replaced, so that none is built upon another of this package.
    ours = {name: import_module(f"procession.{name}") for name in _REPLACED}
    for module in ("queues", "pool"):
        _separate(getattr(multiprocessing, module))
    for module, names in _REPLACED.items():
        for name in names:
            setattr(getattr(multiprocessing, module), name, getattr(ours[module], name))
    _patch_process()
    _patch_registries(multiprocessing.managers.BaseManager, ours["pool"])
    _reach_children()
    _installed = True


def _separate(module):
    """Has the methods of a module's classes find each other where they looked, when the names there are replaced.

    Other software has subclasses of them, that of concurrent.futures for one, whose methods say `Queue` for their base.
    """
    names = dict(vars(module))

    def separate(function):
        copy = types.FunctionType(
            function.__code__, names, function.__name__, function.__defaults__, function.__closure__
        )
        copy.__dict__.update(function.__dict__)
        for name in ("__doc__", "__kwdefaults__", "__module__", "__qualname__"):
            setattr(copy, name, getattr(function, name))
        return copy

    for cls in names.values():
        if not isinstance(cls, type) or cls.__module__ != module.__name__:
            continue
        for name, member in list(vars(cls).items()):
            if isinstance(member, types.FunctionType):
                setattr(cls, name, separate(member))
            elif isinstance(member, (classmethod, staticmethod)) and isinstance(
                member.__func__, types.FunctionType
            ):
                setattr(cls, name, type(member)(separate(member.__func__)))


def _patch_process():
    """Gives CPython's own process classes what those of this package have."""
    from .process import BaseProcess

    for name in ("start", "_bootstrap", "interrupt"):
        setattr(multiprocessing.process.BaseProcess, name, vars(BaseProcess)[name])


def _patch_registries(manager, pool):
    """Has managers that exist make pools of this package. They could not even start: what a pickle names is replaced."""
    registry = vars(manager).get("_registry", {})
    for typeid, (callable, *rest) in registry.items():
        if callable is pool._Pool:
            registry[typeid] = (pool.Pool, *rest)
    for subclass in manager.__subclasses__():
        _patch_registries(subclass, pool)


def _reach_children():
    """Has children under spawn and forkserver install the package before they unpickle anything else."""
    stdlib = multiprocessing.spawn.get_preparation_data

    def get_preparation_data(name):
        data = stdlib(name)
        # A forkserver is handed some of the items as text, which this one is not among.
        return {_KEY: _Marker(), **data}

    multiprocessing.spawn.get_preparation_data = get_preparation_data
