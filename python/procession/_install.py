"""Putting the package in the place of :mod:`multiprocessing`."""

import copyreg
import functools
import multiprocessing
import multiprocessing.managers
import multiprocessing.pool
import multiprocessing.process
import multiprocessing.queues
import multiprocessing.reduction
import multiprocessing.shared_memory
import multiprocessing.sharedctypes
import multiprocessing.spawn
import multiprocessing.synchronize
from importlib import import_module

from . import _private_parts

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


def install():
    """See :func:`procession.install`."""
    global _installed
    if _installed:
        return
    # All are imported before the first is replaced, so that none is built upon another of this package.
    ours = {name: import_module(f"procession.{name}") for name in _REPLACED}
    managers, pool = multiprocessing.managers.BaseManager, multiprocessing.pool.Pool
    # Their methods say `Queue`, for one, for the base of their own class.
    for module in "queues", "pool", "managers":
        for cls in list(vars(getattr(multiprocessing, module)).values()):
            if isinstance(cls, type) and cls.__module__ == f"multiprocessing.{module}":
                if module != "managers" or cls.__name__.startswith("SharedMemory"):
                    _private_parts.separate(cls)
    for module, names in _REPLACED.items():
        for name in names:
            if module in ("queues", "synchronize"):
                _keep_picklable(module, name)
            setattr(getattr(multiprocessing, module), name, getattr(ours[module], name))
    _adopt_pools(pool, ours["pool"].Pool)
    _watch_picklers()
    _patch_process()
    _patch_shared_memory()
    _patch_registries(managers, ours, pool)
    _reach_children()
    _installed = True


# CPython's classes that were replaced, by the names of their module and their own.
_replaced: dict[tuple[str, str], type] = {}


def _keep_picklable(module, name):
    """Have objects of the class that is about to be replaced go to children as before.

    Their pickle would name the class, and the name is another class's by then.
    """
    cls = _replaced[module, name] = getattr(getattr(multiprocessing, module), name)
    multiprocessing.reduction.register(cls, functools.partial(_reduce, module, name))


def _reduce(module, name, obj):
    make, (cls, *arguments), *state = obj.__reduce_ex__(2)
    if make is not copyreg.__newobj__:
        return (make, (cls, *arguments), *state)
    return (_new, (module, name, *arguments), *state)


def _new(module, name, *arguments):
    """Make an object of CPython's class, whether it is replaced here or not."""
    cls = _replaced.get((module, name)) or getattr(import_module(f"multiprocessing.{module}"), name)
    return cls.__new__(cls, *arguments)


def _adopt_pools(theirs, ours):
    """Have classes that derive from CPython's pool, ThreadPool for one, derive from ours. They stay
    what they are."""
    for cls in theirs.__subclasses__():
        if cls is not ours:
            cls.__bases__ = tuple(ours if base is theirs else base for base in cls.__bases__)
            _private_parts.keep(cls, always=True)


def _watch_picklers():
    """Have the pickler of a program that replaces it in CPython's modules be used for this
    package's queues."""
    from . import _pickler, context

    _pickler.watch(multiprocessing.queues.__name__)
    multiprocessing.context.BaseContext.reducer = context.BaseContext.reducer


def _patch_process():
    """Give CPython's own process classes what those of this package have."""
    from . import context
    from .process import BaseProcess, _begin, _start

    theirs = multiprocessing.process.BaseProcess
    # What a tool may have put there.
    begin, bootstrap = theirs.start, theirs._bootstrap

    @functools.wraps(begin)
    def start(self):
        if isinstance(self, BaseProcess):
            begin(self)
        else:
            _start(self, functools.partial(begin, self))

    @functools.wraps(bootstrap)
    def _bootstrap(self, *args, **kwargs):
        if isinstance(self, BaseProcess):
            return bootstrap(self, *args, **kwargs)
        return _begin(self, functools.partial(bootstrap, self), *args, **kwargs)

    theirs.start, theirs._bootstrap = start, _bootstrap
    if not hasattr(theirs, "interrupt"):
        theirs.interrupt = BaseProcess.interrupt
    for name in ("ForkProcess", "SpawnProcess", "ForkServerProcess"):
        concrete = getattr(multiprocessing.context, name)
        concrete._Popen = staticmethod(getattr(context, name)._Popen)


def _patch_shared_memory():
    """Give CPython's own blocks of shared memory, and lists in them, the methods of this
    package's."""
    from . import shared_memory

    for name in shared_memory.__all__:
        theirs, ours = (getattr(module, name) for module in (multiprocessing.shared_memory, shared_memory))
        for attribute, member in vars(ours).items():
            # Attributes that are no methods serve objects that exist already.
            if callable(member) or not attribute.startswith("__"):
                setattr(theirs, attribute, member)


def _patch_registries(manager, ours, pool):
    """Have managers that exist make pools and proxies of this package.

    They could not even start: what a pickle names is replaced.
    """
    proxies = {
        id(theirs): getattr(ours["managers"], name) for name, theirs in ours["managers"].THEIRS.items()
    }
    registry = vars(manager).get("_registry", {})
    for typeid, (callable, exposed, methods, proxytype) in registry.items():
        if callable is pool:
            callable = ours["pool"].Pool
        registry[typeid] = callable, exposed, methods, proxies.get(id(proxytype), proxytype)
    for subclass in manager.__subclasses__():
        if not subclass.__module__.startswith("procession."):
            _patch_registries(subclass, ours, pool)


def _reach_children():
    """Have children under spawn and forkserver install the package before they unpickle anything else."""
    import multiprocessing.forkserver

    from .process import _preload

    start = multiprocessing.forkserver.connect_to_new_process

    def connect_to_new_process(fds):
        _preload("procession._child_install")
        return start(fds)

    multiprocessing.forkserver.connect_to_new_process = connect_to_new_process
    stdlib = multiprocessing.spawn.get_preparation_data

    def get_preparation_data(name):
        data = stdlib(name)
        # A forkserver is handed some of the items as text, which this one is not among.
        return {_KEY: _Marker(), **data}

    multiprocessing.spawn.get_preparation_data = get_preparation_data
