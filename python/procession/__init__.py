"""``multiprocessing`` on shared memory, in which a killed process never hangs the others.

The names, signatures and exceptions are those of :mod:`multiprocessing`, so that
``import procession as multiprocessing`` runs a program unchanged. Starting processes stays CPython's own code; what
processes share (queues, locks, values) are objects in shared memory.
"""

import importlib as _importlib
from multiprocessing import SUBDEBUG, SUBWARNING

from . import context

__all__ = sorted(name for name in dir(context._default_context) if not name.startswith("_"))
globals().update((name, getattr(context._default_context, name)) for name in __all__)
__all__ += ["OwnerDied", "OwnerDiedWarning", "install"]

_SUBMODULES = frozenset(
    (
        "connection", "dummy", "forkserver", "heap", "managers", "pool", "popen_fork", "popen_forkserver",
        "popen_spawn_posix", "process", "queues", "reduction", "resource_sharer", "resource_tracker",
        "shared_memory", "sharedctypes", "spawn", "synchronize", "util",
    )
)  # fmt: skip


def install():
    """Put this package in the place of :mod:`multiprocessing`, in this process and in those that it starts.

    From then on queues, locks, values and managers that are made through ``multiprocessing`` are this package's, in
    modules that have imported it before too. Only classes that were imported from its submodules before
    (``from multiprocessing.queues import Queue``) stay what they were. Calling it again does nothing.
    """
    from ._install import install

    install()


def __getattr__(name):
    # Submodules and the extension's names cost nothing before they are used.
    if name in _SUBMODULES:
        return _importlib.import_module(f"{__name__}.{name}")
    if name in __all__:
        from . import _procession

        value = globals()[name] = getattr(_procession, name)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted(_SUBMODULES.union(globals(), __all__))
