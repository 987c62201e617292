from multiprocessing import managers as _stdlib
from multiprocessing.managers import (
    BaseListProxy as BaseListProxy,
    BaseManager as BaseManager,
    BaseProxy as BaseProxy,
    DictProxy as DictProxy,
    ListProxy as ListProxy,
    Namespace as Namespace,
    RemoteError as RemoteError,
    Server as Server,
    SharedMemoryManager as SharedMemoryManager,
    SharedMemoryServer as SharedMemoryServer,
    Token as Token,
    ValueProxy as ValueProxy,
)

__all__ = ["BaseManager", "BaseProxy", "SharedMemoryManager", "SyncManager", "Token"]

class SyncManager(_stdlib.SyncManager): ...
