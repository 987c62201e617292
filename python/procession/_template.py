"""The process that a pool's later workers are forked from.

A process that a thread forks inherits the locks that other threads hold at that moment (of an
import, of a buffer of standard output), and no thread of it releases them. The thread that looks
after a pool would fork workers at any moment. So the thread of the program that makes the pool
forks one idle process more, the template, beside the first workers. It has one thread, which waits
for requests and holds nothing. The workers that it forks have the memory that the first ones had,
and the pool's process for their parent.
"""

import contextlib
import errno
import gc
import io
import os
import pickle
import select
import signal
import socket
import struct
import sys
import traceback
from functools import partial
from multiprocessing import context, popen_fork, util

from . import _pickler, _worker
from ._popen import Descriptor, Watched, end, is_readable, keep_tracker, run_child
from ._procession import _fork_sibling, _fork_template

# A request's number, and what came of it: a pid, or an errno made negative.
_ANSWER = struct.Struct("qq")
_LARGEST_REQUEST = 64 * 1024
_MOST_DESCRIPTORS = 200
# Seconds. How long a template that was stopped or killed keeps the pool's thread at most.
_UNTIL_CONTINUED = 0.25
_UNTIL_KILLED = 10
_UNTIL_TOLD = 1
# What may be different the next time.
_PASSING = errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE


class TemplateError(Exception):
    """The template cannot fork this worker.

    The state of the worker's process object cannot be sent, or the system lacks what a template
    needs.
    """


class Template:
    """Forks workers that are this process's children, from any thread."""

    # Whether it can fork no worker, here or at all.
    is_useless = False

    def __init__(self, cls, attributes, starter, mask):
        """Fork the template.

        A worker's process object has this class and, before it is started, these attributes.
        `starter` is the calling thread's.
        """
        self._class = cls
        # What need not be sent, being the same for all: closures and the like, which could not.
        self._shared = [*attributes.values(), *attributes["_config"].values(), *attributes["_args"]]
        self._indices = {id(thing): index for index, thing in enumerate(self._shared)}
        self._requests = 0
        parent = Descriptor(os.pidfd_open(os.getpid()))
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # What is not written yet is not to be written twice.
        util._flush_std_streams()
        keep_tracker(True)
        try:
            self._pid = _fork_template(theirs.fileno(), parent.number, starter[2])
        finally:
            keep_tracker(False)
        if self._pid == 0:
            try:
                self._socket.close()
                self._serve(theirs, parent, starter, mask)
            finally:
                os._exit(1)
        theirs.close()
        try:
            self._pidfd = Descriptor(os.pidfd_open(self._pid))
        except OSError:
            self._socket.close()
            end(self._pid)
            raise

    @property
    def pidfd(self):
        """A descriptor that is readable once the template has ended."""
        return self._pidfd.number

    def kill(self):
        """End it, without waiting for that."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd.number, signal.SIGKILL)

    def end(self):
        """End it."""
        self.kill()
        self._socket.close()
        with contextlib.suppress(ChildProcessError):
            os.waitid(getattr(os, "P_PIDFD", 3), self._pidfd.number, os.WEXITED)

    def fork(self, process):
        """Have a worker forked that runs `process`: return its pid and a pidfd for it.

        Raises TemplateError, or OSError if there are too many processes, not enough memory, or if
        the template was killed.
        """
        if type(process) is not self._class:
            raise TemplateError("it is of another class than the first workers")
        state, descriptors = self._pack(process)
        self._requests += 1
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(descriptors)}i", *descriptors))]
        try:
            self._socket.sendmsg([_ANSWER.pack(self._requests, 0), state], rights if descriptors else ())
        except (BrokenPipeError, ConnectionResetError):
            raise _killed() from None
        result, pidfd = self._receive()
        if pidfd is not None:
            return result, pidfd
        if result > 0:
            # This process had no room for the descriptor, and would not notice the worker's end.
            end(result)
            result = -errno.EMFILE
        if -result in _PASSING:
            raise OSError(-result, os.strerror(-result))
        self.is_useless = True
        raise TemplateError(os.strerror(-result))

    def _pack(self, process):
        popen = _Sending()
        before = context.get_spawning_popen()
        context.set_spawning_popen(popen)
        try:
            file = io.BytesIO()
            state = object.__getstate__(process)
            own, slots = state if isinstance(state, tuple) else (state, None)
            own = {name: value for name, value in own.items() if name not in _OF_THE_START}
            _Pickler(file, self._indices).dump((own, slots))
        except Exception as error:
            raise TemplateError(f"its state cannot be sent: {error!r}") from error
        finally:
            context.set_spawning_popen(before)
        state = file.getbuffer()
        if len(state) + _ANSWER.size > _LARGEST_REQUEST or len(popen.descriptors) > _MOST_DESCRIPTORS:
            raise TemplateError("its state is too large")
        return state, popen.descriptors

    def _receive(self):
        """Return what came of the last request, and a pidfd for the worker if there is one."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.register(self._pidfd.number, select.POLLIN)
        waited = 0
        while True:
            if not poll.poll(_UNTIL_CONTINUED * 1000):
                waited += _UNTIL_CONTINUED
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(
                        self._pidfd.number, signal.SIGCONT if waited < _UNTIL_KILLED else signal.SIGKILL
                    )
                continue
            # A template that is killed after a fork has left a worker, which says so itself.
            if not is_readable(self._socket.fileno(), _UNTIL_TOLD):
                raise _killed()
            try:
                answer, descriptors = _receive(self._socket, _ANSWER.size)
            except ConnectionResetError:
                raise _killed() from None
            if not answer:
                raise _killed()
            request, result = _ANSWER.unpack(answer)
            if request == self._requests:
                return result, descriptors[0] if descriptors else None
            # Of an earlier one, which was answered twice.
            for descriptor in descriptors:
                os.close(descriptor)

    def _serve(self, requests, parent, starter, mask):
        """Fork workers until the pool's process has no more use for that. In the template."""
        # Nothing of the pool's process is collected, and its finalizers run, here.
        collects = gc.isenabled()
        gc.disable()
        poll = select.poll()
        poll.register(requests, select.POLLIN)
        poll.register(parent.number, select.POLLIN)
        while True:
            poll.poll()
            if is_readable(parent.number, 0):
                os._exit(0)
            request, descriptors = _receive(requests, _LARGEST_REQUEST)
            if not request:
                os._exit(0)
            number, _ = _ANSWER.unpack_from(request)
            keep_tracker(True)
            try:
                pid, pidfd = _fork_sibling()
            except OSError as error:
                pid, pidfd = -(error.errno or errno.ENOTSUP), None
            finally:
                keep_tracker(False)
            if pid == 0:
                # The template says so too, unless it is killed right now.
                with requests:
                    _answer(requests, number, os.getpid(), os.pidfd_open(os.getpid()))
                if collects:
                    gc.enable()
                self._run(memoryview(request)[_ANSWER.size :], descriptors, parent.number, starter, mask)
            _answer(requests, number, pid, pidfd)
            for descriptor in descriptors:
                os.close(descriptor)

    def _run(self, state, descriptors, parent, starter, mask):
        """Run the process whose state this is. In a worker."""
        global _received
        _received = descriptors
        try:
            process = self._class.__new__(self._class)
            own, slots = _Unpickler(io.BytesIO(state), self._shared).load()
            vars(process).update(own)
            for name, value in (slots or {}).items():
                setattr(process, name, value)
        except BaseException:
            print(f"A worker of a pool cannot begin as a {self._class.__name__}:", file=sys.stderr)
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        if "_daemon_of" in vars(process):
            # For the kernel, what started it is what started the template.
            process._daemon_of = starter
        run_child(partial(_worker.bootstrap, mask, starter, process), parent)


