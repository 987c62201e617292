"""Queues between processes: order, bounds, ends, tasks, names."""

import gc
import multiprocessing
import os
import pickle
import queue as stdlib_queue
import sys
import threading
import time
from queue import Empty, Full

import pytest
from processes import METHODS, ended, fork, start
from procession.queues import JoinableQueue, Queue, ShutDown, SimpleQueue


@pytest.fixture(params=METHODS)
def context(request):
    """CPython's own: queues go with any."""
    return multiprocessing.get_context(request.param)


FORK = multiprocessing.get_context("fork")


# What CPython's queues do


@pytest.mark.parametrize("make", [Queue, JoinableQueue])
def test_first_in_first_out(make):
    queue = make()
    for number in range(1000):
        queue.put(number)
    assert queue.qsize() == 1000 and not queue.empty() and not queue.full()
    assert [queue.get() for _ in range(1000)] == list(range(1000))
    assert queue.qsize() == 0 and queue.empty()


def test_a_bound_on_messages():
    queue = Queue(2)
    queue.put(1)
    queue.put_nowait(2)
    assert queue.full()
    for arguments in ((False,), (0,), (True, 0), (True, 0.01), (True, -1), (1, 0)):
        with pytest.raises(Full):
            queue.put(3, *arguments)
    with pytest.raises(Full):
        queue.put(b"x" * 100_000, timeout=0.01)
    with pytest.raises(Full):
        queue.put_nowait(3)
    assert queue.qsize() == 2
    assert queue.get() == 1
    queue.put(b"x" * 100_000, timeout=10)
    assert queue.get() == 2 and queue.get() == b"x" * 100_000


def test_an_empty_queue():
    queue = Queue()
    for arguments in ((False,), (0,), (True, 0), (True, 0.01), (True, -1), (False, 5)):
        with pytest.raises(Empty):
            queue.get(*arguments)
    with pytest.raises(Empty):
        queue.get_nowait()
    before = time.monotonic()
    with pytest.raises(Empty):
        queue.get(timeout=0.2)
    assert time.monotonic() - before >= 0.2


@pytest.mark.parametrize("maxsize", [0, -1, -(10**30)])
def test_no_bound(maxsize):
    queue = Queue(maxsize)
    for number in range(10_000):
        queue.put(number, block=False)
    assert not queue.full()


@pytest.mark.parametrize(
    "maxsize, error",
    [
        ("1", TypeError),
        (1.5, TypeError),
        (None, TypeError),
        ([], TypeError),
        (2**31 + 1, OverflowError),
        (2**100, OverflowError),
    ],
)
def test_an_impossible_maxsize(maxsize, error):
    with pytest.raises(error, match="maxsize"):
        Queue(maxsize)


def test_other_impossible_arguments():
    queue = Queue()
    with pytest.raises(ValueError):
        queue.get(timeout=float("nan"))
    with pytest.raises(TypeError):
        queue.get(timeout="1")
    with pytest.raises(TypeError):
        queue.put()
    with pytest.raises(ValueError):
        Queue(max_bytes=1)
    with pytest.raises((TypeError, OverflowError)):
        Queue(max_bytes=-1)
    with pytest.raises(RuntimeError, match="not initialised"):
        Queue.__new__(Queue).put(1)


def test_closed():
    for make in (Queue, JoinableQueue):
        queue = make()
        queue.put(1)
        queue.close()
        queue.close()
        queue.join_thread()
        queue.cancel_join_thread()
        for use in (
            lambda: queue.put(1),
            lambda: queue.get(),
            lambda: queue.put_many([1]),
            lambda: queue.get_many(1),
        ):
            with pytest.raises(ValueError, match="Queue .* is closed"):
                use()
    queue = SimpleQueue()
    queue.close()
    assert queue._reader.closed and queue._writer.closed
    with pytest.raises(OSError):
        queue.put(1)
    with pytest.raises(OSError):
        queue.get()


def test_a_queue_that_is_closed_here_is_open_elsewhere():
    queue = Queue()
    other = pickle.loads(pickle.dumps(queue))
    queue.close()
    other.put(1)
    assert other.get() == 1


