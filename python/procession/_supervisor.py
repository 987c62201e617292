"""The thread that looks after a pool's workers."""

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
from ._procession import Dispatcher

RUN, CLOSE, TERMINATE, BROKEN = "RUN", "CLOSE", "TERMINATE", "BROKEN"

# Seconds.
_UNTIL_KILLED = 1
# How long results lie about that no thread waits for.
_UNTIL_COLLECTED = 0.5
# How often it looks for reports of which nothing can tell it.
_UNTIL_LOOKED = 0.05
# How long a pool without a worker waits for another template.
_UNTIL_TEMPLATE = 1


class Supervisor:
    """Starts the workers of a pool, ends them, and does what else its dispatcher says.

    It knows nothing of the pool itself, so that a pool that nobody uses any more can go.

    Its thread alone changes the workers; the methods for others say what is to be done. They hold no lock: a signal
    handler that ends the pool waits for the thread, and may have interrupted any of them.
    """

    def __init__(self, work, start, processes):
        self.work = work
        self.workers = []
        # Why the pool is broken, and after how many failed starts in a row, if it is because of those.
        self.failure = None
        self._failed_starts = 0
        self._dispatcher = Dispatcher(work)
        self._dispatcher.target = processes
        self._start = start
        self._starting = None
        self._pid = os.getpid()
        self._pidfds = {}
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
        self._callbacks = Callbacks()
        self._poll = select.poll()
        self._poll.register(work.open_wakeup(), select.POLLIN)
        # Taken, once, by who looks after the workers: the thread, or `start` where that fails.
        self._charge = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="PoolSupervisor", daemon=True)

    @property
    def state(self):
        """RUN, CLOSE, TERMINATE or BROKEN."""
        return self._dispatcher.phase

    @property
    def processes(self):
        """How many workers there are to be."""
        return self._dispatcher.target

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
        self.work.wake()

    def resize(self, processes):
        """Have so many workers from now on. Some that are too many end after the task that they have."""
        self._dispatcher.target = processes
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
            self._dispatcher.phase = CLOSE
            # Nobody need wait for results any more, and yet they are to be collected.
            self.work.collect_always()

    def stop(self):
        """Have the workers killed, and what is not done fail. Does not wait for that."""
        self._dispatcher.phase = TERMINATE
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
        self._dispatcher.limit(job._job, timeout)

    def kill(self, pid, number):
        """Have a worker killed if it runs a task of the job of that number by then."""
        self._dispatcher.kill(pid, number)

    def _start_one(self):
        if self.lacks_template:
            self._do_without_template()
            return
        try:
            with self._start.signals_blocked():
                try:
                    # Named before it is started: whatever raises from then on, a signal handler too, it is known.
                    process = self._starting = self._start.make()
                    self._start.start(process)
                    self._watch(process)
                    self._starting = None
                except BaseException:
                    self._give_up()
                    raise
        except Exception as error:
            util.debug(f"a pool cannot start a worker: {error!r}")
            self._dispatcher.start_refused(error)

    def _give_up(self):
        """End a worker of which nobody would notice the end: mostly there is no descriptor for it."""
        process, self._starting = self._starting, None
        if process is None or process._popen is None:
            return
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
        self.workers.append(process)
        self._dispatcher.started(process.pid)

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
        self._watch_template()
        self._close_when_done()
        while (effect := self._dispatcher.next_effect()) is not None:
            self._carry_out(*effect)
        self._close_when_done()

    def _is_running(self):
        return self.state in (RUN, CLOSE)

    def _go_on(self):
        return self.state == RUN or (
            self.state == CLOSE and not (self._closed and self._dispatcher.has_no_worker)
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
        self.work.clear()
        if self._template is not None and any(fd == self._template.pidfd for fd, _ in ready):
            self._forget_template()
            self.lacks_template = True
        return bool(ready) or is_blind

    def _tick(self):
        ticks = [None if self.work.become_idle() else _UNTIL_COLLECTED, self._dispatcher.until_next_effect()]
        return min((tick for tick in ticks if tick is not None), default=None)

    def _reap(self):
        for process in list(self.workers):
            pidfd = self._pidfds[process.pid]
            if pidfd is not None and not is_readable(pidfd, 0):
                continue
            if process._popen.method == "forkserver":
                # Its exit status may be on its way.
                process.join(1)
            # Not joined else: that would wait for children that it has left behind.
            exitcode = process.exitcode
            self._forget(process)
            self._dispatcher.exited(process.pid, exitcode)

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
            self._dispatcher.start_expedited()

    def _forget_template(self):
        """End the template, if it has not ended."""
        template, self._start.template = self._start.template, None
        if template is not None:
            if template is self._template:
                self._poll.unregister(template.pidfd)
            template.end()
        self._template = None

    def _forget(self, process):
        if process in self.workers:
            self.workers.remove(process)
        # If somebody else has taken its exit status, the module does not know that it is gone.
        _processes._children.discard(process)
        pidfd = self._pidfds.pop(process.pid, None)
        if pidfd is not None:
            self._poll.unregister(pidfd)
            os.close(pidfd)

    def _carry_out(self, what, *details):
        if what == "complete":
            # Of a pool that ends, too.
            self._callbacks.put(*details)
        elif what == "fail":
            self._fail(*details)
        elif what == "kill":
            self._kill(*details)
        elif what == "start":
            self._start_one()
        elif what == "give_up":
            self._failed_starts, cause = details
            self._break(cause)

    def _fail(self, job, index, pid, exitcode, limit):
        if limit is None:
            what = f"{job._function_name}, task {index} of job {job._job}"
            exception = WorkerDied(pid, exitcode, what)
        else:
            exception = TaskTimeoutError(
                f"{job._function_name} ran for longer than {limit:g} s in the worker process {pid}, which was killed"
            )
        self.work.fail(job, index, exception)

    def _kill(self, pid):
        pidfd = self._pidfds.get(pid)
        if pidfd is not None and not _send(pidfd, signal.SIGKILL):
            self._dispatcher.spared(pid)

    def _close_when_done(self):
        if self.state == CLOSE and not self._closed and not self.work.jobs:
            self._closed = True
            if self._template is not None:
                # Its end is waited for after the workers'.
                self._poll.unregister(self._template.pidfd)
                self._template.kill()
                self._template = None
            self.work.close()

    def _do_without_template(self):
        """Wait for a call, which forks another template. Break the pool if no worker is left and
        none comes."""
        now = time.monotonic()
        self._dispatcher.start_postponed()
        if self.workers:
            self._bare_since = None
        elif self._bare_since is None:
            self._bare_since = now
        elif now - self._bare_since >= _UNTIL_TEMPLATE:
            self._break(None)

    def _break(self, cause):
        if self._is_running():
            self.failure = cause
            self._dispatcher.phase = BROKEN

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
            while (effect := self._dispatcher.next_effect()) is not None:
                if effect[0] == "complete":
                    self._carry_out(*effect)
            self._callbacks.end()
            self._is_over = True
            self._forget_template()
            self.work.close_wakeup()
            util.debug("a pool's supervisor ends")

    def broken(self):
        """The error of a pool that has given up."""
        if self._failed_starts:
            error = PoolBroken(
                f"{self._failed_starts} workers, one after another, ended before they were ready for tasks; see the initializer"
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
