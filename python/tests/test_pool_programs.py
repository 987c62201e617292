"""Ends of processes with pools. Programs, for they end badly."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from processes import METHODS, until

HEAD = """
    import os, signal, sys, threading, time
    import procession

    METHOD = sys.argv[1]

    def square(x):
        return x * x

    def nap(seconds):
        time.sleep(seconds)

    def wait_for(pool):
        try:
            pool.apply(nap, (600,))
        except procession.PoolTerminated:
            pass

    def tell(daemon):
        os.write(1, b"%d\\n" % os.getpid())
        time.sleep(600)
"""


@pytest.fixture
def program(tmp_path):
    """Starts a Python program in a process group of its own; killed at the end if it still runs."""
    running = []

    def start(text, *arguments):
        path = tmp_path / f"program_{len(running)}.py"
        path.write_text(textwrap.dedent(HEAD) + textwrap.dedent(text))
        process = subprocess.Popen(
            [sys.executable, str(path), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        running.append(process)
        return process

    yield start
    for process in running:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.communicate()


def is_gone(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def group_is_gone(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def assert_that_workers_end_with(process):
    """Kills a program, two workers of whose pool write their pids."""
    workers = [int(process.stdout.readline()) for _ in range(2)]
    process.kill()
    process.wait()
    until(lambda: all(map(is_gone, workers)))


@pytest.mark.parametrize("daemon", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_workers_end_when_the_pools_process_is_killed(program, method, daemon):
    process = program(
        f"""
        if __name__ == "__main__":
            pool = procession.get_context(METHOD).Pool(2, daemon={daemon})
            pool.map_async(tell, [1, 2], chunksize=1)
            time.sleep(600)
        """,
        method,
    )
    assert_that_workers_end_with(process)


OTHER_PROCESSES = {
    "another class": """
        class NoDaemon(type(procession.get_context(METHOD)).Process):
            @property
            def daemon(self):
                return False

            @daemon.setter
            def daemon(self, value):
                pass

        class Context(type(procession.get_context(METHOD))):
            Process = NoDaemon

        context = Context()
    """,
    "CPython's": """
        import multiprocessing
        context = multiprocessing.get_context(METHOD)
    """,
    "a class of CPython's": """
        import multiprocessing

        class Context(type(multiprocessing.get_context(METHOD))):
            pass

        context = Context()
    """,
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("processes", OTHER_PROCESSES)
def test_workers_of_other_classes_end_when_the_pools_process_is_killed(program, method, processes):
    process = program(
        textwrap.dedent(OTHER_PROCESSES[processes])
        + textwrap.dedent(
            """
            if __name__ == "__main__":
                pool = procession.pool.Pool(2, context=context)
                pool.map_async(tell, [1, 2], chunksize=1)
                time.sleep(600)
            """
        ),
        method,
    )
    assert_that_workers_end_with(process)


# A forkserver that is about to start, and what it forks until that is a worker, is the standard library's.
@pytest.mark.parametrize(
    "method, state",
    [
        (method, state)
        for method in METHODS
        for state in ("busy", "idle", "starting")
        if (method, state) != ("forkserver", "starting")
    ],
)
def test_an_interrupt_ends_the_program_at_once_and_in_silence(program, method, state):
    process = program(
        """
        if __name__ == "__main__":
            try:
                if STATE == "starting":
                    print("go", flush=True)
                with procession.get_context(METHOD).Pool(3) as pool:
                    if STATE == "busy":
                        pool.map(square, range(3))
                        result = pool.map_async(nap, [600] * 6, chunksize=1)
                        time.sleep(0.1)
                    else:
                        result = pool.apply_async(square, (2,))
                        result.get()
                    print("go", flush=True)
                    if STATE == "busy":
                        result.get()
                    time.sleep(600)
            except KeyboardInterrupt:
                print("interrupted", flush=True)
        """.replace("STATE", repr(state)),
        method,
    )
    assert process.stdout.readline() == "go\n"
    if state == "starting":
        time.sleep(random.random() * 0.3)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=100)
    assert (out.replace("go\n", ""), err, process.returncode) == ("interrupted\n", "", 0)
    until(lambda: group_is_gone(process.pid))


ENDINGS = {
    "a running pool": "pool.map(square, range(10))",
    "pending results": "results = [pool.apply_async(nap, (600,), callback=print) for _ in range(5)]",
    "a pending map": "result = pool.map_async(nap, [600] * 50, chunksize=1, error_callback=repr)",
    "a pending iterator": "import itertools; results = pool.imap(square, itertools.count()); next(results)",
    "a closed pool": "pool.map_async(square, range(10)); pool.close()",
    "a thread that waits": "threading.Thread(target=wait_for, args=(pool,), daemon=True).start(); time.sleep(0.2)",
    "sys.exit": "pool.apply_async(nap, (600,)); sys.exit(0)",
    "a cycle": "cycle = [pool]; cycle.append(cycle); del pool",
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ending", ENDINGS)
def test_the_interpreter_ends_with(program, ending, method):
    process = program(
        f"""
        if __name__ == "__main__":
            pool = procession.get_context(METHOD).Pool(2)
            {ENDINGS[ending]}
        """,
        method,
    )
    out, err = process.communicate(timeout=100)
    assert (out, process.returncode) == ("", 0) and "Traceback" not in err and "Exception" not in err
    until(lambda: group_is_gone(process.pid))


def test_a_pool_of_a_thread_ends_with_the_interpreter(program):
    process = program(
        """
        def work():
            pool = procession.Pool(2)
            print(pool.map(square, range(3)), flush=True)
            pool.apply_async(nap, (600,))

        if __name__ == "__main__":
            thread = threading.Thread(target=work)
            thread.start()
        """,
        "fork",
    )
    out, err = process.communicate(timeout=100)
    assert (out, process.returncode) == ("[0, 1, 4]\n", 0) and "Traceback" not in err
    until(lambda: group_is_gone(process.pid))
