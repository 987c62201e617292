"""The thread that runs a pool's callbacks."""

import queue
import sys
import threading

from ._spawn import start_thread


class Callbacks:
    """Runs callbacks, in a thread of their own from when any are expected. They may take their time: it does nothing else."""

    def __init__(self):
        # One place, filled once and by `setdefault` alone: who would hold a lock could be interrupted by a signal handler
        # that ends the pool, and so waits for others that need the lock.
        self._place = {}

    @property
    def thread(self):
        """The thread, or None."""
        runner = self._place.get(0)
        return runner and runner.thread

    def expect(self):
        """Have the thread, unless `end` was called. For who submits: it gets the error if there can be none."""
        if self._place:
            return
        runner = _Runner()
        try:
            runner.start()
            self._place.setdefault(0, runner)
        finally:
            if self._place.get(0) is not runner:
                runner.jobs.put(None)

    def put(self, job):
        """Have the callbacks of a job called that `expect` was called for."""
        self._place[0].jobs.put(job)

    def end(self):
        """Have the thread end behind what was put, and be none later."""
        runner = self._place.setdefault(0, None)
        if runner is not None:
            runner.jobs.put(None)


class _Runner:
    def __init__(self):
        self.jobs = queue.SimpleQueue()
        self.thread = None

    def start(self):
        self.thread = start_thread("PoolCallbacks", self._run)

    def _run(self):
        for job in iter(self.jobs.get, None):
            try:
                self._call(job)
            except BaseException:
                # `threading.excepthook` has raised.
                sys.__excepthook__(*sys.exc_info())
            del job

    def _call(self, job):
        try:
            succeeded, outcome = job._outcome()
            callback = job._callbacks[0 if succeeded else 1]
            if callback is not None:
                callback(outcome)
        except BaseException:
            # It is nobody else's business.
            threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread())))
        finally:
            job._finish()
