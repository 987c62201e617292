"""An executor of :mod:`concurrent.futures` over this package's pool."""

import collections
import functools
import itertools
import os
import threading
import time
import weakref
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import util

from . import _private_names, pool as _pool
from ._errors import PoolBroken, PoolTerminated, WorkerDied

__all__ = ["ProcessPoolExecutor"]


class BrokenWorker(WorkerDied, BrokenProcessPool):
    """`WorkerDied`, for programs that catch `concurrent.futures.process.BrokenProcessPool`. The executor goes on."""


class BrokenExecutor(PoolBroken, BrokenProcessPool):
    """`PoolBroken`, for programs that catch `concurrent.futures.process.BrokenProcessPool`."""


class ProcessPoolExecutor(Executor):
    """`concurrent.futures.ProcessPoolExecutor` that goes on when a worker dies.

    The call that a dead worker made raises `WorkerDied` (which is a `BrokenProcessPool` here), or is made again up to
    `retries` times; the others, and later ones, are not touched. `timeout` is in seconds, for each call; see `Pool`. The
    workers start with the first call and may have children of their own. What was submitted is done also when nobody holds the
    executor any more, and before the interpreter ends.

        with ProcessPoolExecutor() as executor:
            print(executor.submit(pow, 2, 10).result())
    """

    # For __del__, should __init__ raise.
    _pool = None

    def __init__(
        self,
        max_workers=None,
        mp_context=None,
        initializer=None,
        initargs=(),
        *,
        max_tasks_per_child=None,
        retries=0,
        timeout=None,
    ):
        if max_workers is not None and max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        if max_tasks_per_child is not None:
            if not isinstance(max_tasks_per_child, int):
                raise TypeError("max_tasks_per_child must be an integer")
            if max_tasks_per_child <= 0:
                raise ValueError("max_tasks_per_child must be >= 1")
        self._options = {"retries": _pool._check_retries(retries), "timeout": _pool._check_timeout(timeout)}
        self._arguments = (initializer, initargs, max_tasks_per_child)
        self._max_workers = max_workers or getattr(os, "process_cpu_count", os.cpu_count)() or 1
        self._mp_context = _pool._ours(mp_context) or _pool._default_context.get_context()
        self._is_shut_down = False
        # One that the thread which holds it may take again: a signal handler may use the executor.
        self._making = threading.RLock()

    def __del__(self):
        pool = self._pool
        if pool is not None and pool._work.is_mine:
            pool.close()

    @property
    def _processes(self):
        return {} if self._pool is None else {process.pid: process for process in list(self._pool._pool)}

    def submit(self, fn, /, *args, **kwargs):
        """Have a worker call ``fn(*args, **kwargs)``; return its `Future` at once."""
        future = _Future()
        pool = self._running_pool()
        try:
            pool._check_running()
            pool._supervisor.expect_callbacks()
            # The future has it before any callback is called.
            future._call = call = _pool.ApplyResult(
                pool._work, pool, functools.partial(_succeed, future), functools.partial(_end, future)
            )
            pool._call(call, fn, args, kwargs, pool._retries, pool._timeout)
        except _REFUSALS as error:
            raise _refusal(pool, error) from error.__cause__
        return future

    def map(self, fn, *iterables, timeout=None, chunksize=1, buffersize=None):
        """Return an iterator over what ``fn(*items)`` returns for the items of the iterables, in order.

        The iterables are read at once or, with `buffersize`, by a thread that is no more than so many tasks (of `chunksize`
        calls each) ahead of what was taken. A result that is not there `timeout` seconds after the call of `map` raises
        TimeoutError. An iterator of which something was taken cancels what has not begun when nobody uses it any more.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if buffersize is not None and (not isinstance(buffersize, int) or buffersize < 1):
            raise ValueError("buffersize must be None or a positive integer")
        deadline = None if timeout is None else time.monotonic() + timeout
        items = zip(*iterables)
        if buffersize is None:
            items = list(items)
            buffersize = max(len(items), 1)
        if type(self).submit is not _submit or "submit" in vars(self):
            return _map_by_submit(self, fn, iter(items), chunksize, buffersize, deadline)
        pool = self._running_pool()
        try:
            results = pool._imap(fn, items, chunksize, True, buffersize, None, None, False, unpack=True)
        except _REFUSALS as error:
            raise _refusal(pool, error) from error.__cause__
        return _take(results, deadline)

    def shutdown(self, wait=True, *, cancel_futures=False):
        """Take no more calls.

        With `wait`, return when all that were made are done; with `cancel_futures`, cancel those that have not begun.
        """
        with self._making:
            self._is_shut_down = True
            pool = self._pool
        if pool is None:
            return
        pool.close()
        if cancel_futures:
            pool._cancel_pending()
        if wait:
            pool.join()

    def terminate_workers(self):
        """Shut down, cancel what has not begun and terminate the workers; return when they have ended.

        A worker that does not end of SIGTERM within a second is killed. What it ran raises BrokenProcessPool.
        """
        self.shutdown(wait=False, cancel_futures=True)
        if self._pool is not None:
            self._pool.terminate()

    def kill_workers(self):
        """As `terminate_workers`, with SIGKILL."""
        self.shutdown(wait=False, cancel_futures=True)
        for process in self._processes.values():
            process.kill()
        if self._pool is not None:
            self._pool.terminate()

    def _running_pool(self):
        pool = self._pool
        if pool is None or self._is_shut_down:
            with self._making:
                if self._is_shut_down or _ending == os.getpid():
                    raise _too_late()
                if self._pool is None:
                    self._pool = self._make_pool()
                pool = self._pool
        return pool

    def _make_pool(self):
        pool = _Pool(self._max_workers, *self._arguments, self._mp_context, daemon=False, **self._options)
        # Until all is done, whoever holds the executor.
        pool._supervisor.held = pool
        _pools.add(weakref.ref(pool, _pools.discard))
        # A process that `multiprocessing` started terminates its pools, at 15, before its threads end.
        util.Finalize(pool, _finish, (pool._supervisor,), exitpriority=16)
        if _ending == os.getpid():
            pool.close()
        return pool


# To be told from that of a subclass, a test or a tool.
_submit = ProcessPoolExecutor.submit


def _map_by_submit(executor, fn, items, chunksize, buffersize, deadline):
    """What `map` does, by calls of another `submit`, as CPython's executors do it."""
    chunks = iter(lambda: tuple(itertools.islice(items, chunksize)), ())
    futures = collections.deque()

    def submit(count):
        for chunk in itertools.islice(chunks, count):
            futures.append(executor.submit(_call_for_each, fn, chunk))

    def take():
        try:
            while futures:
                left = None if deadline is None else max(deadline - time.monotonic(), 0)
                values = futures[0].result(left)
                futures.popleft()
                submit(1)
                yield from values
        finally:
            for future in futures:
                future.cancel()

    submit(buffersize)
    return take()