def test_simple_queue():
    queue = SimpleQueue()
    assert queue.empty()
    queue.put({"a": 1})
    assert not queue.empty()
    assert queue.get() == {"a": 1}


def test_max_bytes():
    queue = Queue(max_bytes=1 << 20)
    with pytest.raises(Full):
        for _ in range(10_000):
            queue.put_nowait(b"x" * 10_000)
    before = queue.qsize()
    begun = time.monotonic()
    with pytest.raises(Full):
        queue.put(b"x" * 10_000, timeout=0.1)
    assert time.monotonic() - begun >= 0.1
    with pytest.raises(MemoryError, match="max_bytes"):
        queue.put(b"x" * (2 << 20))
    assert queue.qsize() == before
    for _ in range(before):
        assert queue.get() == b"x" * 10_000
    queue.put(1)
    assert queue.get() == 1


def test_tasks():
    queue = JoinableQueue()
    queue.join()
    for number in range(3):
        queue.put(number)
    for _ in range(3):
        queue.get()
        queue.task_done()
    queue.join()
    with pytest.raises(ValueError, match=r"task_done\(\) called too many times"):
        queue.task_done()


def work_off(queue, done):
    while True:
        task = queue.get()
        done.put(task)
        queue.task_done()


def test_join_waits_for_tasks_of_others(context):
    queue, done = JoinableQueue(), Queue()
    workers = [start(context, work_off, queue, done) for _ in range(2)]
    for number in range(500):
        queue.put(number)
    queue.join()
    assert done.qsize() == 500
    assert sorted(done.get() for _ in range(500)) == list(range(500))
    for worker in workers:
        worker.kill()


def add(queue, results, amount):
    for number in iter(queue.get, None):
        results.put(number + amount)


def test_processes(context):
    queue, results = Queue(10), Queue()
    workers = [start(context, add, queue, results, 1000) for _ in range(3)]
    for number in range(300):
        queue.put(number)
    for _ in workers:
        queue.put(None)
    assert sorted(results.get() for _ in range(300)) == list(range(1000, 1300))
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0


def test_a_queue_of_one_between_processes():
    there, back = Queue(1), Queue(1)
    worker = start(FORK, add, there, back, 1)
    for number in range(1000):
        there.put(number)
        assert back.get() == number + 1
    there.put(None)
    worker.join()


