"""An executor of :mod:`concurrent.futures` over this package's pool."""

import atexit
import functools
import threading
import time
import weakref
from concurrent.futures import CancelledError, Executor, Future
from concurrent.futures.process import BrokenProcessPool

from . import pool as _pool
from ._failures import PoolBroken, PoolTerminated, WorkerDied

__all__ = ["ProcessPoolExecutor"]


class BrokenWorker(WorkerDied, BrokenProcessPool):
    """`WorkerDied`, for programs that catch `concurrent.futures.process.BrokenProcessPool`. The executor goes on."""


class BrokenExecutor(PoolBroken, BrokenProcessPool):
    """`PoolBroken`, for programs that catch `concurrent.futures.process.BrokenProcessPool`."""


class ProcessPoolExecutor(Executor):
    """`concurrent.futures.ProcessPoolExecutor` that goes on when a worker dies.

    The call that a dead worker made raises `WorkerDied` (which is a `BrokenProcessPool` here), or is made again up to
    `retries` times; the others, and later ones, are not touched. `timeout` is in seconds, for each call; see `Pool`. The
    workers start with the first call and may have children of their own.

        with ProcessPoolExecutor() as executor:
            print(executor.submit(pow, 2, 10).result())
    """

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
        self._arguments = (max_workers, initializer, initargs, max_tasks_per_child, mp_context)
        self._pool = None
        self._is_shut_down = False
        _executors.add(self)

    def submit(self, fn, /, *args, **kwargs):
        """Have a worker call ``fn(*args, **kwargs)``; return its `Future` at once."""
        future = _Future()
        pool = self._running_pool()
        future._call = pool.apply_async(
            fn, args, kwargs, functools.partial(_succeed, future), functools.partial(_end, future)
        )
        return future

    def map(self, fn, *iterables, timeout=None, chunksize=1, buffersize=None):
        """Return an iterator over what ``fn(*items)`` returns for the items of the iterables, in order.

        The iterables are read at once or, with `buffersize`, by a thread that is no more than so many tasks (of `chunksize`
        calls each) ahead of what was taken. A result that is not there `timeout` seconds after the call of `map` raises
        TimeoutError.
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
        results = self._running_pool()._imap(
            fn, items, chunksize, True, buffersize, None, None, False, unpack=True
        )
        return _take(results, deadline)

    def shutdown(self, wait=True, *, cancel_futures=False):
        """Take no more calls.

        With `wait`, return when all that were made are done; with `cancel_futures`, cancel those that have not begun.
        """
        self._is_shut_down = True
        pool = self._pool
        if pool is None:
            return
        pool.close()
        if cancel_futures:
            pool._cancel_pending()
        if wait:
            pool.join()

    def _running_pool(self):
        if self._is_shut_down:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if self._pool is None:
            processes, initializer, initargs, most_tasks, context = self._arguments
            context = _pool._default_context.get_context(context and context.get_start_method())
            self._pool = _pool.Pool(
                processes, initializer, initargs, most_tasks, context, daemon=False, **self._options
            )
        try:
            self._pool._check_running()
        except PoolBroken as error:
            raise _translate(error) from error.__cause__
        return self._pool


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
    if isinstance(error, CancelledError):
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
            try:
                if deadline is None:
                    value = next(results)
                else:
                    value = results.next(max(deadline - time.monotonic(), 0))
            except StopIteration:
                return
            except (WorkerDied, PoolBroken, PoolTerminated) as error:
                raise _translate(error) from error.__cause__
            except _pool.TimeoutError as error:
                if type(error) is _pool.TimeoutError:
                    raise TimeoutError("the result was not there in time") from None
                raise
            yield value
    finally:
        results._cancel()


_executors = weakref.WeakSet()


@atexit.register
def _wait_for_all():
    # As with `concurrent.futures`, what was submitted is done before the interpreter ends.
    for executor in list(_executors):
        if executor._pool is not None and executor._pool._work.is_mine:
            executor.shutdown(wait=True)
