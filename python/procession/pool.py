"""Pools of worker processes, as in ``multiprocessing.pool``, in which no dead worker hangs anybody."""

import os
import threading
import time
import types
import warnings
from multiprocessing import pool as _stdlib, util
from multiprocessing.pool import ThreadPool
from multiprocessing.queues import SimpleQueue as _SimpleQueue

from . import _private_names, _private_parts
from ._errors import PoolBroken, PoolTerminated, TaskTimeoutError, WorkerDied
from ._procession import Job, ResultIterator, WorkQueue
from ._progress import ShownIterator, shown
from ._spawn import Start, start_thread
from ._supervisor import BROKEN, CLOSE, RUN, TERMINATE, Supervisor
from .context import _default_context, _ours

__all__ = ["Pool", "ThreadPool"]

# Results that may wait to be taken from an iterator, unless `buffersize` says otherwise.
_AHEAD = 10_000
# Why a job's feeding pauses; see `WorkQueue.feed`.
_AS_MANY_AS_MAY_WAIT = 1


class ApplyResult(Job, _stdlib.ApplyResult):
    """The result of `Pool.apply_async`, which may be still to come."""

    # `Job` begins it, not CPython's class.
    __init__ = object.__init__
    __class_getitem__ = classmethod(types.GenericAlias)

    def cancel(self, *, kill=False):
        """Cancel the call; return whether it will not be made, or has been cut short.

        One that runs is left alone, and the answer is False, unless `kill` is true: then its worker is killed, and
        replaced. `get` raises `concurrent.futures.CancelledError` afterwards. Of a map what has not begun is cancelled.
        """
        pool = self._pool
        return pool is not None and pool._cancel(self, kill)


AsyncResult = ApplyResult


class MapResult(ApplyResult, _stdlib.MapResult):
    """The result of `Pool.map_async` and `Pool.starmap_async`, which may be still to come."""


class IMapIterator(ResultIterator, _stdlib.IMapIterator):
    """The results of `Pool.imap`, in order.

    When nobody uses it any more and some were taken, what has not begun is cancelled. If none was, all is done: somebody
    wanted no results.
    """

    __init__ = object.__init__
    _ordered = True

    def __new__(cls, job):
        if isinstance(job, Pool):
            # As public code makes CPython's.
            job = Job(job._work, job, None, None, None, 0, 0, (cls._ordered, False, _AHEAD))
        return super().__new__(cls, job)

    def _hand_out(self, func, items):
        pool = self._job._pool
        pool._feed(self._job, func, items, 0, False, *pool._limits(None, None), True)

    def _cancel(self):
        pool = self._running_pool()
        if pool is not None:
            pool._cancel(self._job, False)

    def _running_pool(self):
        pool = self._job._pool
        # A forked child's copy is nothing to its parent's.
        return pool if pool is not None and pool._work.is_mine else None

    def __del__(self):
        if self._job._is_used:
            self._cancel()
        elif self._running_pool() is not None:
            self._job._discard()


class IMapUnorderedIterator(IMapIterator, _stdlib.IMapUnorderedIterator):
    """The results of `Pool.imap_unordered`, as they come."""

    _ordered = False