class Counting(Queue):
    """As programs subclass CPython's."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.label = "made"
        self.lock = threading.Lock()

    def __getstate__(self):
        return {"parent": super().__getstate__(), "label": self.label}

    def __setstate__(self, state):
        super().__setstate__(state["parent"])
        self.label = state["label"] + ", sent"

    def get(self, *args, **options):
        return "got", super().get(*args, **options)


def use_counting(queue):
    queue.put((queue.label, queue.get()))


def test_subclasses(context):
    queue = Counting()
    queue.put(1)
    process = start(context, use_counting, queue)
    process.join()
    label = "made" if context.get_start_method() == "fork" else "made, sent"
    assert queue.get() == ("got", (label, ("got", 1)))


def test_generic():
    assert Queue[int].__origin__ is Queue and JoinableQueue[int] and SimpleQueue[str]
    assert isinstance(Queue[int](), Queue)


def test_the_hook_for_what_cannot_be_pickled():
    class Hooked(Queue):
        refused = []

        def _on_queue_feeder_error(self, error, obj):
            self.refused.append((type(error), obj))

    queue = Hooked(1)
    unpicklable = [lambda: None]
    queue.put(unpicklable)
    assert queue.empty() and not queue.full()
    ((kind, obj),) = Hooked.refused
    assert obj is unpicklable and issubclass(kind, Exception)


def test_ends_as_software_uses_them():
    queue = SimpleQueue()
    queue._writer.send(1)
    assert queue._reader.recv() == 1
    queue._writer.send_bytes(pickle.dumps([1, 2]))
    assert queue.get() == [1, 2]
    queue.put("x")
    assert pickle.loads(queue._reader.recv_bytes()) == "x"
    queue.put({1})
    assert pickle.loads(queue._reader.recv_bytes()) == {1}
    queue._reader.close()
    assert queue._reader.closed and not queue._writer.closed
    with pytest.raises(OSError):
        queue._reader.recv()
    queue._writer.send(2)
    assert queue.get() == 2


# Handles


def forward(queue, where):
    where.put(queue.get())


def test_a_queue_in_a_queue(context):
    carrier, results = Queue(), Queue()
    process = start(context, forward_inner, carrier, results)
    for number in range(20):
        inner = Queue()
        inner.put(number)
        carrier.put([inner, number])
    assert [results.get() for _ in range(20)] == list(range(20))
    carrier.put(None)
    process.join()
    del inner
    gc.collect()


def forward_inner(carrier, results):
    for inner, _ in iter(carrier.get, None):
        results.put(inner.get())


def test_a_queue_through_a_pipe():
    ours, theirs = multiprocessing.Pipe()
    queue = Queue()

    def work():
        theirs.recv().put("received")

    pid = fork(work)
    ours.send(queue)
    assert queue.get() == "received"
    assert ended(pid) == 0


def put_in(queue, number):
    queue.put(number)


def test_a_queue_in_the_arguments_of_a_pool(context):
    queue = Queue()
    with context.Pool(2) as pool:
        pool.starmap(put_in, [(queue, number) for number in range(20)])
    assert sorted(queue.get() for _ in range(20)) == list(range(20))


def test_a_handle_in_a_message_that_is_not_put_is_taken_back():
    queue = Queue(1)
    queue.put(0)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        with pytest.raises(Full):
            queue.put([Queue()], block=False)
        with pytest.raises(Full):
            queue.put_many([Queue(), Queue()], block=False)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before + 5


def test_a_handle_of_a_process_that_is_gone():
    reads, writes = os.pipe()

    def work():
        os.write(writes, pickle.dumps(Queue()))

    assert ended(fork(work)) == 0
    with pytest.raises(OSError):
        pickle.loads(os.read(reads, 4096))


def test_names():
    name = f"test-{os.getpid()}"
    queue = Queue(5, name=name)
    with pytest.raises(FileExistsError):
        Queue(name=name)
    with pytest.raises(ValueError):
        Queue(name="no/name")
    with pytest.raises(ValueError):
        JoinableQueue.open(name)

    def work():
        Queue.open(name).put("by name")

    assert ended(fork(work)) == 0
    assert queue.get() == "by name"
    assert Queue.open(name).get is not None
    del queue
    gc.collect()
    with pytest.raises(FileNotFoundError):
        Queue.open(name)


# Beyond CPython's


def test_shutdown():
    assert ShutDown is getattr(stdlib_queue, "ShutDown", ShutDown)
    queue = Queue()
    queue.put_many([1, 2])
    queue.shutdown()
    for put in (queue.put, queue.put_nowait):
        with pytest.raises(ShutDown):
            put(3)
    assert [queue.get(), queue.get()] == [1, 2]
    for get in (queue.get, queue.get_nowait, lambda: queue.get(timeout=5), lambda: queue.get_many(5)):
        with pytest.raises(ShutDown):
            get()
    queue = Queue()
    queue.put_many([1, 2])
    queue.shutdown(immediate=True)
    with pytest.raises(ShutDown):
        queue.get()


def test_shutdown_wakes_who_waits():
    empty, full = Queue(), Queue(1)
    full.put(1)
    ready = Queue()

    def work(use):
        ready.put(1)
        with pytest.raises(ShutDown):
            use()

    pids = [fork(lambda: work(empty.get)), fork(lambda: work(lambda: full.put(2)))]
    ready.get()
    ready.get()
    empty.shutdown()
    full.shutdown()
    assert [ended(pid) for pid in pids] == [0, 0]


def test_iteration_until_shutdown():
    queue = Queue()

    def work():
        queue.put_many(range(1000))
        queue.shutdown()

    pid = fork(work)
    assert list(queue) == list(range(1000))
    assert ended(pid) == 0
    assert list(queue) == []


def test_many():
    queue = Queue()
    assert queue.put_many([]) == 0
    items = [1, "two", [3], {"x": 1}, b"y" * 20_000, None, "z" * 100_000] * 100
    assert queue.put_many(item for item in items) == 700
    assert queue.qsize() == 700
    got = queue.get_many(10)
    assert got == items[:10]
    while len(got) < 700:
        got += queue.get_many(1000)
    assert got == items
    assert queue.get_many(0) == []
    with pytest.raises(Empty):
        queue.get_many(5, block=False)
    with pytest.raises(Empty):
        queue.get_many(5, timeout=0.01)
    with pytest.raises((TypeError, OverflowError)):
        queue.get_many(-1)


@pytest.mark.parametrize("make", [Queue, SimpleQueue, JoinableQueue, lambda: JoinableQueue(redeliver=True)])
def test_many_without_a_number_are_all_that_are_there(make):
    queue = make()
    with pytest.raises(Empty):
        queue.get_many(block=False)
    queue.put_many(range(1000))
    assert queue.get_many() == list(range(1000))
    with pytest.raises(Empty):
        queue.get_many(timeout=0.01)
    waiting = threading.Thread(target=queue.put, args=(1,))
    waiting.start()
    assert queue.get_many() == [1]
    waiting.join()
    queue.put_many(range(3))
    assert queue.get_many(None, timeout=1) == [0, 1, 2]


@pytest.mark.parametrize("make", [Queue, SimpleQueue, JoinableQueue])
def test_block_that_is_none_is_as_cpythons(make):
    queue, full = make(), Queue(1)
    full.put(1)
    refused = TypeError if sys.version_info < (3, 12) else None
    for get in (queue.get, queue.get_many):
        with pytest.raises(refused or Empty):
            get(block=None)
    with pytest.raises(refused or Empty):
        queue.get(None)
    with pytest.raises(refused or Full):
        full.put(2, None)
    with pytest.raises(refused or Full):
        full.put_many([2], None)
    with pytest.raises(Empty):
        queue.get("", 100)


def test_many_say_how_many_were_put():
    queue = Queue(5)
    with pytest.raises(Full) as caught:
        queue.put_many(range(8), timeout=0.01)
    assert caught.value.put_count == 5
    assert queue.get_many(10) == [0, 1, 2, 3, 4]

    def failing():
        yield 1
        yield b"x" * 50_000
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        queue.put_many(failing())
    assert caught.value.put_count == 2
    with pytest.raises(Exception) as caught:
        queue.put_many([2, lambda: None, 3])
    assert caught.value.put_count == 1
    assert queue.get_many(10) == [1, b"x" * 50_000, 2]


def refuse():
    raise ZeroDivisionError


class Unreadable:
    def __reduce__(self):
        return refuse, ()


@pytest.mark.parametrize("make", [Queue, lambda: JoinableQueue(redeliver=True)])
def test_many_lose_nothing_for_one_that_cannot_be_read(make):
    queue = make()
    queue.put_many([1, Unreadable(), 2])
    got = []
    while len(got) < 2:
        try:
            got += queue.get_many(10)
        except ZeroDivisionError as error:
            got += error.objects
    assert got == [1, 2] and queue.empty()


def test_many_through_a_bound():
    queue = Queue(7)
    pid = fork(lambda: queue.put_many(range(5000)))
    got = []
    while len(got) < 5000:
        got += queue.get_many(100)
    assert got == list(range(5000))
    assert ended(pid) == 0


def test_what_a_queue_says_of_itself():
    queue = Queue(7)
    queue.put(1)
    assert "at most 7 messages" in queue.describe()
    assert queue.memory_used() > 0


def test_a_queue_and_its_descriptor_go_with_the_last_handle():
    gc.collect()
    before = set(os.listdir("/proc/self/fd"))
    for make in (Queue, JoinableQueue, SimpleQueue):
        queue = make()
        queue.put(1)
        _ = queue._reader, queue._writer
        del queue, _
    assert set(os.listdir("/proc/self/fd")) == before
