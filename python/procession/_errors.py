"""What becomes of a pool's tasks that end in no result of their own."""

import signal as _signal
from multiprocessing.context import ProcessError, TimeoutError


class WorkerDied(ProcessError):
    """The worker process died while it ran the task. The pool has replaced it, and goes on.

    `pid` is the worker's. `exitcode` is its exit code, as of a process: minus the signal's number
    if a signal killed it, 255 if the kernel has forgotten it; None if it is unknown. `signal` is
    that signal or None, and `task` names the task that it ran.
    """

    def __init__(self, pid, exitcode=None, task="a task"):
        super().__init__(pid, exitcode, task)
        self.pid = pid
        self.exitcode = exitcode
        self.task = task

    @property
    def signal(self):
        """The signal that killed the worker, or None."""
        if self.exitcode is None or self.exitcode >= 0:
            return None
        try:
            return _signal.Signals(-self.exitcode)
        except ValueError:
            # A real-time signal has no name.
            return -self.exitcode

    def __str__(self):
        signal = self.signal
        if signal is not None:
            end = f"was killed by {getattr(signal, 'name', f'signal {signal}')}"
        elif self.exitcode is None:
            end = "ended, nobody knows how,"
        else:
            end = f"exited with status {self.exitcode}"
        return f"the worker process {self.pid} {end} while it ran {self.task}"


class TaskTimeoutError(TimeoutError):
    """The task ran for longer than its `timeout`. Its worker was killed, and replaced."""


class PoolTerminated(ProcessError):
    """The pool was terminated before the task was done."""


class PoolBroken(ProcessError):
    """One worker after another ended before it was ready for tasks, and none is ready, so that the pool has given up.

    The cause is what the initializer raised, or why no process could be started, if that is known.
    """
