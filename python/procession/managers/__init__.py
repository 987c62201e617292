"""Managers, as in ``multiprocessing.managers``, whose queues, locks and values are in shared memory.

A manager's process makes those objects. The processes that have one use the memory itself: no
process stands between them. Dictionaries, lists, sets, namespaces, pools and registered types stay
in the manager's process, and others get proxies of them. Each object of both kinds lives exactly as
long as a process has it, also when processes are killed.
"""

from multiprocessing import managers as _stdlib

from ._errors import ManagerDied
from ._manager import BaseManager, SharedMemoryManager, SyncManager
from ._proxy import AutoProxy, BaseProxy, MakeProxyType, RebuildProxy
from ._proxy_types import (
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
from ._server import Server, SharedMemoryServer
from ._shared_objects import (
    ManagedBarrier,
    ManagedBoundedSemaphore,
    ManagedCondition,
    ManagedEvent,
    ManagedLock,
    ManagedQueue,
    ManagedRLock,
    ManagedSemaphore,
)
from ._token import Token
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
