"""Starts a process again and again, each time with an exception at the next bytecode of the start.

As a signal's handler raises it. After each, there is no child, or one that was started whole; and no
descriptor and no blocked signal is left. Prints how many places there were.
"""

import dis
import gc
import multiprocessing.popen_fork
import multiprocessing.process
import os
import pathlib
import signal
import sys
import time

import procession
from procession import _popen, _popen_exec, process

# What CPython's own `_launch` does for spawn and forkserver is not looked at.
FILES = {
    module.__file__
    for module in (process, _popen, _popen_exec, multiprocessing.process, multiprocessing.popen_fork)
}


class Interrupted(BaseException):
    pass


class Injection:
    """Raises at the bytecode with this number, counted from the call of `start`."""

    def __init__(self, place):
        self._left = place
        self._pid = os.getpid()
        self.has_raised = False

    def trace(self, frame, event, _):
        if os.getpid() != self._pid:
            sys.settrace(None)
            return None
        if frame.f_code.co_filename not in FILES or self.has_raised:
            return None
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        # Signals are handled at calls and jumps. The compiler protects no NOP by the `try` around it.
        if event == "opcode" and frame.f_code.co_code[frame.f_lasti] != dis.opmap["NOP"]:
            self._left -= 1
            if self._left < 0:
                self.has_raised = True
                raise Interrupted
        return self.trace


def start(context, place):
    """Start a process, interrupted at this place. Return whether it was; False past the last one."""
    child = context.Process(target=time.sleep, args=(100,))
    injection = Injection(place)
    sys.settrace(injection.trace)
    try:
        child.start()
    except Interrupted:
        pass
    finally:
        sys.settrace(None)
    if child in multiprocessing.active_children():
        child.kill()
        child.join()
    elif not injection.has_raised:
        raise AssertionError("the process is not there")
    return injection.has_raised


def descendants(pid):
    """The processes below this one, but for zombies that a forkserver is about to collect."""
    try:
        children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return []
    ended = state == "Z" and pid != os.getpid()
    return [] if ended else [int(pid), *(each for child in children for each in descendants(child))]


def state():
    gc.collect()
    descriptors = sorted(os.listdir("/proc/self/fd"))
    return descriptors, signal.pthread_sigmask(signal.SIG_BLOCK, ()), sorted(descendants(os.getpid()))


def main():
    context = procession.get_context(sys.argv[1])
    start(context, 1 << 30)
    before = state()
    place = 0
    while start(context, place):
        until = time.monotonic() + 30
        while (after := state()) != before and time.monotonic() < until:
            time.sleep(0.01)
        assert after == before, (place, after, before)
        place += 1
    print(place)


main()
