"""Starting processes and waiting for them: CPython's ways, over pidfds.

The process is watched by a pidfd, which is also its sentinel. So any number of threads may wait for
it. Its end is noticed even when another caller of ``wait`` took its exit status, or the status was
discarded because SIGCHLD is ignored. The kernel remembers the status from Linux 6.15 on; else the
exit code is 255 then, as with `asyncio`.
"""

import atexit
import contextlib
import os
import select
import signal
from functools import partial
from itertools import starmap
from multiprocessing import popen_fork, util

from ._procession import Descriptor

UNKNOWN = 255

# Whether CPython's own children run what is registered with `atexit`.
_RUNS_ATEXIT = "atexit" in popen_fork.Popen._launch.__code__.co_names
# Whether a forked child closes its way to the resource tracker unless it is told to keep it.
_CLOSES_TRACKER = "_fork_intent" in popen_fork.Popen._launch.__code__.co_names
_LONGEST_WAIT = (2**31 - 1) / 1000
# Says to a forked child that this process can watch it.
_GO = b"\0"


class Watched:
    """A process that is watched by a pidfd: a base before one of CPython's `Popen`."""

    _pidfd = None

    def watch(self, pidfd):
        """Have a descriptor for the process; without one, it has ended and is collected."""
        self._owner = os.getpid()
        if pidfd is not None:
            self._pidfd = pidfd if isinstance(pidfd, Descriptor) else Descriptor(pidfd)
            self.sentinel = self._pidfd.number

    def launch(self, launch, process_obj):
        """Call CPython's `_launch`, and have a descriptor for the process. End the process if that
        fails."""
        try:
            launch(process_obj)
            self.watch(pidfd_open(self.pid))
            # `start` ends it if a signal's handler raises from now on.
            process_obj._popen = self
        except BaseException:
            pid = getattr(self, "pid", None)
            if pid is not None:
                end(pid)
            process_obj._popen = None
            raise

    def poll(self, flag=os.WNOHANG):
        """Return the exit code, or None if the process still runs. Wait for it without the flag."""
        return self.wait(0 if flag == os.WNOHANG else None)

    def wait(self, timeout=None):
        """Return the exit code, or None if the process still runs after `timeout` seconds."""
        # A forked child has copies of what its parent waits for.
        if self.returncode is None and self._owner == os.getpid():
            # Held while this waits: another thread may close it.
            pidfd = self._pidfd
            if (pidfd is None or is_readable(pidfd.number, timeout)) and not self._collect(pidfd):
                self.returncode = UNKNOWN
        return self.returncode

    def close(self):
        """Close the descriptors."""
        super().close()
        self._pidfd = None

    def _collect(self, pidfd):
        """Store the exit code of the process, which has ended; False if it is unknown."""
        from ._procession import _collect_child

        return pidfd is not None and _collect_child(self, self.pid, pidfd.number)

    def _send_signal(self, sig):
        pidfd = self._pidfd
        if self.returncode is None and pidfd is not None:
            try:
                signal.pidfd_send_signal(pidfd.number, sig)
            except ProcessLookupError:
                pass
            except OSError:
                if self.wait(timeout=0.1) is None:
                    raise


class Popen(Watched, popen_fork.Popen):
    """A forked process."""

    def _launch(self, process_obj):
        # A signal's handler may raise between any two steps. A descriptor has an owner from the
        # call that opens it on, and the list has the child from the call that forks it on.
        parent = Descriptor.of(os.pidfd_open, os.getpid())
        go, tell = Descriptor.of(os.pipe)
        pids = []
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        try:
            try:
                # Ctrl-C meanwhile is for the program once it has the child, and for the child once
                # it is one.
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
                keep_tracker(True)
                try:
                    pids.extend(starmap(os.fork, [()]))
                finally:
                    keep_tracker(False)
                if pids == [0]:
                    del tell
                    if not _may_go(go.number, parent.number):
                        os._exit(1)
                    del go
                    run_child(partial(_unblocked, mask, process_obj._bootstrap), parent.number)
                (self.pid,) = pids
                # It cannot have ended, so the number is still its own.
                self.watch(Descriptor.of(os.pidfd_open, self.pid))
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            # `start` ends it if a signal's handler raises from now on.
            process_obj._popen = self
            os.write(tell.number, _GO)
        except BaseException:
            if pids == [0]:
                os._exit(1)
            # A process with an unknown pid ends by itself when this end of the pipe is closed.
            del tell
            for pid in pids:
                # It may have been told to continue, if a signal's handler raised right then.
                end(pid)
            process_obj._popen = None
            # Again, if the handler raised in place of one of these.
            keep_tracker(False)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            raise


def _unblocked(mask, bootstrap, *, parent_sentinel):
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return bootstrap(parent_sentinel=parent_sentinel)


def keep_tracker(keep):
    """Have a child that this thread forks use the same resource tracker, or have one of its own."""
    if _CLOSES_TRACKER:
        from multiprocessing.resource_tracker import _fork_intent

        _fork_intent.preserve_fd = keep


def run_child(bootstrap, parent):
    """Do what CPython does in a forked child, and exit.

    `parent` is a pidfd for the process that forked it.
    """
    code = 1
    try:
        if _RUNS_ATEXIT:
            atexit._clear()
            atexit.register(util._exit_function)
        code = bootstrap(parent_sentinel=parent)
    finally:
        if _RUNS_ATEXIT:
            atexit._run_exitfuncs()
        os._exit(code)


def pidfd_open(pid):
    """Open a pidfd for a process just started; None if it has ended and is collected."""
    try:
        return Descriptor.of(os.pidfd_open, pid)
    except ProcessLookupError:
        return None


def end(pid):
    """Kill a process just started, which may have no pidfd, and collect its exit status."""
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def is_readable(fd, timeout):
    """Wait until a descriptor is readable, for `timeout` seconds at most; return whether it is."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(None if timeout is None else min(max(timeout, 0), _LONGEST_WAIT) * 1000))


def _may_go(go, parent):
    poll = select.poll()
    # Another process that was forked meanwhile may have a copy of the pipe's other end.
    poll.register(go, select.POLLIN)
    poll.register(parent, select.POLLIN)
    poll.poll()
    return is_readable(go, 0) and os.read(go, 1) == _GO
