"""Queues when processes are killed, interrupted or forked, and with threads."""

import contextlib
import gc
import multiprocessing
import os
import pickle
import signal
import threading
import time
from queue import Empty, Full

import pytest
from processes import alarms, ended, fork, kill, start, state, until
from procession.queues import DeliveryLost, JoinableQueue, Queue

FORK = multiprocessing.get_context("fork")


def take_and_sleep(queue, taken):
    queue.get()
    taken.put(os.getpid())
    time.sleep(600)


def test_a_task_of_a_dead_consumer_is_lost_without_redelivery(context):
    queue, taken = JoinableQueue(), Queue()
    queue.put("task")
    process = start(context, take_and_sleep, queue, taken)
    assert taken.get() == process.pid
    process.kill()
    with pytest.raises(DeliveryLost) as caught:
        queue.join()
    assert caught.value.count == 1 and caught.value.pids == [process.pid]
    process.join()
    queue.join()


def test_a_task_of_a_dead_consumer_is_handed_out_again(context):
    queue, taken = JoinableQueue(redeliver=True), Queue()
    carried = Queue()
    queue.put(["task", carried, b"x" * 50_000])
    queue.put(["next"])
    process = start(context, take_and_sleep, queue, taken)
    taken.get()
    process.kill()
    process.join()
    # Which comes first depends on when the death is noticed.
    got = {}
    for _ in range(2):
        task = queue.get()
        got[task[0]] = task
        queue.task_done()
    assert len(got["task"][2]) == 50_000 and "next" in got
    got["task"][1].put("still usable")
    assert carried.get() == "still usable"
    with pytest.raises(ValueError):
        queue.task_done()
    queue.join()


def test_deliveries_are_acknowledged_by_the_thread_that_has_them():
    queue = JoinableQueue(redeliver=True)
    queue.put_many(["main", "thread", "main 2"])
    assert queue.get() == "main"
    seen = []

    def work():
        seen.append(queue.get())
        queue.task_done()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == ["thread"]

    # The child's copy is its parent's.
    def child():
        with pytest.raises(ValueError):
            queue.task_done()

    assert ended(fork(child)) == 0


def test_deliveries_go_back_with_the_handle():
    queue = JoinableQueue(redeliver=True)
    other = pickle.loads(pickle.dumps(queue))
    queue.put(1)
    assert other.get() == 1
    with pytest.raises(Empty):
        queue.get(block=False)
    del other
    gc.collect()
    assert queue.get(timeout=10) == 1
    queue.task_done()
    queue.join()


def produce(queue, number):
    count = 0
    while True:
        queue.put(
            (number, count, b"x" * (count * 37 % 3000)) if count % 50 else [number, count, b"x" * 100_000]
        )
        count += 1


def test_killed_producers_leave_whole_messages_in_order():
    queue = Queue(100)
    for round in range(15):
        producers = [start(FORK, produce, queue, number) for number in range(3)]
        last = [-1] * 3
        for _ in range(200):
            number, count, content = queue.get()
            assert count == last[number] + 1
            last[number] = count
        for process in producers:
            process.kill()
            process.join()
        while True:
            try:
                number, count, content = queue.get(block=False)
            except Empty:
                break
            assert count == last[number] + 1
            last[number] = count
            assert not content.strip(b"x")


def consume(queue, results):
    while True:
        results.put(queue.get())


def test_killed_consumers_lose_at_most_one_message_each():
    for round in range(10):
        queue, results = Queue(), Queue()
        consumers = [start(FORK, consume, queue, results) for _ in range(3)]
        for number in range(600):
            queue.put((number, b"x" * (number % 7 * 5000)))
        until(lambda: results.qsize() > 50)
        for process in consumers:
            process.kill()
            process.join()
        got = [results.get() for _ in range(results.qsize())]
        got += [queue.get() for _ in range(queue.qsize())]
        numbers = [number for number, _ in got]
        assert len(numbers) == len(set(numbers))
        assert 600 - len(consumers) <= len(numbers) <= 600
        assert all(content == b"x" * (number % 7 * 5000) for number, content in got)


# Signals, threads and forks


def interrupted(use):
    """Whether `use`, blocked, raises KeyboardInterrupt."""
    ready = Queue()

    def work():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        ready.put(1)
        with pytest.raises(KeyboardInterrupt):
            use()

    pid = fork(work)
    ready.get()
    # It may be sent before the wait begins: then it ends it as well.
    time.sleep(0.05)
    os.kill(pid, signal.SIGINT)
    return ended(pid) == 0


def test_an_interrupt_ends_every_wait_and_nothing_is_lost():
    empty, full, tasks = Queue(), Queue(1), JoinableQueue()
    redelivering = JoinableQueue(redeliver=True)
    full.put("first")
    tasks.put(1)
    for use in (
        empty.get,
        lambda: empty.get(timeout=500),
        lambda: empty.get_many(5),
        lambda: next(iter(empty)),
        redelivering.get,
        lambda: full.put(2),
        lambda: full.put(2, timeout=500),
        lambda: full.put(b"x" * 100_000),
        lambda: full.put_many([1, 2]),
        tasks.join,
    ):
        assert interrupted(use)
    empty.put("there")
    assert empty.get(timeout=10) == "there"
    assert full.get() == "first" and full.empty()
    redelivering.put("there")
    assert redelivering.get(timeout=10) == "there"


