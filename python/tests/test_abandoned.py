"""Queues without a process that is left to put."""

import asyncio
import ctypes
import os
import pickle
import signal
import threading
import time
from queue import Empty

import pytest
from processes import ended, finish, fork, start, until
from procession import Abandoned, JoinableQueue, Queue, SimpleQueue, Value

# Longer than a consumer takes to notice.
LONG = 1.5


def put_and_end(queue):
    queue.put(1)


def put_and_be_killed(queue):
    queue.put(1)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("produce", [put_and_end, put_and_be_killed])
@pytest.mark.parametrize("make", [Queue, JoinableQueue, SimpleQueue])
def test_get_raises_when_the_last_producer_has_ended(context, make, produce):
    queue = make(abandonable=True)
    producers = [start(context, produce, queue) for _ in range(2)]
    assert [queue.get(), queue.get()] == [1, 1]
    with pytest.raises(Abandoned):
        queue.get()
    assert issubclass(Abandoned, EOFError)
    for producer in producers:
        producer.join()


def put_later(queue):
    time.sleep(LONG)
    queue.put(1)
    time.sleep(LONG)


def test_a_process_that_has_the_queue_is_waited_for(context):
    queue = Queue(abandonable=True)
    producer = start(context, put_later, queue)
    assert queue.get() == 1
    began = time.monotonic()
    with pytest.raises(Abandoned):
        queue.get()
    assert time.monotonic() - began > LONG / 2
    finish(producer)


def consume(queue, told, number):
    for _ in queue:
        pass
    with told.get_lock():
        told.value += 1
    # A consumer that got the error keeps no other waiting while it does something else.
    until(lambda: told.value == number)


def test_each_of_several_consumers_is_told(context):
    queue, told = Queue(abandonable=True), Value("i", 0)
    consumers = [start(context, consume, queue, told, 3) for _ in range(3)]
    start(context, put_and_be_killed, queue).join()
    # This process neither puts nor gets.
    queue.close()
    for consumer in consumers:
        finish(consumer)


def consume_beside_a_thread_of_c(queue, told, number):
    # As importing numpy starts some.
    libc, thread = ctypes.CDLL(None), ctypes.c_ulong()
    assert libc.pthread_create(ctypes.byref(thread), None, libc.sleep, ctypes.c_void_p(600)) == 0
    assert len(os.listdir("/proc/self/task")) > 1
    consume(queue, told, number)


def test_threads_that_run_no_python_put_nothing(context):
    queue, told = Queue(abandonable=True), Value("i", 0)
    consumers = [start(context, consume_beside_a_thread_of_c, queue, told, 2) for _ in range(2)]
    start(context, put_and_be_killed, queue).join()
    queue.close()
    for consumer in consumers:
        finish(consumer)


def work(queue, count):
    for number in queue:
        time.sleep(0.4)
        with count.get_lock():
            count.value += 1
        if number:
            queue.put_many([number - 1] * 2)


def test_consumers_that_put_what_follows_are_not_abandoned(context):
    queue, count = Queue(abandonable=True), Value("i", 0)
    queue.put(2)
    workers = [start(context, work, queue, count) for _ in range(2)]
    queue.close()
    for worker in workers:
        finish(worker)
    assert count.value == 7


def receive_later(carrier):
    time.sleep(LONG)
    carrier.get().put(1)


def test_a_queue_on_its_way_is_waited_for(context):
    queue, carrier = Queue(abandonable=True), Queue()
    carrier.put(queue)
    producer = start(context, receive_later, carrier)
    assert queue.get() == 1
    with pytest.raises(Abandoned):
        queue.get()
    finish(producer)


def test_children_of_os_fork_count_by_themselves():
    queue = Queue(abandonable=True)

    def child():
        def grandchild():
            time.sleep(LONG)
            queue.put(1)

        fork(grandchild)

    assert ended(fork(child)) == 0
    assert queue.get() == 1
    with pytest.raises(Abandoned):
        queue.get()


def test_gets_of_every_form():
    queue = Queue(abandonable=True)
    for call in queue.get_nowait, lambda: queue.get(block=False), lambda: queue.get_many(1, block=False):
        with pytest.raises(Empty):
            call()
    for call in (
        queue.get,
        lambda: queue.get(timeout=0.01),
        lambda: queue.get(timeout=600),
        lambda: queue.get_many(5),
        lambda: asyncio.run(queue.aget()),
    ):
        with pytest.raises(Abandoned):
            call()
    assert list(queue) == []
    queue.put(1)
    assert list(queue) == [1]
    again = pickle.loads(pickle.dumps(queue))
    with pytest.raises(Abandoned):
        again.get()


def test_without_the_option_a_get_waits():
    queue = Queue()
    with pytest.raises(Empty):
        queue.get(timeout=LONG)


def test_other_threads_of_a_consumer_keep_other_processes_waiting():
    queue, done = Queue(abandonable=True), Value("i", 0)

    def child():
        def put():
            time.sleep(LONG)
            queue.put_many([1, 2])

        thread = threading.Thread(target=put)
        thread.start()
        queue.get()
        done.value = 1
        thread.join()

    pid = fork(child)
    # With a timeout, so that the child has a process to wait for.
    queue.get(timeout=60)
    assert ended(pid) == 0 and done.value == 1


def test_a_consumer_with_a_timeout_may_put_after_it():
    queue = Queue(abandonable=True)

    def child():
        with pytest.raises(Empty):
            queue.get(timeout=LONG)
        queue.put(1)

    pid = fork(child)
    # With a timeout, so that each is one that may put.
    assert queue.get(timeout=60) == 1
    assert ended(pid) == 0
