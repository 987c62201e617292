"""Processes: CPython's, whose daemons end with their parent however that ends."""

import signal
from multiprocessing import process as _stdlib
from multiprocessing.process import active_children, current_process, parent_process

__all__ = ["BaseProcess", "active_children", "current_process", "parent_process"]


def _interrupt(self):
    """Interrupt the process: it gets SIGINT, as by Ctrl-C."""
    self._check_closed()
    self._popen._send_signal(signal.SIGINT)


class BaseProcess(_stdlib.BaseProcess):
    """A function that runs in a process of its own, like `threading.Thread` in a thread."""

    if not hasattr(_stdlib.BaseProcess, "interrupt"):
        interrupt = _interrupt


def __getattr__(name):
    return getattr(_stdlib, name)
