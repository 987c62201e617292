"""Processes of tests, none of which outlives a hung test."""

import contextlib
import multiprocessing
import os
import signal
import time

METHODS = ["fork", "spawn", "forkserver"]

# Far more than any test here takes: only what hangs meets it.
HUNG = 120


def run(target, *args):
    # A forked child cannot use faulthandler's watchdog if its parent does.
    signal.alarm(HUNG)
    target(*args)


@contextlib.contextmanager
def started(target, *args, method="fork"):
    """A process that runs the target; killed at the end if it still runs."""
    process = multiprocessing.get_context(method).Process(target=run, args=(target, *args))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def finish(process):
    """Waits for the process to end and asserts that it ended well."""
    process.join()
    assert process.exitcode == 0


def kill(process):
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL


def until(condition):
    """Waits until the condition holds. A watchdog ends what waits for ever."""
    while not condition():
        time.sleep(0.005)


def sleeps(pid):
    """Whether the process's main thread sleeps, as it does when it is blocked."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        return file.read().rpartition(")")[2].split()[0] == "S"