def test_signal_handlers_run_while_a_thread_waits():
    queue = Queue()
    previous = signal.signal(signal.SIGALRM, lambda *_: queue.put("from the handler"))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        assert queue.get(timeout=60) == "from the handler"
    finally:
        signal.signal(signal.SIGALRM, previous)


def test_threads_use_one_handle():
    queue, results = Queue(10), Queue()

    def produce():
        for number in range(500):
            queue.put(number)

    def consume():
        for number in iter(queue.get, None):
            results.put(number)

    producers = [threading.Thread(target=produce) for _ in range(3)]
    consumers = [threading.Thread(target=consume) for _ in range(3)]
    for thread in producers + consumers:
        thread.start()
    for thread in producers:
        thread.join()
    for _ in consumers:
        queue.put(None)
    for thread in consumers:
        thread.join()
    assert sorted(results.get() for _ in range(1500)) == sorted(list(range(500)) * 3)


def test_other_threads_run_while_one_waits():
    queue, other = Queue(), Queue()
    thread = threading.Thread(target=lambda: other.put(queue.get()))
    thread.start()
    for number in range(1000):
        pass
    queue.put(1)
    assert other.get() == 1
    thread.join()


def test_forks_while_threads_use_the_queue():
    queue, results = Queue(50), Queue()
    stop = threading.Event()

    def use():
        while not stop.is_set():
            queue.put([object, b"x" * 20_000])
            queue.put(1)
            queue.get()
            queue.get()

    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for number in range(20):

            def work():
                own = Queue()
                own.put([object, number])
                assert own.get()[1] == number
                results.put([object, number])

            assert ended(fork(work)) == 0
            assert results.get()[1] == number
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert queue.empty()


def put_and_get(queue, ready):
    ready.put(os.getpid())
    while True:
        with contextlib.suppress(Full):
            queue.put(b"x" * 20_000, timeout=1)
        queue.get()


def test_a_timeout_is_kept_beside_a_process_that_is_stopped_inside(context):
    queue, ready = Queue(3), Queue()
    peers = [start(context, put_and_get, queue, ready) for _ in range(3)]
    for _ in peers:
        ready.get()
    for turn in range(200):
        stopped = peers[turn % len(peers)]
        os.kill(stopped.pid, signal.SIGSTOP)
        for operation in [
            lambda: queue.put_nowait(b"message"),
            lambda: queue.get(timeout=0.001),
            lambda: queue.put_many([b"1", b"2"], timeout=0.001),
            lambda: queue.get_many(2, block=False),
        ]:
            with contextlib.suppress(Empty, Full):
                operation()
        queue.qsize(), queue.full()
        os.kill(stopped.pid, signal.SIGCONT)
    for peer in peers:
        kill(peer)


def put_and_get_small(queue):
    while True:
        queue.put(b"x" * 10_000)
        queue.get()


def test_ctrl_c_ends_a_wait_for_a_process_that_is_stopped_inside():
    tasks = Queue()
    peer = start(FORK, put_and_get_small, tasks)

    def has_a_lock():
        return any(f"held by pid {peer.pid}" in line for line in tasks.describe().splitlines())

    def stopped_inside():
        os.kill(peer.pid, signal.SIGSTOP)
        until(lambda: state(peer.pid) == "T")
        if has_a_lock():
            return True
        os.kill(peer.pid, signal.SIGCONT)
        return False

    until(stopped_inside)

    def interrupt(*_):
        raise KeyboardInterrupt

    with alarms(interrupt), pytest.raises(KeyboardInterrupt):
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        while True:
            tasks.put(1)
            tasks.get()
    os.kill(peer.pid, signal.SIGCONT)
    kill(peer)


def get_slowly(queue, count):
    for _ in range(count):
        queue.get()
        time.sleep(0.005)


@pytest.mark.parametrize("kind", [Queue, JoinableQueue])
def test_a_put_waits_for_room_in_bytes(context, kind):
    queue = kind(max_bytes=4 << 20)
    consumer = start(context, get_slowly, queue, 60)
    for _ in range(20):
        queue.put(b"x" * (1 << 20))
    assert queue.put_many([b"y" * 100_000] * 40) == 40
    consumer.join()
    assert queue.empty()


class Large:
    """Its bytes stay in the queue's memory when it has arrived."""

    def __init__(self, size):
        self.data = bytearray(size)

    def __reduce_ex__(self, protocol):
        return memoryview, (pickle.PickleBuffer(self.data),)


def hold_it(queue, taken):
    message = queue.get()
    taken.put(len(message))
    time.sleep(600)


def test_the_bytes_of_a_dead_consumer_come_back(context):
    queue, taken = Queue(max_bytes=4 << 20), Queue()
    queue.put(Large(3 << 20))
    holder = start(context, hold_it, queue, taken)
    assert taken.get() == 3 << 20
    with pytest.raises(Full):
        queue.put(b"y" * (2 << 20), timeout=0.05)
    killer = threading.Timer(0.1, holder.kill)
    killer.start()
    queue.put(b"y" * (2 << 20))
    killer.join()
    holder.join()
