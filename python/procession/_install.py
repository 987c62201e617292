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
    "sharedctypes": (
        *("Array", "RawArray", "RawValue", "Value", "copy", "synchronized"),
        *("Synchronized", "SynchronizedArray", "SynchronizedBase", "SynchronizedString"),
    ),
    "managers": (
        *("AcquirerProxy", "ArrayProxy", "AutoProxy", "BarrierProxy", "BaseListProxy", "BaseManager"),
        *("BaseProxy", "ConditionProxy", "DictProxy", "EventProxy", "IteratorProxy", "ListProxy"),
        *("MakeProxyType", "NamespaceProxy", "PoolProxy", "RebuildProxy", "Server", "SetProxy"),
        *("SharedMemoryManager", "SharedMemoryServer", "SyncManager", "Token", "ValueProxy"),
    ),
    "pool": ("Pool",),
}

_installed = False


class _Marker:
    """Installs the package where it is unpickled."""

    def __reduce__(self):
        return install, ()


class _Replacement:
    """What stands where a class of CPython's queues or pools stood. It makes objects of this package's class.

    Who derives from it has CPython's class for a base: such classes (in concurrent.futures, joblib, loky, torch)
    use its private parts.
    """

    def __init__(self, ours, theirs, base=None):
        self._ours = ours
        self._theirs = theirs
        self._base = base or theirs
        self.__doc__ = ours.__doc__

    def __call__(self, *args, **kwargs):
        return self._ours(*args, **kwargs)

    def __mro_entries__(self, bases):
        return (self._base,)

    def __instancecheck__(self, instance):
        return isinstance(instance, (self._ours, self._theirs))

    def __subclasscheck__(self, cls):
        return issubclass(cls, (self._ours, self._theirs))

    def __getattr__(self, name):
        return getattr(self._ours, name)

    def __getitem__(self, item):
        return self._ours[item]

    def __or__(self, other):
        return self._ours | other

    def __ror__(self, other):
        return other | self._ours

    def __reduce__(self):
        return getattr, (_Module(self._theirs.__module__), self._theirs.__name__)

    def __repr__(self):
        return f"<{self._ours!r} in the place of {self._theirs!r}>"


class _Module:
    """A submodule of :mod:`multiprocessing`, for pickles."""

    def __init__(self, name):
        self._name = name

    def __reduce__(self):
        return import_module, (self._name,)


class _Pipe(multiprocessing.queues.SimpleQueue):
    """CPython's queue, whose pipe CPython's pool reads and writes itself."""


class _PipeContext:
    """A context for CPython's pool: that of the program but for its queues."""

    def __init__(self, context):
        self._context = context

    def SimpleQueue(self):
        return _Pipe(ctx=self._context)

    def __getattr__(self, name):
        return getattr(self._context, name)


class _Pool(multiprocessing.pool.Pool):
    """CPython's pool, for classes that derive from it and have queues of their own."""

    def __init__(self, processes=None, initializer=None, initargs=(), maxtasksperchild=None, context=None):
        context = _PipeContext(context or multiprocessing.get_context())
        super().__init__(processes, initializer, initargs, maxtasksperchild, context)


def install():
    """See :func:`procession.install`."""
    global _installed
    if _installed:
        return
    # All are imported before the first is replaced, so that none is built upon another of this package.
    ours = {name: import_module(f"procession.{name}") for name in _REPLACED}
    managers = multiprocessing.managers.BaseManager
    for module in ("queues", "pool"):
        _separate(vars(getattr(multiprocessing, module)).values(), getattr(multiprocessing, module))
    _separate(
        [multiprocessing.managers.SharedMemoryManager, multiprocessing.managers.SharedMemoryServer],
        multiprocessing.managers,
    )
    for module, names in _REPLACED.items():
        for name in names:
            replacement = getattr(ours[module], name)
            if module in ("queues", "pool"):
                theirs = getattr(getattr(multiprocessing, module), name)
                replacement = _Replacement(replacement, theirs, _Pool if module == "pool" else theirs)
            setattr(getattr(multiprocessing, module), name, replacement)
    _watch_picklers()
    _patch_process()
    _patch_registries(managers, ours)
    _reach_children()
    _installed = True


def _separate(classes, module):
    """Have the methods of a module's classes find each other still when the names there are replaced.

    Other software has subclasses of them, that of concurrent.futures for one, whose methods say `Queue` for
    their base.
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

    for cls in list(classes):
        if not isinstance(cls, type) or cls.__module__ != module.__name__:
            continue
        for name, member in list(vars(cls).items()):
            if isinstance(member, types.FunctionType):
                setattr(cls, name, separate(member))
            elif isinstance(member, (classmethod, staticmethod)) and isinstance(
                member.__func__, types.FunctionType
            ):
                setattr(cls, name, type(member)(separate(member.__func__)))


def _watch_picklers():
    """Have the pickler of a program that replaces it in CPython's modules be used for this package's queues."""
    from . import _pickler, context

    _pickler.watch(multiprocessing.queues.__name__)
    multiprocessing.context.BaseContext.reducer = context.BaseContext.reducer


def _patch_process():
    """Give CPython's own process classes what those of this package have."""
    from .process import BaseProcess

    for name in ("start", "_bootstrap", "interrupt"):
        setattr(multiprocessing.process.BaseProcess, name, vars(BaseProcess)[name])


def _patch_registries(manager, ours):
    """Have managers that exist make pools and proxies of this package.

    They could not even start: what a pickle names is replaced.
    """
    proxies = {
        id(theirs): getattr(ours["managers"], name) for name, theirs in ours["managers"].THEIRS.items()
    }
    registry = vars(manager).get("_registry", {})
    for typeid, (callable, exposed, methods, proxytype) in registry.items():
        if callable is _Pool.__base__:
            callable = ours["pool"].Pool
        registry[typeid] = callable, exposed, methods, proxies.get(id(proxytype), proxytype)
    for subclass in manager.__subclasses__():
        if not subclass.__module__.startswith("procession."):
            _patch_registries(subclass, ours)


def _reach_children():
    """Have children under spawn and forkserver install the package before they unpickle anything else."""
    import multiprocessing.forkserver

    from .process import _preload

    start = multiprocessing.forkserver.connect_to_new_process

    def connect_to_new_process(fds):
        _preload("procession._installed")
        return start(fds)

    multiprocessing.forkserver.connect_to_new_process = connect_to_new_process
    stdlib = multiprocessing.spawn.get_preparation_data

    def get_preparation_data(name):
        data = stdlib(name)
        # A forkserver is handed some of the items as text, which this one is not among.
        return {_KEY: _Marker(), **data}

    multiprocessing.spawn.get_preparation_data = get_preparation_data
