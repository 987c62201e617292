"""Managers."""

from multiprocessing import managers as _stdlib
from multiprocessing.managers import BaseManager, BaseProxy, SharedMemoryManager, Token

from .context import _default_context

__all__ = ["BaseManager", "BaseProxy", "SharedMemoryManager", "SyncManager", "Token"]


class SyncManager(_stdlib.SyncManager):
    """A manager of shared objects."""

    def __init__(self, address=None, authkey=None, serializer="pickle", ctx=None, **options):
        super().__init__(address, authkey, serializer, ctx or _default_context.get_context(), **options)


def __getattr__(name):
    return getattr(_stdlib, name)
