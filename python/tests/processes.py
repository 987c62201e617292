"""Processes of tests, none of which outlives a hung test."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
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


@contextlib.contextmanager
def alarms(handler):
    """Have SIGALRM handled by this."""
    before = signal.signal(signal.SIGALRM, handler)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def start(context, target, *args):
    """A daemon that runs the target."""
    process = context.Process(target=target, args=args, daemon=True)
    process.start()
    return process


def finish(process):
    """Waits for the process to end and asserts that it ended well."""
    process.join()
    assert process.exitcode == 0


def kill(process):
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL


def fork(work):
    """Runs `work` in a child made by `os.fork` itself; its pid."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    except BaseException as error:
        print(repr(error), file=sys.stderr)
    finally:
        os._exit(code)


def ended(pid):
    """Waits for a child to end; its exit code."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def children():
    """The pids of the processes that this thread has started and that are not yet collected."""
    with open(f"/proc/self/task/{threading.get_native_id()}/children", encoding="ascii") as file:
        return {int(pid) for pid in file.read().split()}


def until(condition):
    """Waits until the condition holds. A watchdog ends what waits for ever."""
    while not condition():
        time.sleep(0.005)


def state(pid):
    """The state of the process's main thread, a letter as `ps` has it."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        return file.read().rpartition(")")[2].split()[0]


def sleeps(pid):
    """Whether the process's main thread sleeps, as it does when it is blocked."""
    return state(pid) == "S"


def lines_of_program(*command):
    """The lines, of both streams, of a Python program that ended well, and of its children."""
    # Unbuffered, print writes each part of a line by itself, and lines of processes mix.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        [sys.executable, *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=HUNG,
        env=environment,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout.splitlines()
