"""Exit codes, sentinels and ends of processes, also when something else collects children."""

import contextlib
import ctypes
import errno
import functools
import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing.connection import wait

import procession
import pytest
from processes import HUNG, METHODS, children, ended, fork, run, until
from tasks import square


def leave(code):
    os._exit(code)


def leave_at(event, code):
    event.wait()
    os._exit(code)


def ignoring():
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)


def reaping():
    def reap():
        while True:
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                time.sleep(0.001)

    threading.Thread(target=reap, daemon=True).start()


def usual():
    pass


def remembers():
    """Whether the kernel remembers how a process ended that was collected."""
    release = os.uname().release.split("-")[0].split(".")
    return (int(release[0]), int(release[1])) >= (6, 15)


def known(code, condition, method):
    """The exit codes that may be reported."""
    # A forkserver says how its children end.
    lost = condition is not usual and method != "forkserver" and not remembers()
    return {255} if lost else {code}


def check_ends(method, condition):
    context = procession.get_context(method)
    # Start the method's server before `condition` discards exit statuses.
    finished(context.Process(target=leave, args=(0,)))
    condition()
    event = context.Event()
    processes = [context.Process(target=leave, args=(7,)) for _ in range(3)]
    processes += [context.Process(target=leave_at, args=(event, 5)) for _ in range(2)]
    seen = []

    def join(process):
        process.join()
        seen.append((process, process.exitcode, process.is_alive()))

    for process in processes:
        process.start()
    assert processes[-1].exitcode is None and processes[-1].is_alive()
    processes[-1].join(0.01)
    assert processes[-1].exitcode is None
    threads = [threading.Thread(target=join, args=(process,)) for process in processes for _ in range(4)]
    for thread in threads:
        thread.start()
    event.set()
    for process in processes:
        wait([process.sentinel])
        assert not process.is_alive() and process.exitcode is not None
    for thread in threads:
        thread.join()
    assert len(seen) == len(threads)
    for process, code, is_alive in seen:
        assert code in known(7 if process in processes[:3] else 5, condition, method)
        assert not is_alive
    assert not procession.active_children()
    for process in processes:
        process.close()
        with pytest.raises(ValueError, match="closed"):
            process.join()


def finished(process):
    process.start()
    process.join()
    assert process.exitcode == 0


@pytest.mark.parametrize("condition", [usual, ignoring, reaping])
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_every_thread_that_joins_gets_the_exit_code(method, condition):
    # In a process of its own: what it does with SIGCHLD, and to others' children, is not for this
    # one.
    code = f"import test_exit_codes as t; t.check_ends({method!r}, t.{condition.__name__})"
    directory = os.path.dirname(__file__)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=directory, timeout=HUNG, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("condition", [ignoring, reaping])
def test_a_pool_goes_on_while_something_else_collects_its_workers(condition):
    def work():
        condition()
        with procession.get_context("fork").Pool(2, maxtasksperchild=1) as pool:
            assert pool.map(square, range(12), chunksize=1) == [x * x for x in range(12)]
            with pytest.raises(procession.WorkerDied) as caught:
                pool.apply(leave, (3,))
            assert caught.value.exitcode in known(3, condition, "fork")
            pool.close()
            pool.join()
        assert not procession.active_children()

    assert ended(fork(lambda: run(work))) == 0


def test_processes_have_their_exit_codes_beside_a_pool_that_replaces_workers(context):
    with context.Pool(2, maxtasksperchild=1) as pool:
        results = []
        for _ in range(200 if context.get_start_method() == "fork" else 8):
            results.append(pool.apply_async(square, (1,)))
            process = context.Process(target=leave, args=(7,))
            process.start()
            process.join()
            assert process.exitcode == 7 and not process.is_alive()
        assert [result.get() for result in results] == [1] * len(results)


