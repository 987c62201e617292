"""``multiprocessing`` on shared memory, in which a killed process never hangs the others.

The names, signatures and exceptions are those of :mod:`multiprocessing`, so that ``import procession as
multiprocessing`` runs a program unchanged. Starting processes stays CPython's own code; what processes share
(queues, locks, values) are objects in shared memory::

    import procession

    def work(tasks, results):
        for number in tasks:
            results.put(number * number)

    if __name__ == "__main__":
        tasks, results = procession.Queue(), procession.Queue()
        worker = procession.Process(target=work, args=(tasks, results))
        worker.start()
        tasks.put_many(range(4))
        tasks.shutdown()
        worker.join()
        print(results.get_many(10))

What is different:

- Whatever a process is killed at, no other waits for it for longer than a second. A lock whose owner died is
  acquired by the next one, with an `OwnerDiedWarning` (see `robust` of `Lock`). Tasks that a dead process had
  got from a `JoinableQueue` are handed out again with `redeliver=True`; else `join` raises `DeliveryLost`. A
  `Semaphore` gets its permits back with `robust=True` only, since it has no owner.
- `put` returns when the object is where any process can get it, and raises what cannot be pickled. No thread
  sends it later, so that a process can be joined before what it has put is got.
- `qsize`, `empty` and `full` are exact.
- Queues, locks and values can be sent to any process in any way: in a queue, through a pipe, to a pool.
- `get` of a queue with `abandonable=True` raises `Abandoned` when no process is left to put.
- Queues have `shutdown`, `put_many`, `get_many`, iteration, `aput` and `aget` for asyncio, and names by which
  programs find them that are not relatives.

Timeouts are in seconds. Every call that waits lets other threads run and can be interrupted by Ctrl-C.

A program that cannot be edited is run with ``python -m procession program.py``; see also `install`.
"""

import importlib as _importlib
from multiprocessing import SUBDEBUG, SUBWARNING

from . import context

__all__ = sorted(name for name in dir(context._default_context) if not name.startswith("_"))
globals().update((name, getattr(context._default_context, name)) for name in __all__)
__all__ += ["Abandoned", "OwnerDied", "OwnerDiedWarning", "install"]
_LAZY = {
    "PoolBroken": "_errors",
    "PoolTerminated": "_errors",
    "ProcessPoolExecutor": "futures",
    "TaskTimeoutError": "_errors",
    "WorkerDied": "_errors",
}
__all__ += _LAZY

_SUBMODULES = frozenset(
    (
        "connection", "dummy", "forkserver", "futures", "heap", "managers", "pool", "popen_fork", "popen_forkserver",
        "popen_spawn_posix", "process", "queues", "reduction", "resource_sharer", "resource_tracker",
        "shared_memory", "sharedctypes", "spawn", "synchronize", "util",
    )
)  # fmt: skip


def install():
    """Put this package in the place of :mod:`multiprocessing`, in this process and in those that it starts.

    From then on queues, locks, values and managers that are made through ``multiprocessing`` are this
    package's, in modules that have imported it before too. Only classes that were imported from its
    submodules before (``from multiprocessing.queues import Queue``) stay what they were. Calling it again
    does nothing.
    """
    from ._install import install

    install()


def __getattr__(name):
    # Submodules and the extension's names cost nothing before they are used.
    if name in _SUBMODULES:
        return _importlib.import_module(f"{__name__}.{name}")
    if name in __all__:
        module = _importlib.import_module(f"{__name__}.{_LAZY.get(name, '_procession')}")
        value = globals()[name] = getattr(module, name)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted(_SUBMODULES.union(globals(), __all__))
