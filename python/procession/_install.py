"""Putting the package in the place of :mod:`multiprocessing`."""

import multiprocessing
import multiprocessing.managers
import multiprocessing.pool
import multiprocessing.process
import multiprocessing.queues
import multiprocessing.sharedctypes
import multiprocessing.spawn
import multiprocessing.synchronize
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
    for module, names in _REPLACED.items():
        for name in names:
            setattr(getattr(multiprocessing, module), name, getattr(ours[module], name))
    _patch_process()
    _reach_children()
    _installed = True


def _patch_process():
    from . import process

    base = multiprocessing.process.BaseProcess
    if not hasattr(base, "interrupt"):
        base.interrupt = process._interrupt


def _reach_children():
    """Has children under spawn and forkserver install the package before they unpickle anything else."""
    stdlib = multiprocessing.spawn.get_preparation_data

    def get_preparation_data(name):
        data = stdlib(name)
        # A forkserver is handed some of the items as text, which this one is not among.
        return {_KEY: _Marker(), **data}

    multiprocessing.spawn.get_preparation_data = get_preparation_data
