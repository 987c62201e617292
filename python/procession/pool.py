"""Pools of worker processes."""

from multiprocessing import pool as _stdlib
from multiprocessing import queues as _queues
from multiprocessing.pool import ThreadPool

from .context import _default_context

__all__ = ["Pool", "ThreadPool"]


class _Pipe(_queues.SimpleQueue):
    """What CPython's pool reads and writes past its queues' methods: a pipe."""


class Pool(_stdlib.Pool):
    """A pool of worker processes. It is CPython's, over this package's contexts."""

    def __init__(self, processes=None, initializer=None, initargs=(), maxtasksperchild=None, context=None):
        context = context or _default_context.get_context()
        super().__init__(processes, initializer, initargs, maxtasksperchild, context)

    def _setup_queues(self):
        self._inqueue = _Pipe(ctx=self._ctx)
        self._outqueue = _Pipe(ctx=self._ctx)
        self._quick_put = self._inqueue._writer.send
        self._quick_get = self._outqueue._reader.recv


def __getattr__(name):
    return getattr(_stdlib, name)
