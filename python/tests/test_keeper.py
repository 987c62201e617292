"""Handles in queues whose sender has ended."""

import ctypes
import os
import subprocess
import sys
import time

import pytest
from processes import ended, finish, fork, kill, start, until
from procession import Array, JoinableQueue, Lock, Queue


def keepers():
    """The pids of all keepers."""
    found = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/comm") as file:
                if file.read() == "procession-keep\n":
                    found.add(int(pid))
        except OSError:
            pass
    return found


def send(queue):
    inner = Queue()
    inner.put("inside")
    queue.put([Lock(), Array("i", 1000), inner])


def test_handles_outlive_a_sender_that_ends(context):
    queue = Queue()
    finish(start(context, send, queue))
    lock, array, inner = queue.get(timeout=60)
    with lock:
        assert len(array) == 1000
    assert inner.get(timeout=60) == "inside"


def send_and_wait(queue, never):
    send(queue)
    never.get()


def test_handles_of_a_killed_sender_are_lost(context):
    queue = Queue()
    process = start(context, send_and_wait, queue, Queue())
    until(lambda: not queue.empty())
    kill(process)
    with pytest.raises(OSError):
        queue.get(timeout=60)
    assert queue.empty()


def test_a_task_that_is_handed_out_again_has_its_handles(context):
    queue, ready = JoinableQueue(redeliver=True), Queue()
    finish(start(context, send, queue))
    worker = start(context, take, queue, ready)
    assert ready.get(timeout=60) == 1000
    kill(worker)
    _, array, inner = queue.get(timeout=60)
    assert len(array) == 1000 and inner.get(timeout=60) == "inside"
    queue.task_done()


def take(queue, ready):
    ready.put(len(queue.get()[1]))
    time.sleep(600)


def work(queue, number):
    queue.put((number, Array("i", 10)))
    return number


def test_a_pool_whose_tasks_send_handles_is_over_before_they_are_received(context):
    queue = Queue()
    with context.Pool(2) as pool:
        pool.starmap(work, [(queue, number) for number in range(10)])
        pool.close()
        pool.join()
    assert sorted(queue.get(timeout=60)[0] for _ in range(10)) == list(range(10))


def test_a_process_made_by_fork_that_exits():
    queue = Queue()

    def child():
        send(queue)
        # As sys.exit does, which would end the tests' framework here.
        ctypes.CDLL(None).exit(0)

    assert ended(fork(child)) == 0
    assert len(queue.get(timeout=60)) == 3


PROGRAM = """
import sys
from procession import Array
from procession.queues import Queue
Queue.open(sys.argv[1]).put(Array("i", 1000))
print("sent")
"""


def test_an_unrelated_program_that_exits():
    before = keepers()
    queue = Queue(name=f"test-keeper-{os.getpid()}")
    # Returns at the end of the program's output, which its keeper does not hold open.
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, f"test-keeper-{os.getpid()}"], capture_output=True, timeout=60
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"sent\n", b"")
    assert len(queue.get(timeout=60)) == 1000
    until(lambda: keepers() <= before)
