"""Pools of worker processes, as in ``multiprocessing.pool``."""

from multiprocessing import pool as _stdlib, queues as _queues
from multiprocessing.pool import Pool as _Pool, ThreadPool

from .context import _default_context

__all__ = ["Pool", "ThreadPool"]


class _Pipe(_queues.SimpleQueue):
    """CPython's queue, whose pipe CPython's pool reads and writes itself."""


class _PipeContext:
    """A context for CPython's pool: that of the program but for its queues."""

    def __init__(self, context):
        self._context = context

    def SimpleQueue(self):
        return _Pipe(ctx=self._context)

    def __getattr__(self, name):
        return getattr(self._context, name)


class Pool(_Pool):
    """A pool of worker processes. It is CPython's, with processes and locks of this package's contexts.

    `processes` is how many there are, by default as many as CPUs. Each calls ``initializer(*initargs)`` first
    and ends after `maxtasksperchild` tasks, if that is not None.

        with Pool(4) as pool:
            print(pool.map(abs, [-1, 2, -3]))
    """

    def __init__(self, processes=None, initializer=None, initargs=(), maxtasksperchild=None, context=None):
        context = _PipeContext(context or _default_context.get_context())
        super().__init__(processes, initializer, initargs, maxtasksperchild, context)


def __getattr__(name):
    return getattr(_stdlib, name)
