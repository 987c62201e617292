"""The end of the interpreter while daemon threads are in the middle of things."""

import subprocess
import sys
import textwrap

import pytest

# Daemon threads that give up the interpreter's lock in code of theirs that the package calls.
BUSY = {
    "loads": """
        class Object:
            def __reduce__(self):
                return time.sleep, (0.001,)

        def work():
            while True:
                queue.put(Object())
                queue.get()
        """,
    "dump": """
        class Object:
            def __reduce__(self):
                time.sleep(0.001)
                return int, ()

        def work():
            while True:
                queue.put(Object())
                queue.get()
        """,
    "put_many": """
        def numbers():
            time.sleep(0.001)
            yield 1

        def work():
            while True:
                queue.put_many(numbers())
                queue.get()
        """,
    "wait_for": """
        def work():
            condition = procession.Condition()
            with condition:
                condition.wait_for(lambda: time.sleep(0.001), 1000)
        """,
    "action": """
        def work():
            barrier = procession.Barrier(1, lambda: time.sleep(0.001))
            while True:
                barrier.wait()
        """,
    "lock": """
        class Lock:
            def acquire(self):
                time.sleep(0.001)

            release = acquire

        def work():
            value = procession.Value("i", lock=Lock())
            while True:
                value.value
        """,
}


@pytest.mark.parametrize("work", BUSY)
def test_daemon_threads_do_not_disturb_the_end(work):
    program = """
        import threading
        import time

        import procession

        queue = procession.Queue()
        {}
        for _ in range(4):
            threading.Thread(target=work, daemon=True).start()
        time.sleep(0.1)
        """
    program = textwrap.dedent(program).format(textwrap.dedent(BUSY[work]))
    for _ in range(3):
        ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
        assert (ended.returncode, ended.stderr) == (0, "")
