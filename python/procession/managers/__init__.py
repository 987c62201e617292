"""Managers, as in ``multiprocessing.managers``, whose queues, locks and values are in shared memory.

A manager's process makes those objects and keeps them, so that they are there for as long as the manager is.
Who asks for one uses the object itself: no process stands between those who share it. Dictionaries, lists,
sets, namespaces, pools and registered types stay in the manager's process, and who asks for one gets a proxy
of it. Each is there exactly as long as somebody has a proxy of it, whoever is killed.
"""

from multiprocessing import managers as _stdlib

from ._errors import ManagerDied
from ._kept import (
    ManagedBarrier,
    ManagedBoundedSemaphore,
    ManagedCondition,
    ManagedEvent,
    ManagedLock,
    ManagedQueue,
    ManagedRLock,
    ManagedSemaphore,
)
from ._manager import _KEPT, BaseManager, SharedMemoryManager, SyncManager
from ._proxy import AutoProxy, BaseProxy, MakeProxyType, RebuildProxy
from ._server import Server, SharedMemoryServer
from ._token import Token
from ._types import (
    AcquirerProxy,
    ArrayProxy,
    BarrierProxy,
    BaseListProxy,
    ConditionProxy,
    DictProxy,
    EventProxy,
    IteratorProxy,
    ListProxy,
    NamespaceProxy,
    PoolProxy,
    SetProxy,
    ValueProxy,
)
from ._values import ManagedArray, ManagedValue

__all__ = ["BaseManager", "BaseProxy", "ManagerDied", "SharedMemoryManager", "SyncManager", "Token"]

# Tracebacks and pickles name them by where they are to be found.
for _public in list(vars().values()):
    if getattr(_public, "__module__", "").startswith(f"{__name__}._"):
        _public.__module__ = __name__

# CPython's own, of which `procession.install` replaces some.
THEIRS = dict(vars(_stdlib))


def __getattr__(name):
    return getattr(_stdlib, name)