class Pool(_stdlib.Pool):
    """A pool of worker processes.

    `processes` is how many there are, by default as many as CPUs. Each calls ``initializer(*initargs)`` first and is replaced
    after `maxtasksperchild` tasks, or when it has more than `max_memory_per_child` bytes of resident memory after one, if these are not
    None. With `daemon` false the workers may have children of their own; they end with this process all the same.

        with Pool(4) as pool:
            print(pool.map(abs, [-1, 2, -3]))

    A worker that dies is replaced. What it ran raises `WorkerDied`, or is begun again up to `retries` times; nothing else is
    touched. What runs for longer than `timeout` seconds is killed and raises `TaskTimeoutError`. Both hold for every call, unless that
    says otherwise. When one worker after another ends before its initializer has returned, all calls raise `PoolBroken`.
    """

    _wrap_exception = True
    # For __del__, should __init__ raise, or not begin for an argument that it does not have.
    _state = _stdlib.INIT
    # Whether a call that raises SystemExit raises just that, and its worker goes on.
    _reports_exits = False

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        _private_parts.keep(cls)

    @staticmethod
    def Process(ctx, *args, **kwds):
        """Return a new worker process."""
        return ctx.Process(*args, **kwds)

    def __init__(
        self,
        processes=None,
        initializer=None,
        initargs=(),
        maxtasksperchild=None,
        context=None,
        *,
        retries=0,
        timeout=None,
        max_memory_per_child=None,
        daemon=True,
    ):
        if processes is None:
            processes = getattr(os, "process_cpu_count", os.cpu_count)() or 1
        if processes < 1:
            raise ValueError("Number of processes must be at least 1")
        for name, value in (
            ("maxtasksperchild", maxtasksperchild),
            ("max_memory_per_child", max_memory_per_child),
        ):
            if value is not None and (not isinstance(value, int) or value <= 0):
                raise ValueError(f"{name} must be a positive int or None")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        self._retries = _check_retries(retries)
        self._timeout = _check_timeout(timeout)
        self._ctx = _ours(context) or _default_context.get_context()
        self._initializer = initializer
        self._initargs = initargs
        self._maxtasksperchild = maxtasksperchild
        self._work = WorkQueue()
        most = maxtasksperchild, max_memory_per_child
        arguments = (self._work, initializer, initargs, *most, self._reports_exits)
        start = Start(self._ctx, self.Process, arguments, daemon)
        self._supervisor = Supervisor(self._work, start, processes)
        try:
            with start.signals_blocked():
                self._supervisor.start()
                self._terminate = util.Finalize(self, self._supervisor.terminate, exitpriority=15)
                self._state = RUN
        except BaseException:
            # Nobody will have the pool.
            self._supervisor.terminate()
            raise

    def __del__(self, _warn=warnings.warn, RUN=RUN):
        if self._state == RUN and self._work.is_mine:
            _warn(f"unclosed running multiprocessing pool {self!r}", ResourceWarning, source=self)
            # Not here: this may be any thread, in the middle of anything.
            self._supervisor.stop()

    def __repr__(self):
        cls = self.__class__
        return f"<{cls.__module__}.{cls.__qualname__} state={self._state} pool_size={len(self._pool)}>"

    def __reduce__(self):
        raise NotImplementedError("pool objects cannot be passed between processes or pickled")

    def __enter__(self):
        self._check_running()
        return self

    def __exit__(self, exc_type, exc_val, exc_tb):
        self.terminate()

    @property
    def _pool(self):
        return self._supervisor.workers

    @property
    def _processes(self):
        return self._supervisor.processes

    def _repopulate_pool(self):
        self._supervisor.wake()

    def _check_running(self):
        if not self._work.is_mine:
            raise RuntimeError(
                "the pool belongs to the process that made it, of which this one is a forked child; make another one here"
            )
        if self._supervisor.state == BROKEN:
            raise self._supervisor.broken()
        if self._state != RUN:
            raise ValueError("Pool not running")
        if self._supervisor.lacks_template:
            self._supervisor.renew_template()

    def apply(self, func, args=(), kwds={}, *, retries=None, timeout=None):
        """Call ``func(*args, **kwds)`` in a worker and return what it returns.

        Raises what `func` raises; `WorkerDied` when the worker dies, unless it is one of `retries` times.
        """
        return self.apply_async(func, args, kwds, **_given(retries=retries, timeout=timeout)).get()

    def apply_async(
        self, func, args=(), kwds={}, callback=None, error_callback=None, *, retries=None, timeout=None
    ):
        """Have a worker call ``func(*args, **kwds)``, and return an `AsyncResult` at once.

        `callback` is called with the value, `error_callback` with the exception, in a thread of the pool; then
        the result is ready. What cannot be pickled is raised by the result's `get`.
        """
        retries, timeout = self._limits(retries, timeout)
        self._check_running()
        if callback is not None or error_callback is not None:
            self._supervisor.expect_callbacks()
        result = ApplyResult(self._work, self, callback, error_callback)
        self._call(result, func, args, kwds, retries, timeout)
        return result

    def map(self, func, iterable, chunksize=None, *, retries=None, timeout=None, progress=False):
        """Return a list of what `func` returns for each item, in order.

        Workers get `chunksize` items at a time, by default so many that each gets about four chunks; with a `timeout`, one
        at a time. The limit of a chunk is that of its items together. If calls raise, the exception of the one that
        was noticed first is raised, once all have ended. With `progress` true how far it has come is shown on standard error.
        """
        result = self._map(func, iterable, chunksize, False, None, None, retries, timeout)
        return shown(result) if progress else result.get()

    def starmap(self, func, iterable, chunksize=None, *, retries=None, timeout=None, progress=False):
        """Return a list of what ``func(*item)`` returns for each item, in order. As `map` else."""
        result = self._map(func, iterable, chunksize, True, None, None, retries, timeout)
        return shown(result) if progress else result.get()

    def map_async(
        self,
        func,
        iterable,
        chunksize=None,
        callback=None,
        error_callback=None,
        *,
        retries=None,
        timeout=None,
    ):
        """Begin what `map` does, and return an `AsyncResult` at once. The callbacks are as for `apply_async`."""
        return self._map(func, iterable, chunksize, False, callback, error_callback, retries, timeout)

    def starmap_async(
        self,
        func,
        iterable,
        chunksize=None,
        callback=None,
        error_callback=None,
        *,
        retries=None,
        timeout=None,
    ):
        """Begin what `starmap` does, and return an `AsyncResult` at once. The callbacks are as for `apply_async`."""
        return self._map(func, iterable, chunksize, True, callback, error_callback, retries, timeout)

    def imap(
        self, func, iterable, chunksize=1, *, buffersize=None, retries=None, timeout=None, progress=False
    ):
        """Return an iterator over what `func` returns for each item, in order.

        The iterable is read by a thread, no further than `buffersize` tasks (of `chunksize` items each) ahead of what
        was taken from the iterator, so that it may be endless. An item whose call raises raises in its place.
        """
        return self._imap(func, iterable, chunksize, True, buffersize, retries, timeout, progress)

    def imap_unordered(
        self, func, iterable, chunksize=1, *, buffersize=None, retries=None, timeout=None, progress=False
    ):
        """Return an iterator over what `func` returns for each item, in the order in which they are done. As `imap` else."""
        return self._imap(func, iterable, chunksize, False, buffersize, retries, timeout, progress)

    async def aapply(self, func, args=(), kwds={}, *, retries=None, timeout=None):
        """Call ``func(*args, **kwds)`` in a worker and return what it returns, while the event loop goes on.

        A call that is cancelled is not made if it has not begun.
        """
        import asyncio

        loop = asyncio.get_running_loop()
        future = loop.create_future()

        def settle(setter, outcome):
            if future.done():
                return
            if isinstance(outcome, StopIteration) and setter == future.set_exception:
                # No coroutine can raise it.
                error, outcome = outcome, RuntimeError("the call raised StopIteration")
                outcome.__cause__ = error
            setter(outcome)

        def hand_over(setter):
            def hand_over(outcome):
                try:
                    loop.call_soon_threadsafe(settle, setter, outcome)
                except RuntimeError:
                    # Nobody waits for it any more.
                    if not loop.is_closed():
                        raise

            return hand_over

        result = self.apply_async(
            func,
            args,
            kwds,
            hand_over(future.set_result),
            hand_over(future.set_exception),
            **_given(retries=retries, timeout=timeout),
        )
        try:
            return await future
        except asyncio.CancelledError:
            result.cancel()
            raise

    def resize(self, processes):
        """Have so many workers from now on. Those that are too many end after the task that they have."""
        self._check_running()
        if processes < 1:
            raise ValueError("Number of processes must be at least 1")
        self._supervisor.resize(processes)

    def close(self):
        """Take no more calls. The workers end when all that were made are done."""
        if self._state == RUN:
            self._supervisor.close()
            self._state = CLOSE

    def terminate(self):
        """Kill the workers. What is not done raises `PoolTerminated`."""
        self._state = TERMINATE
        # First of all: what follows can be interrupted, and is not done twice.
        self._supervisor.stop()
        self._terminate()

    def join(self):
        """Wait until the workers have ended and all results are here. The pool must be closed or terminated.

        RuntimeError in one of its callbacks, for which it waits, unless it is terminated.
        """
        if self._state == RUN:
            raise ValueError("Pool is still running")
        if self._state not in (CLOSE, TERMINATE):
            raise ValueError("In unknown state")
        self._work.lift_bounds()
        if self._supervisor.lacks_template:
            self._supervisor.renew_template()
        self._supervisor.join()

    def describe(self):
        """Return the pool's state in plain words: its workers, what they run, and what waits."""
        running = {pid: f"task {index} of job {job}" for pid, job, index in self._work.running()}
        lines = [repr(self)]
        lines += [
            f"{worker.name}, pid {worker.pid}: {running.get(worker.pid, 'waits')}"
            for worker in list(self._pool)
        ]
        return "\n".join([*lines, self._work.describe()])

    def _limits(self, retries, timeout):
        """How often a task of a call is begun again, and for how long it may run."""
        return (
            self._retries if retries is None else _check_retries(retries),
            self._timeout if timeout is None else _check_timeout(timeout),
        )

    def _take_back(self, job):
        """Cancel what is half handed out."""
        self._work.cancel(job, PoolTerminated("its tasks could not be handed out"), False)

    def _is_running(self, job):
        return any(number == job._job for _, number, _ in self._work.running())

    def _cancel_pending(self):
        """Cancel all calls that have not begun."""
        for number, index in self._work.take_back():
            job = self._work.job(number)
            if job is not None:
                self._work.fail(job, index, None)

    def _cancel(self, job, kill):
        cancelled, workers = self._work.cancel(job, None, kill)
        if kill:
            for pid in workers:
                self._supervisor.kill(pid, job._job)
        return cancelled

    def _call(self, result, func, args, kwds, retries, timeout):
        try:
            self._work.call(result, func, args, kwds, retries)
            if timeout is not None:
                self._supervisor.limit(result, timeout)
        except BaseException:
            self._take_back(result)
            raise

    def _map(self, func, iterable, chunksize, unpack, callback, error_callback, retries, timeout):
        retries, timeout = self._limits(retries, timeout)
        self._check_running()
        if not hasattr(iterable, "__len__"):
            iterable = list(iterable)
        count = len(iterable)
        if chunksize is None:
            if timeout is not None:
                chunksize = 1
            else:
                chunksize = -(-count // (max(len(self._pool), 1) * 4)) or 1
        elif chunksize < 1:
            raise ValueError(f"Chunksize must be 1+, not {chunksize}")
        tasks = -(-count // chunksize)
        if callback is not None or error_callback is not None:
            self._supervisor.expect_callbacks()
        result = MapResult(self._work, self, callback, error_callback, [None] * count, chunksize, tasks)
        if tasks:
            chunk = 0 if chunksize == 1 else chunksize
            self._feed(result, func, iter(iterable), chunk, unpack, retries, timeout, False)
        return result

    def _imap(self, func, iterable, chunksize, ordered, buffersize, retries, timeout, progress, unpack=False):
        retries, timeout = self._limits(retries, timeout)
        self._check_running()
        if chunksize < 1:
            raise ValueError(f"Chunksize must be 1+, not {chunksize}")
        if buffersize is not None and buffersize < 1:
            raise ValueError(f"buffersize must be 1+ or None, not {buffersize}")
        # A plain sequence gives its items at once.
        patient = not isinstance(iterable, (list, tuple, range, str, bytes))
        stream = (ordered, chunksize != 1, buffersize or _AHEAD)
        job = Job(self._work, self, None, None, None, 0, 0, stream)
        results = (IMapIterator if ordered else IMapUnorderedIterator)(job)
        total = len(iterable) if hasattr(iterable, "__len__") else None
        chunk = 0 if chunksize == 1 else chunksize
        self._feed(job, func, iter(iterable), chunk, unpack, retries, timeout, patient)
        return ShownIterator(results, total) if progress else results

    def _feed(self, job, func, items, chunk, unpack, retries, timeout, patient):
        """Hand a job's tasks out; in a thread, if the items are slow to come or cannot all be handed out at once."""
        arguments = (job, func, items, chunk, unpack, retries)
        try:
            self._work.begin(job, func)
            if timeout is not None:
                self._supervisor.limit(job, timeout * (chunk or 1))
            if not patient and not self._work.feed(*arguments, None):
                return
            start_thread("PoolFeeder", _feed, self._work, *arguments)
        except BaseException:
            self._take_back(job)
            raise


def _given(**options):
    """Those that are not None. A subclass may have methods with CPython's arguments only."""
    return {name: value for name, value in options.items() if value is not None}


def _feed(work, job, func, items, chunk, unpack, retries):
    gate = threading.Lock()
    gate.acquire()
    try:
        while pause := work.feed(job, func, items, chunk, unpack, retries, gate):
            if pause == _AS_MANY_AS_MAY_WAIT:
                gate.acquire()
            else:
                # There is enough in shared memory. What is done need not lie there.
                work.collect_reports()
                time.sleep(0.001)
    except BaseException as error:
        work.cancel(job, error, True)


def _check_retries(retries):
    if not isinstance(retries, int) or not 0 <= retries < 2**31:
        raise ValueError(f"retries must be an integer from 0 on, not {retries!r}")
    return retries


def _check_timeout(timeout):
    if timeout is not None and not timeout > 0:
        raise ValueError(f"timeout must be a positive number of seconds or None, not {timeout!r}")
    return timeout


class _Pipe(_SimpleQueue):
    """CPython's queue, whose pipe CPython's pool reads and writes itself."""


class _PipeContext:
    """A context for CPython's pool: that of the program but for its queues."""

    def __init__(self, context):
        self._context = context

    def SimpleQueue(self):
        return _Pipe(ctx=self._context)

    def __getattr__(self, name):
        return getattr(self._context, name)


_TheirPool = _stdlib.Pool


def _begin_with_pipes(
    self, processes=None, initializer=None, initargs=(), maxtasksperchild=None, context=None
):
    context = _PipeContext(context or _default_context.get_context())
    _TheirPool.__init__(self, processes, initializer, initargs, maxtasksperchild, context)


# Of a subclass that uses private parts of CPython's pool.
Pool._front_members = {"__init__": _begin_with_pipes}


for _cls, _names in (
    (ApplyResult, _private_names.RESULT),
    (MapResult, _private_names.MAP_RESULT),
    (Pool, _private_names.POOL),
):
    _private_names.add(_cls, _names)


def __getattr__(name):
    return getattr(_stdlib, name)
