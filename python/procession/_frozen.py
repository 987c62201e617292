"""Frozen programs: executables that contain a program and its interpreter.

Such a program starts its children, a forkserver and the resource tracker by executing itself, with
orders in place of arguments. PyInstaller replaces ``multiprocessing.freeze_support`` by a function
that obeys them. Other freezers leave that to the program.
"""

import multiprocessing
import os
import sys
from multiprocessing import context as _stdlib, spawn
from subprocess import _args_from_interpreter_flags

# How the code begins that CPython passes for a process that is none of the program's.
_SERVERS = (
    "from multiprocessing.resource_tracker import main",
    "from multiprocessing.forkserver import main",
)


def freeze_support():
    """Obey the order that this process was started with, and exit. Do nothing in a process without
    one."""
    for module in multiprocessing, spawn:
        function = module.freeze_support
        # A freezer's hook is neither a method of a context nor CPython's own function.
        theirs = getattr(function, "__module__", None) == "multiprocessing.spawn"
        if not theirs and not isinstance(getattr(function, "__self__", None), _stdlib.BaseContext):
            function()
            return
    if not has_order():
        return
    if os.getuid() != os.geteuid() or os.getgid() != os.getegid():
        # Any user may have written the order.
        raise PermissionError(f"{sys.executable} is setuid or setgid: it takes no orders from its arguments")
    if not spawn.is_forking(sys.argv):
        exec(sys.argv[-1], {"__name__": "__main__"})
        sys.exit()
    spawn.freeze_support()


def has_order():
    """Whether this is a frozen program that was started with an order."""
    if not getattr(sys, "frozen", False):
        return False
    *arguments, flag, code = ["", "", *sys.argv[1:]]
    return spawn.is_forking(sys.argv) or (
        flag == "-c"
        and code.startswith(_SERVERS)
        and set(filter(None, arguments)) <= set(_args_from_interpreter_flags())
    )


def check_orders():
    """Refuse to start a process if this one has not obeyed its own order: it would start itself
    without end.

    Raises RuntimeError.
    """
    if has_order():
        raise RuntimeError(
            "this frozen program was started as a child of its own and does not act as one:"
            " call freeze_support() first in `if __name__ == '__main__':`"
        )
