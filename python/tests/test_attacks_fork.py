"""Forks while other threads work on what lies in queues' memory."""

import os
import subprocess
import sys
import textwrap
import threading

import pytest
from processes import ended, fork
from procession.queues import Queue

LENGTH = 1 << 20


class Buffer:
    """Bytes that arrive where they lie, as large arrays do."""

    def __init__(self, content):
        self.content = content

    def __reduce_ex__(self, protocol):
        import pickle

        return Buffer, (pickle.PickleBuffer(self.content),)


@pytest.fixture
def queue():
    return Queue()


def test_what_a_thread_writes_during_a_fork_stays(queue):
    lines = memoryview(bytes(range(1, 251)) * 4000)
    for _ in range(20):
        queue.put(Buffer(bytearray(len(lines))))
        received = memoryview(queue.get().content)
        reader, writer = os.pipe()
        started = threading.Event()

        def write():
            # Written by the kernel, without the interpreter's lock.
            with open(reader, "rb", buffering=0) as file:
                at = 0
                while at < len(received):
                    at += file.readinto(received[at:])

        def feed():
            with open(writer, "wb", buffering=0) as file:
                at = 0
                while at < len(lines):
                    at += file.write(lines[at : at + 50_000])
                    started.set()

        threads = [threading.Thread(target=write), threading.Thread(target=feed)]
        for thread in threads:
            thread.start()
        started.wait()
        assert ended(fork(lambda: None)) == 0
        for thread in threads:
            thread.join()
        assert received == lines


def test_an_array_that_comes_just_before_the_fork():
    # In a program of its own, as functions that run before a fork stay.
    program = """
        import os
        import threading

        fork_begins, has_come = threading.Event(), threading.Event()
        forks = False

        def wait():
            if forks:
                fork_begins.set()
                has_come.wait()

        os.register_at_fork(before=wait)

        from procession.queues import Queue
        from test_attacks_fork import Buffer, LENGTH

        queue = Queue()
        queue.put(Buffer(bytearray(LENGTH)))
        received = []

        def receive():
            fork_begins.wait()
            received.append(memoryview(queue.get().content))
            has_come.set()

        thread = threading.Thread(target=receive)
        thread.start()
        forks = True
        pid = os.fork()
        if pid == 0:
            received[0][:] = bytes([1]) * LENGTH
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        thread.join()
        assert received[0] == bytes(LENGTH)
        """
    directory = os.path.dirname(__file__)
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], cwd=directory, check=True, timeout=120)