# What `BaseProcess.start` leaves in the process object, and `Start.start`.
_OF_THE_START = "_Popen", "_bootstrap"


class WorkerPopen(Watched, popen_fork.Popen):
    """A worker that a template has forked."""

    def __init__(self, template, process_obj):
        self.returncode = None
        self.finalizer = None
        self.pid, pidfd = template.fork(process_obj)
        self.watch(pidfd)


class _Sending:
    """What stands for a `Popen` while a process object is pickled for a template."""

    def __init__(self):
        self.descriptors = []

    def duplicate_for_child(self, fd):
        self.descriptors.append(fd)
        return len(self.descriptors) - 1

    @staticmethod
    def DupFd(index):
        return _Received(index)


class _Received:
    def __init__(self, index):
        self.index = index

    def detach(self):
        return _received[self.index]


# The descriptors that came with the state of this worker's process object.
_received = []


class _Pickler(_pickler.original):
    def __init__(self, file, indices):
        super().__init__(file)
        self._indices = indices

    def persistent_id(self, thing):
        return self._indices.get(id(thing))


class _Unpickler(pickle.Unpickler):
    def __init__(self, file, shared):
        super().__init__(file)
        self._shared = shared

    def persistent_load(self, index):
        return self._shared[index]


def _killed():
    return OSError(errno.EPIPE, "the process that forks a pool's workers was killed")


def _receive(end, size):
    message, descriptors, _, _ = socket.recv_fds(end, size, _MOST_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
    return message, descriptors


def _answer(end, number, pid, pidfd):
    message = [_ANSWER.pack(number, pid)]
    if pidfd is None:
        end.sendmsg(message)
    else:
        socket.send_fds(end, message, [pidfd])
        os.close(pidfd)