def test_processes_are_started_in_threads_at_once(context):
    count = 10 if context.get_start_method() == "fork" else 2
    wrong = []

    def start(code):
        for _ in range(count):
            process = context.Process(target=leave, args=(code,))
            process.start()
            # Another process that was forked at the same time holds nothing that keeps it from
            # being ready.
            wait([process.sentinel])
            if process.exitcode != code or process.is_alive():
                wrong.append((code, process.exitcode))
            process.join()
            process.close()

    threads = [threading.Thread(target=start, args=(code,)) for code in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_process_lives_on_without_its_forkserver():
    from multiprocessing.forkserver import _forkserver

    context = procession.get_context("forkserver")
    event = context.Event()
    process = context.Process(target=leave_at, args=(event, 5))
    process.start()
    os.kill(_forkserver._forkserver_pid, signal.SIGKILL)
    until(lambda: not os.path.exists(f"/proc/{_forkserver._forkserver_pid}") or is_zombie(_forkserver))
    assert process.is_alive() and process.exitcode is None and not wait([process.sentinel], 0)
    event.set()
    process.join()
    assert process.exitcode in (5, 255) and not process.is_alive()


def is_zombie(forkserver):
    with open(f"/proc/{forkserver._forkserver_pid}/stat", encoding="ascii") as file:
        return file.read().rpartition(")")[2].split()[0] == "Z"


def test_a_child_cannot_wait_for_its_parents_children():
    event = procession.Event()
    process = procession.Process(target=leave_at, args=(event, 4))
    process.start()

    def look():
        assert process.exitcode is None
        with pytest.raises(AssertionError, match="child process"):
            process.join()

    assert ended(fork(look)) == 0
    event.set()
    process.join()
    assert process.exitcode == 4


def test_a_signal_handler_asks_while_its_thread_waits():
    process = procession.get_context("fork").Process(target=time.sleep, args=(0.3,))
    seen = []
    before = signal.signal(signal.SIGALRM, lambda *_: seen.append((process.is_alive(), process.exitcode)))
    try:
        process.start()
        signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
        process.join()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert process.exitcode == 0 and seen
    assert all(answer in ((True, None), (True, 0), (False, 0)) for answer in seen)


@pytest.mark.parametrize("method", METHODS)
def test_no_process_is_left_for_which_no_descriptor_is_free(method, monkeypatch):
    context = procession.get_context(method)
    finished(context.Process(target=leave, args=(0,)))
    pids = []
    pidfd_open = os.pidfd_open

    def refuse(pid):
        if pid == os.getpid():
            return pidfd_open(pid)
        pids.append(pid)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    process = context.Process(target=time.sleep, args=(HUNG,))
    monkeypatch.setattr(os, "pidfd_open", refuse)
    with pytest.raises(OSError, match="Too many open files"):
        process.start()
    assert len(pids) == 1 and not procession.active_children()
    until(lambda: not os.path.exists(f"/proc/{pids[0]}"))


def test_no_process_is_left_when_a_handler_raises_once_it_goes_on(monkeypatch):
    told = []
    write = os.write

    def write_and_raise(descriptor, data):
        told.append(write(descriptor, data))
        raise InterruptedError("a handler")

    before = children()
    process = procession.get_context("fork").Process(target=time.sleep, args=(HUNG,))
    with monkeypatch.context() as patched, pytest.raises(InterruptedError, match="a handler"):
        patched.setattr(os, "write", write_and_raise)
        process.start()
    assert told == [1] and not procession.active_children() and children() == before


def test_no_process_is_left_when_a_handler_raises_right_after_the_fork():
    def refuse(*_):
        raise InterruptedError("a handler")

    def program():
        signal.signal(signal.SIGUSR1, refuse)
        process = procession.get_context("fork").Process(target=time.sleep, args=(HUNG,))
        # No Python code runs between this and the end of `os.fork`.
        kill = functools.partial(ctypes.CDLL(None).kill, os.getpid(), signal.SIGUSR1)
        os.register_at_fork(after_in_parent=kill)
        with pytest.raises(InterruptedError, match="a handler"):
            process.start()
        assert children() == set()

    assert ended(fork(program)) == 0


def test_no_descriptor_is_left():
    context = procession.get_context("fork")
    finished(context.Process(target=leave, args=(0,)))

    def count():
        return len(os.listdir("/proc/self/fd"))

    before = count()
    for _ in range(3):
        process = context.Process(target=leave, args=(0,))
        finished(process)
        process.close()
    with contextlib.suppress(OSError):
        finished(context.Process(target=leave, args=(0,)))
    del process
    until(lambda: count() <= before)
