"""Processes: CPython's, whose daemons end with their parent however that ends."""

import os
import signal
import sys
import threading
from multiprocessing import process as _stdlib
from multiprocessing.process import active_children, current_process, parent_process

__all__ = ["BaseProcess", "active_children", "current_process", "parent_process"]


class BaseProcess(_stdlib.BaseProcess):
    """A function that runs in a process of its own, as `threading.Thread` runs one in a thread.

    A daemon ends with its parent: when that exits it gets SIGTERM, as with `multiprocessing`, and when that
    is killed, or ends without Python's clean-up, SIGKILL.
    """

    def start(self):
        """Start the process. Can be called once.

        If a signal's handler raises meanwhile, a child that was made is ended and collected.
        """
        _start(self, super().start)

    def _bootstrap(self, *args, **kwargs):
        # CPython's is looked up each time: tools that want to be in every child replace it.
        return _begin(self, super()._bootstrap, *args, **kwargs)

    def interrupt(self):
        """Interrupt the process: send it SIGINT, as Ctrl-C does."""
        self._check_closed()
        self._popen._send_signal(signal.SIGINT)


def _start(process, start):
    """Start the process by `start`, which is CPython's."""
    _note_starter(process)
    earlier = process._popen
    try:
        start()
    except BaseException:
        popen = process._popen
        if earlier is None and popen is not None:
            process._popen = None
            _stdlib._children.discard(process)
            popen.kill()
            popen.wait()
        raise


def _note_starter(process):
    """Have a daemon that is about to start know what it ends with.

    Raises RuntimeError in a frozen program that would start itself without end.
    """
    if hasattr(sys, "frozen"):
        from ._frozen import check_orders

        check_orders()
    if process.daemon:
        process._daemon_of = _starter()


def _begin(process, bootstrap, *args, **kwargs):
    """Do what `_bootstrap` does in a child, with CPython's."""
    starter = vars(process).pop("_daemon_of", None)
    if starter is not None:
        try:
            _end_with_starter(starter)
        except OSError:
            # The caller ends the process without a word.
            import traceback

            print(f"Process {process.name} cannot watch its parent:", file=sys.stderr)
            traceback.print_exc()
            sys.stderr.flush()
            return 1
    try:
        return bootstrap(*args, **kwargs)
    finally:
        # Forked children end by os._exit after this.
        if core := sys.modules.get("procession._procession"):
            core._leave()


def _starter():
    """What a process needs of this one to end with it."""
    from ._procession import _this_process

    pid = os.getpid()
    # Whether the thread that starts it is the one whose end is the end of the process.
    return _this_process(), pid, threading.get_native_id() == pid


# Who has called `_end_with_starter`, and with what.
_watching = None


def _end_with_starter(starter):
    """Have this process killed when the one that called `_starter` ends; at once if it has ended. Again, this does nothing."""
    global _watching
    from ._procession import _end_with

    process, pid, is_first = starter
    if _watching != (os.getpid(), process):
        # For the kernel, a forkserver is the parent.
        _end_with(process, is_first and os.getppid() == pid)
        _watching = os.getpid(), process


def _preload(module):
    """Have the next forkserver that is started import the module too."""
    from multiprocessing.forkserver import _forkserver

    if module not in _forkserver._preload_modules:
        # Not appended: the list is the program's.
        _forkserver._preload_modules = [*_forkserver._preload_modules, module]


def __getattr__(name):
    return getattr(_stdlib, name)
