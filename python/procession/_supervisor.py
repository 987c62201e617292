"""The thread that looks after a pool's workers."""

import collections
import contextlib
import os
import select
import signal
import threading
import time
from multiprocessing import process as _processes, util

from ._callbacks import Callbacks
from ._errors import PoolBroken, PoolTerminated, TaskTimeoutError, WorkerDied
from ._popen import is_readable

RUN, CLOSE, TERMINATE, BROKEN = "RUN", "CLOSE", "TERMINATE", "BROKEN"

# Seconds.
_UNTIL_KILLED = 1
_LONGEST_TICK = 0.25
_SHORTEST_TICK = 0.005
# How long results lie about that nobody waits for.
_UNTIL_COLLECTED = 0.5
# How often it looks for reports of which nothing can tell it.
_UNTIL_LOOKED = 0.05
# How long the others do without a worker that cannot be started.
_UNTIL_STARTED_AGAIN = 1


class Supervisor:
    """Starts the workers of a pool, replaces those that end and says what became of their tasks.

    It knows nothing of the pool itself, so that a pool that nobody uses any more can go.

    Its thread alone changes the workers; the methods for others say what is to be done. They hold no lock: a signal
    handler that ends the pool waits for the thread, and may have interrupted any of them.
    """

    def __init__(self, work, start, processes):
        self.work = work
        self.workers = []
        self.processes = processes
        self.failure = None
        # What it is to be, from the first of these that is so.
        self._is_broken = self._is_terminated = self._is_closed = False
        self._start = start
        self._starting = None
        self._pid = os.getpid()
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
        # The template whose end this thread notices; whether that was killed, and since when there
        # has been no worker either.
        self._template = None
        self.lacks_template = False
        self._renewing = threading.Lock()
        self._bare_since = None
        # Whether the thread takes care of the template no more.
        self._is_over = False
        # A pool that is not to go before its workers have ended.
        self.held = None
        # How many workers there were to be when they were last told, and whom somebody wants to be killed.
        self._told = processes
        self._to_kill = collections.deque()
        self._callbacks = Callbacks()
        self._poll = select.poll()
        self._poll.register(work.hang(), select.POLLIN)
        # Taken, once, by who looks after the workers: the thread, or `start` where that fails.
        self._charge = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="PoolSupervisor", daemon=True)

    @property
    def state(self):
        """RUN, CLOSE, TERMINATE or BROKEN."""
        if self._is_broken:
            return BROKEN
        if self._is_terminated:
            return TERMINATE
        return CLOSE if self._is_closed else RUN

    def start(self):
        """Start the workers and the thread, or raise and leave nothing behind. With signals blocked."""
        # Not watched yet.
        processes = []
        try:
            for _ in range(self.processes):
                # Known before it is started: whatever raises from then on, a signal handler too.
                processes.append(self._start.make())
                self._start.start(processes[-1])
            self._start.open_template()
            while processes:
                self._watch(processes[0])
                self.workers.append(processes[0])
                del processes[0]
            self._thread.start()
        except BaseException:
            self.stop()
            if self._charge.acquire(blocking=False):
                self._end()
            else:
                self._thread.join()
            for process in processes:
                if process not in self.workers and getattr(process, "_popen", process) is not None:
                    process.terminate()
                    process.join()
            raise

    def wake(self):
        """Have the thread look around."""
        self.work.ring()

    def resize(self, processes):
        """Have so many workers from now on. Some that are too many end after the task that they have."""
        self.processes = processes
        self.wake()

    def renew_template(self):
        """Replace a template that was killed by a new one, forked by a thread of the program."""
        if threading.current_thread() in (self._thread, self._callbacks.thread) or self._closed:
            return
        # A signal handler may come here while this thread holds it.
        if self._renewing.acquire(blocking=False):
            try:
                if self.lacks_template:
                    with self._start.signals_blocked():
                        try:
                            self._start.open_template()
                        except OSError as error:
                            # One without a number is of a signal's handler.
                            if error.errno is None:
                                raise
                            # The workers that there are do without it. The next call tries again.
                            util.debug(f"a pool's template cannot be forked: {error!r}")
                            return
                    self.lacks_template = False
                    self.wake()
                    if self._is_over:
                        self._forget_template()
            finally:
                self._renewing.release()

    def expect_callbacks(self):
        """Have the thread that runs callbacks. RuntimeError if it cannot be started."""
        self._callbacks.expect()

    def close(self):
        """Have the workers end when all jobs are done."""
        if self.state == RUN:
            self._is_closed = True
            # Nobody need wait for results any more, and yet they are to be collected.
            self.work.collect_always()

    def stop(self):
        """Have the workers killed, and what is not done fail. Does not wait for that."""
        if not self._is_broken:
            self._is_terminated = True
        self.wake()
        # One that is stopped may hold a lock of a queue that the thread waits for.
        for pidfd in list(self._pidfds.values()):
            # The thread may have closed it meanwhile.
            with contextlib.suppress(OSError):
                if pidfd is not None:
                    _send(pidfd, signal.SIGCONT)

    def terminate(self):
        """Kill the workers, and have what is not done fail."""
        if self._pid == os.getpid():
            self.stop()
            self.join()

    def join(self):
        """Wait until the workers have ended and the last callback has returned.

        RuntimeError in a callback of a pool that is not terminated, which would wait for itself.
        """
        current = threading.current_thread()
        if current is self._thread:
            # It lets the pool go, or calls user code: nothing here may wait for it.
            return
        if current is self._callbacks.thread and self.state in (RUN, CLOSE):
            raise RuntimeError(
                "cannot join current thread: the pool ends only when its callbacks have returned"
            )
        if self._thread.ident is not None:
            self._thread.join()
        callbacks = self._callbacks.thread
        if callbacks is not None and current is not callbacks:
            callbacks.join()

    def limit(self, job, timeout):
        """Have a task of the job fail that runs for longer than `timeout` seconds."""
        self._timed[job._job] = (job, timeout)
        self.wake()

    def kill(self, pid, number):
        """Have a worker killed if it runs a task of the job of that number by then."""
        self._to_kill.append((pid, number))
        self.wake()

    def _kill_if_running(self, pid, number, index=None, exception=None):
        """Kill a worker if it runs that task (or any of the job), which then fails with `exception`."""
        pidfd = self._pidfds.get(pid)
        found = None if pidfd is None else self.work.condemn(pid, number, index)
        if found is None:
            return
        if exception is not None:
            self._kills[pid] = (number, found, exception)
        if not _send(pidfd, signal.SIGKILL):
            self._kills.pop(pid, None)
            self.work.pardon(pid)

    def _populate(self):
        """Start as many workers as are missing."""
        try:
            while self._is_short() and self.state in (RUN, CLOSE):
                self._start_one()
        except BaseException:
            self._give_up()
            raise

    def _start_one(self):
        # Named before it is started: whatever raises from then on, a signal handler too, it is known.
        process = self._starting = self._start.make()
        self._start.start(process)
        self._watch(process)
        self.workers.append(process)
        self._starting = None

    def _give_up(self):
        """End a worker of which nobody would notice the end: mostly there is no descriptor for it."""
        process, self._starting = self._starting, None
        if process is None or process._popen is None:
            return
        if process not in self.workers:
            self.workers.append(process)
        process.kill()
        process.join()
        self._forget(process)

    def _watch(self, process):
        try:
            pidfd = os.pidfd_open(process.pid)
        except ProcessLookupError:
            # A forkserver has taken its exit status already.
            pidfd = None
        else:
            self._poll.register(pidfd, select.POLLIN)
        self._pidfds[process.pid] = pidfd
        # What is known of another process that had the number.
        self._exitcodes.pop(process.pid, None)
        self._kills.pop(process.pid, None)

    def _run(self):
        # None that the main thread has blocked for a while is to come in by this one.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        if not self._charge.acquire(blocking=False):
            return
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
        while self._to_kill:
            self._kill_if_running(*self._to_kill.popleft())
        self._check_timeouts()
        self._watch_template()
        self._maintain()

    def _go_on(self):
        return self.state == RUN or (
            self.state == CLOSE and (self.workers or not self._closed or self._untold)
        )

    def _wait(self):
        timeout = self._tick()
        is_blind = False
        try:
            reports = self.work.reports_fd()
        except OSError as error:
            # Out of descriptors, mostly.
            util.debug(f"a pool is not told of reports: {error!r}")
            reports, is_blind = None, True
            timeout = _UNTIL_LOOKED if timeout is None else min(timeout, _UNTIL_LOOKED)
        if reports is not None:
            self._poll.register(reports, select.POLLIN)
        try:
            ready = self._poll.poll(None if timeout is None else max(timeout * 1000, 0))
        finally:
            if reports is not None:
                self._poll.unregister(reports)
        self.work.hush()
        if self._template is not None and any(fd == self._template.pidfd for fd, _ in ready):
            self._forget_template()
            self.lacks_template = True
        return bool(ready) or is_blind

    def _tick(self):
        ticks = [] if self.work.rest() else [_UNTIL_COLLECTED]
        if timed := list(self._timed.values()):
            shortest = min(timeout for _, timeout in timed)
            ticks.append(min(max(shortest / 8, _SHORTEST_TICK), _LONGEST_TICK))
        if (self._is_short() or self._told != self.processes) and not self._closed:
            ticks.append(max(self._next_start - time.monotonic(), 0))
        return min(ticks, default=None)

    def _reap(self):
        for process in list(self.workers):
            pidfd = self._pidfds[process.pid]
            if pidfd is not None and not is_readable(pidfd, 0):
                continue
            if process._popen.method == "forkserver":
                # Its exit status may be on its way.
                process.join(1)
            # Not joined else: that would wait for children that it has left behind.
            self._exitcodes[process.pid] = process.exitcode
            self._forget(process)
            self._untold.add(process.pid)
            # Its end is handled behind all that it has reported, whoever collects that.
            self.work.collect_always()
            self.work.ended(process.pid)

    def _watch_template(self):
        template = self._start.template
        if template is None or self.lacks_template:
            return
        if template.is_useless:
            self._forget_template()
        elif template is not self._template:
            self._poll.register(template.pidfd, select.POLLIN)
            self._template = template
            self._bare_since = None
            self._next_start = 0

    def _forget_template(self):
        """End the template, if it has not ended."""
        template, self._start.template = self._start.template, None
        if template is not None:
            if template is self._template:
                self._poll.unregister(template.pidfd)
            template.end()
        self._template = None

    def _forget(self, process):
        self.workers.remove(process)
        # If somebody else has taken its exit status, the module does not know that it is gone.
        _processes._children.discard(process)
        pidfd = self._pidfds.pop(process.pid, None)
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
                self._kill_if_running(pid, number, index, TaskTimeoutError(message))

    def _maintain(self):
        if self.state == CLOSE and not self._closed and not self.work.jobs:
            self._closed = True
            if self._template is not None:
                # Its end is waited for after the workers'.
                self._poll.unregister(self._template.pidfd)
                self._template.kill()
                self._template = None
            self.work.close()
        if self._closed or self.state not in (RUN, CLOSE) or time.monotonic() < self._next_start:
            return
        try:
            self._tell_size()
            if self._is_short() and self.lacks_template:
                self._do_without_template()
            elif self._is_short():
                with self._start.signals_blocked():
                    self._populate()
        except Exception as error:
            util.debug(f"a pool cannot start or release a worker: {error!r}")
            if self.workers:
                self._next_start = time.monotonic() + _UNTIL_STARTED_AGAIN
                return
            self._failed_starts += 1
            self._check_starts(error)

    def _do_without_template(self):
        """Wait for a call, which forks another template. Break the pool if no worker is left and
        none comes."""
        now = time.monotonic()
        self._next_start = now + _UNTIL_STARTED_AGAIN
        if self.workers:
            self._bare_since = None
        elif self._bare_since is None:
            self._bare_since = now
        elif now - self._bare_since >= _UNTIL_STARTED_AGAIN:
            self._break(None)

    def _is_short(self):
        return len(self.workers) < self.processes

    def _tell_size(self):
        processes = self.processes
        if processes == self._told:
            return
        self.work.recall()
        if len(self.workers) > processes:
            self.work.release(len(self.workers) - processes)
        self._told = processes

    def _break(self, cause):
        if self.state in (RUN, CLOSE):
            self.failure = cause
            self._is_broken = True

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
            self._callbacks.end()
            self._is_over = True
            self._forget_template()
            self.work.unhang()
            util.debug("a pool's supervisor ends")

    def broken(self):
        """The error of a pool that has given up."""
        count = self._failed_starts
        if count >= max(3, self.processes):
            error = PoolBroken(
                f"{count} workers, one after another, ended before they were ready for tasks; see the initializer"
            )
        elif self.lacks_template:
            error = PoolBroken(
                "the process that forks the pool's workers was killed, and no worker is left; make another pool"
            )
        else:
            error = PoolBroken("the pool's supervisor has failed")
        error.__cause__ = self.failure if isinstance(self.failure, BaseException) else None
        return error

    def _terminate(self):
        # First, for one that is stopped may hold a lock of a queue.
        self._kill_all(signal.SIGTERM)
        self.work.terminate()
        deadline = time.monotonic() + _UNTIL_KILLED
        for process in list(self.workers):
            pidfd = self._pidfds[process.pid]
            if pidfd is not None and not is_readable(pidfd, deadline - time.monotonic()):
                self._kill_all(signal.SIGKILL)
            process.join()
            self._forget(process)

    def _kill_all(self, number):
        for pidfd in self._pidfds.values():
            if pidfd is not None:
                _send(pidfd, number)
                # One that is stopped would not die of SIGTERM.
                _send(pidfd, signal.SIGCONT)


def _send(pidfd, number):
    """Send a signal, if the process has not ended; False if it may not be sent: the process runs a set-user-ID program."""
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        pass
    except PermissionError:
        return False
    return True