def _call_for_each(fn, chunk):
    return [fn(*items) for items in chunk]


class _Pool(_pool.Pool):
    _reports_exits = True


# What a pool raises that takes no calls any more.
_REFUSALS = (PoolBroken, PoolTerminated, ValueError)


def _refusal(pool, error):
    """What CPython's executors raise then."""
    if isinstance(error, PoolBroken) or pool._state == _pool.RUN:
        return _translate(error)
    return _too_late()


def _too_late():
    what = "interpreter shutdown" if _ending == os.getpid() else "shutdown"
    return RuntimeError(f"cannot schedule new futures after {what}")


class _Future(Future):
    """A future whose call the pool can take back."""

    _call = None

    def cancel(self):
        """Cancel the call unless it runs or has ended; return whether it is cancelled."""
        if not self.done() and not self._call.cancel():
            return False
        return _cancel(self)

    def running(self):
        """Return whether a worker makes the call now."""
        pool = self._call._pool
        return not self.done() and pool is not None and pool._is_running(self._call)


# For two steps, of which the second is for who has made the first.
_cancelling = threading.RLock()


def _cancel(future):
    with _cancelling:
        was_cancelled = future.cancelled()
        cancelled = Future.cancel(future)
        if cancelled and not was_cancelled:
            # Those that wait for it are told.
            future.set_running_or_notify_cancel()
    return cancelled


def _succeed(future, value):
    if not future.cancelled():
        future.set_result(value)


def _end(future, error):
    # The call may have raised a CancelledError of its own.
    if future._call._is_cancelled:
        _cancel(future)
    elif not future.cancelled():
        future.set_exception(_translate(error))


def _translate(error):
    """The exception that programs for `concurrent.futures` expect."""
    if type(error) is WorkerDied:
        return BrokenWorker(*error.args)
    if type(error) in (PoolBroken, PoolTerminated):
        translated = BrokenExecutor(*error.args)
        translated.__cause__ = error.__cause__
        return translated
    return error


def _take(results, deadline):
    try:
        while True:
            if deadline is not None and not results._job._wait(max(deadline - time.monotonic(), 0)):
                raise TimeoutError("the result was not there in time")
            try:
                value = next(results)
            except StopIteration as error:
                if error.__cause__ is None:
                    return
                # A call has raised it.
                raise
            except (WorkerDied, PoolBroken, PoolTerminated) as error:
                raise _translate(error) from error.__cause__
            yield value
    finally:
        results._cancel()


# The pools of executors, and the process that waits for its own before it ends.
_pools = set()
_ending = None


def _finish(supervisor):
    supervisor.close()
    supervisor.work.lift_bounds()
    supervisor.join()


def _finish_all():
    # As with `concurrent.futures`, what was submitted is done before the interpreter ends.
    global _ending
    _ending = os.getpid()
    pools = [pool for reference in list(_pools) if (pool := reference()) is not None and pool._work.is_mine]
    for pool in pools:
        pool.close()
    for pool in pools:
        pool.join()


# While threads can still be started: later, no iterable could be read and no worker replaced.
threading._register_atexit(_finish_all)
_private_names.add(ProcessPoolExecutor, _private_names.EXECUTOR)
