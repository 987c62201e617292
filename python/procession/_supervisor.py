"""The thread that looks after a pool's workers."""

import os
import queue
import select
import signal
import sys
import threading
import time
from multiprocessing import process as _processes, util

from ._failures import PoolBroken, PoolTerminated, TaskTimeoutError, WorkerDied
from .process import _starter

RUN, CLOSE, TERMINATE, BROKEN = "RUN", "CLOSE", "TERMINATE", "BROKEN"

# Seconds.
_UNTIL_KILLED = 5
_LONGEST_TICK = 0.25
_SHORTEST_TICK = 0.005
# How long results lie about that nobody waits for.
_UNTIL_COLLECTED = 0.5
# How long the others do without a worker that cannot be started.
_UNTIL_STARTED_AGAIN = 1


class Supervisor:
    """Starts the workers of a pool, replaces those that end and says what became of their tasks.

    It knows nothing of the pool itself, so that a pool that nobody uses any more can go.
    """

    def __init__(self, work, start, processes, daemon):
        self.work = work
        self.workers = []
        self.processes = processes
        self.state = RUN
        self.failure = None
        self._start = start
        self._daemon = daemon
        self._pid = os.getpid()
        self._changing = threading.RLock()
        self._pidfds = {}
        # Workers that have ended: exit codes, and those whose end is not handled yet.
        self._exitcodes = {}
        self._untold = set()
        self._ready = set()
        self._lost = {}
        # Why a worker was killed, by its pid: the job's number, the task's, and the exception.
        self._kills = {}
        self._failed_starts = 0
        self._next_start = 0
        self._timed = {}
        self._since = {}
        self._closed = False
        self._rounds = 0
        self._callbacks = None
        self._may_call_back = threading.Lock()
        self._ended = False
        # A pool that is not to go before its workers have ended.
        self.held = None
        self.wake = _Wake()
        work.set_wake(self.wake)
        self._poll = select.poll()
        self._poll.register(self.wake.eventfd, select.POLLIN)
        self._thread = threading.Thread(target=self._run, name="PoolSupervisor", daemon=True)

    def start(self):
        """Start the workers and the thread."""
        try:
            while len(self.workers) < self.processes:
                self.workers.append(self._start_one())
            for process in self.workers:
                self._watch(process)
            self._thread.start()
        except BaseException:
            for process in self.workers:
                process.terminate()
            for process in self.workers:
                process.join()
            raise

    def populate(self):
        """Start as many workers as are missing."""
        with self._changing:
            while len(self.workers) < self.processes and self.state in (RUN, CLOSE):
                process = self._start_one()
                try:
                    self._watch(process)
                except BaseException:
                    # Out of descriptors, mostly. Nobody would notice its end.
                    process.kill()
                    process.join()
                    raise
                self.workers.append(process)
        if self._thread.ident is not None:
            self.wake()

    def resize(self, processes):
        """Have so many workers from now on. Some that are too many end after the task that they have."""
        with self._changing:
            if processes > self.processes:
                self.work.recall()
            self.processes = processes
            surplus = len(self.workers) - processes
            if surplus > 0:
                self.work.recall()
                self.work.release(surplus)
        self.wake()

    def expect_callbacks(self):
        """Have the thread that runs callbacks. Here, for who submits gets the error if there can be none."""
        if self._callbacks is None:
            with self._may_call_back:
                if self._callbacks is None and not self._ended:
                    self._callbacks = _Callbacks()

    def close(self):
        """Have the workers end when all jobs are done."""
        if self.state == RUN:
            self.state = CLOSE
            # Nobody need wait for results any more, and yet they are to be collected.
            self.work.collect_always()

    def terminate(self):
        """Kill the workers, and have what is not done fail."""
        if self._pid != os.getpid():
            return
        if self.state in (RUN, CLOSE):
            self.state = TERMINATE
        self.wake()
        self.join()

    def join(self):
        """Wait until the workers have ended and the last callback has returned."""
        current = threading.current_thread()
        if current is self._thread:
            # It lets the pool go, or calls user code: nothing here may wait for it.
            return
        if self._thread.ident is not None:
            self._thread.join()
        if self._callbacks is not None and current is not self._callbacks.thread:
            self._callbacks.thread.join()

    def limit(self, job, timeout):
        """Have a task of the job fail that runs for longer than `timeout` seconds."""
        self._timed[job._job] = (job, timeout)
        self.wake()

    def kill_if_running(self, pid, number, index=None, exception=None):
        """Kill a worker if it runs that task (or any of the job), which then fails with `exception`; whether it did."""
        with self._changing:
            pidfd = self._pidfds.get(pid)
            if pidfd is None:
                return False
            found = self.work.condemn(pid, number, index)
            if found is None:
                return False
            if exception is not None:
                self._kills[pid] = (number, found, exception)
            try:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            except ProcessLookupError:
                pass
            return True

    def _start_one(self):
        return self._start(None if self._daemon else _starter())

    def _watch(self, process):
        try:
            pidfd = os.pidfd_open(process.pid)
        except ProcessLookupError:
            # A forkserver has taken its exit status already.
            pidfd = None
        else:
            self._poll.register(pidfd, select.POLLIN)
        self._pidfds[process.pid] = pidfd

    def _run(self):
        # Processes that this thread starts get Ctrl-C only when they are ready for it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            while self._go_on():
                self._see_to_everything(self._wait())
        except BaseException as error:
            # A defect, or no memory: nobody may wait for ever because of it.
            self._break(error)
            raise
        finally:
            self._end()
            self.held = None

    def _see_to_everything(self, is_woken):
        self._reap()
        if is_woken:
            self.work.collect_reports()
        self._rounds = self.work.collect_left(self._rounds)
        while (event := self.work.next_event()) is not None:
            self._handle(*event)
        self._check_timeouts()
        self._maintain()

    def _go_on(self):
        return self.state == RUN or (
            self.state == CLOSE and (self.workers or not self._closed or self._untold)
        )

    def _wait(self):
        timeout = self._tick()
        reports = self.work.reports_fd()
        if reports is not None:
            self._poll.register(reports, select.POLLIN)
        try:
            is_woken = bool(self._poll.poll(None if timeout is None else max(timeout * 1000, 0)))
        finally:
            if reports is not None:
                self._poll.unregister(reports)
        self.wake.forget()
        return is_woken

    def _tick(self):
        ticks = [] if self.work.rest() else [_UNTIL_COLLECTED]
        if timed := list(self._timed.values()):
            shortest = min(timeout for _, timeout in timed)
            ticks.append(min(max(shortest / 8, _SHORTEST_TICK), _LONGEST_TICK))
        if len(self.workers) < self.processes and not self._closed:
            ticks.append(max(self._next_start - time.monotonic(), 0))
        return min(ticks, default=None)

    def _reap(self):
        with self._changing:
            for process in list(self.workers):
                pidfd = self._pidfds[process.pid]
                if pidfd is not None and not _has_ended(pidfd):
                    continue
                # It has ended; its exit status may be on its way through a forkserver.
                process.join(1)
                self._exitcodes[process.pid] = process.exitcode
                self._forget(process)
                self._untold.add(process.pid)
                # Its end is handled behind all that it has reported, whoever collects that.
                self.work.collect_always()
                self.work.ended(process.pid)

    def _forget(self, process):
        self.workers.remove(process)
        # If somebody else has taken its exit status, the module does not know that it is gone.
        _processes._children.discard(process)
        pidfd = self._pidfds.pop(process.pid)
        if pidfd is not None:
            self._poll.unregister(pidfd)
            os.close(pidfd)
            self.work.pardon(process.pid)

    def _handle(self, what, job, index, pid, message):
        if what == "complete":
            self._callbacks.put(job)
        elif what == "ready":
            self._ready.add(pid)
            self._failed_starts = 0
        elif what == "unready":
            self.failure = message
        elif what == "lost":
            if pid is None or pid in self._exitcodes:
                self._fail(job, index, pid)
            else:
                self._lost.setdefault(pid, []).append((job, index))
        elif what == "ended":
            self._has_ended(pid)

    def _has_ended(self, pid):
        for job, index in self._lost.pop(pid, ()):
            self._fail(job, index, pid)
        self.work.find_lost()
        while (event := self.work.next_event()) is not None:
            self._handle(*event)
        self._untold.discard(pid)
        self.work.collect_always_no_more()
        # Another worker may still report what this one has left, but not once that many others have ended.
        while len(self._exitcodes) > 1000:
            oldest = next(iter(self._exitcodes))
            del self._exitcodes[oldest]
            self._kills.pop(oldest, None)
        if pid in self._ready:
            self._ready.discard(pid)
            return
        self._failed_starts += 1
        self._check_starts(self.failure)

    def _check_starts(self, cause):
        # While a worker is ready for tasks the others can be waited for.
        is_alive = any(process.pid in self._ready for process in self.workers)
        if self._failed_starts >= self._most_failures() and not is_alive:
            self._break(cause)
        elif self._failed_starts:
            self._next_start = time.monotonic() + min(0.01 * 2 ** min(self._failed_starts, 10), 1)

    def _most_failures(self):
        # What was killed from outside says less than an initializer that has raised.
        return max(10, self.processes) if self.failure is None else max(3, self.processes)

    def _fail(self, job, index, pid):
        number, task, exception = self._kills.get(pid, (None, None, None))
        if (number, task) != (job._job, index):
            what = f"{job._function_name}, task {index} of job {job._job}"
            exception = WorkerDied(pid, self._exitcodes.get(pid), what)
        self.work.fail(job, index, exception)

    def _check_timeouts(self):
        if not self._timed:
            self._since.clear()
            return
        # Others add to it meanwhile.
        for number in list(self._timed):
            if self.work.job(number) is None:
                del self._timed[number]
        now = time.monotonic()
        running = {task for task in self.work.running() if task[1] in self._timed}
        self._since = {task: self._since.get(task, now) for task in running}
        for task, since in self._since.items():
            pid, number, index = task
            job, timeout = self._timed[number]
            if now - since > timeout:
                message = f"{job._function_name} ran for longer than {timeout} s in the worker process {pid}, which was killed"
                self.kill_if_running(pid, number, index, TaskTimeoutError(message))

    def _maintain(self):
        if self.state == CLOSE and not self._closed and not self.work.jobs:
            self._closed = True
            self.work.close()
        if self._closed or self.state not in (RUN, CLOSE) or time.monotonic() < self._next_start:
            return
        try:
            self.populate()
        except Exception as error:
            util.debug(f"a pool cannot start a worker: {error!r}")
            if self.workers:
                self._next_start = time.monotonic() + _UNTIL_STARTED_AGAIN
                return
            self._failed_starts += 1
            self._check_starts(error)

    def _break(self, cause):
        with self._changing:
            if self.state in (RUN, CLOSE):
                self.state = BROKEN
                self.failure = cause

    def _end(self):
        """Leave nothing behind: no worker, no job that somebody waits for."""
        try:
            if self.state in (TERMINATE, BROKEN):
                self._terminate()
            self.work.disown_handles()
            self.work.collect_reports()
        finally:
            if self.state == BROKEN:
                self.work.fail_all(self.broken())
            else:
                self.work.fail_all(PoolTerminated("the pool was terminated before this was done"))
            while (event := self.work.next_event()) is not None:
                if event[0] == "complete":
                    self._handle(*event)
            with self._may_call_back:
                self._ended = True
            if self._callbacks is not None:
                self._callbacks.put(None)
            self.work.set_wake(None)
            util.debug("a pool's supervisor ends")

    def broken(self):
        """The error of a pool that has given up."""
        count = self._failed_starts
        if count >= max(3, self.processes):
            error = PoolBroken(
                f"{count} workers, one after another, ended before they were ready for tasks; see the initializer"
            )
        else:
            error = PoolBroken("the pool's supervisor has failed")
        error.__cause__ = self.failure if isinstance(self.failure, BaseException) else None
        return error

    def _terminate(self):
        self.work.terminate()
        self._kill_all(signal.SIGTERM)
        deadline = time.monotonic() + _UNTIL_KILLED
        with self._changing:
            for process in list(self.workers):
                pidfd = self._pidfds[process.pid]
                if pidfd is not None and not _has_ended(pidfd, max(deadline - time.monotonic(), 0)):
                    self._kill_all(signal.SIGKILL)
                process.join()
                self._forget(process)

    def _kill_all(self, number):
        with self._changing:
            for pidfd in self._pidfds.values():
                if pidfd is None:
                    continue
                try:
                    signal.pidfd_send_signal(pidfd, number)
                    # One that is stopped would not die of SIGTERM.
                    signal.pidfd_send_signal(pidfd, signal.SIGCONT)
                except ProcessLookupError:
                    pass


class _Wake:
    """Has the thread look around. Its descriptor lives as long as anybody may call it."""

    def __init__(self):
        self.eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def __call__(self):
        os.eventfd_write(self.eventfd, 1)

    def __del__(self, _close=os.close):
        _close(self.eventfd)

    def forget(self):
        """Forget that it was called."""
        try:
            os.eventfd_read(self.eventfd)
        except BlockingIOError:
            pass


class _Callbacks:
    """The thread that runs callbacks. They may take their time: it does nothing else."""

    def __init__(self):
        self._jobs = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._run, name="PoolCallbacks", daemon=True)
        self.thread.start()

    def put(self, job):
        self._jobs.put(job)

    def _run(self):
        for job in iter(self._jobs.get, None):
            try:
                succeeded, outcome = job._outcome()
                callback = job._callbacks[0 if succeeded else 1]
                if callback is not None:
                    callback(outcome)
            except BaseException:
                # It is nobody else's business.
                threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), self.thread)))
            finally:
                job._finish()
            del job


def _has_ended(pidfd, timeout=0):
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(timeout * 1000))
