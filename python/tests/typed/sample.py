"""A typed program, which `test_types.py` checks with ``mypy --strict`` and runs.

What a type is claimed to be is claimed with `assert_type`; what comes out is asserted where it runs.
"""

from __future__ import annotations

import asyncio
import ctypes
import faulthandler
import multiprocessing.context
import multiprocessing.managers
import multiprocessing.process
import queue
import sys
import threading
from collections.abc import Iterator
from typing import Any, assert_type

import procession
import procession.pool
from procession.connection import Connection, wait
from procession.context import BaseContext, ForkContext, ForkServerContext, SpawnContext
from procession.managers import ManagedQueue, SyncManager
from procession.queues import JoinableQueue, Queue, ShutDown, SimpleQueue
from procession.shared_memory import SharedMemory
from procession.sharedctypes import Synchronized, SynchronizedArray, SynchronizedString
from procession.synchronize import (
    Barrier,
    BoundedSemaphore,
    Condition,
    Event,
    Lock,
    OwnerDied,
    OwnerDiedWarning,
    RLock,
    Semaphore,
)

Task = tuple[int, str]


class Point(ctypes.Structure):
    _fields_ = [("x", ctypes.c_double), ("y", ctypes.c_double)]


class Worker(procession.Process):
    """Takes tasks until there are no more, and counts them."""

    def __init__(
        self,
        tasks: procession.JoinableQueue[Task],
        results: Queue[str],
        done: Synchronized[int],
        context: BaseContext,
    ) -> None:
        super().__init__(name="worker", daemon=True)
        self.tasks = tasks
        self.results = results
        self.done = done
        assert_type(context.Lock(), Lock)

    def run(self) -> None:
        for number, word in self.tasks:
            self.results.put(word * number)
            with self.done.get_lock():
                self.done.value += 1
            self.tasks.task_done()


def work(context: BaseContext) -> list[str]:
    tasks: procession.JoinableQueue[Task] = procession.JoinableQueue()
    results: Queue[str] = procession.Queue(maxsize=10)
    done = context.Value("i", 0)
    assert_type(done, Synchronized[int])
    worker = Worker(tasks, results, done, context)
    worker.start()
    assert_type(worker.exitcode, int | None)
    assert_type(tasks.put_many([(1, "a"), (2, "b")], timeout=60.0), int)
    tasks.put((3, "c"))
    tasks.join()
    tasks.shutdown()
    worker.join()
    assert done.value == 3
    return results.get_many(10)


def queues() -> None:
    numbers: Queue[int] = Queue(maxsize=3, name=None, max_bytes=1 << 20)
    numbers.put(1)
    numbers.put(2, True, 1.5)
    numbers.put_nowait(3)
    assert_type(numbers.full(), bool)
    assert_type(numbers.get(), int)
    assert_type(numbers.get(timeout=1), int)
    assert_type(numbers.get_nowait(), int)
    try:
        numbers.put_many(range(4), block=False)
    except queue.Full:
        assert numbers.qsize() == 3
    assert_type(numbers.get_many(2), list[int])
    assert_type(iter(numbers), Iterator[int])
    numbers.shutdown()
    assert_type(list(numbers), list[int])
    try:
        numbers.get()
    except ShutDown:
        numbers.close()
    assert_type(numbers.describe(), str)

    words: SimpleQueue[str] = procession.SimpleQueue()
    words.put("word")
    assert_type(words.get(), str)
    anything = procession.get_context("spawn").Queue()
    assert_type(anything, Queue[Any])
    again: JoinableQueue[bytes] = JoinableQueue(redeliver=True)
    again.put(b"task")
    assert_type(again.get(), bytes)
    again.task_done()
    again.join()


async def tasks_of_asyncio() -> None:
    numbers: Queue[int] = Queue()
    await numbers.aput(1)
    assert_type(await numbers.aget(), int)
    plain: Queue[dict[str, int]] = procession.Queue(codec="msgpack")
    plain.put({"a": 1})
    assert plain.get() == {"a": 1}


def synchronization() -> None:
    lock = procession.Lock(robust="raise")
    assert_type(lock, Lock)
    with lock as taken:
        assert_type(taken, bool)
    assert_type(lock.acquire(block=True, timeout=1), bool)
    lock.release()
    try:
        with procession.RLock(robust=False) as taken:
            assert taken
    except OwnerDied as error:
        raise OwnerDiedWarning("never here") from error
    assert_type(procession.RLock(), RLock)
    assert_type(procession.Semaphore(3, robust=True).get_value(), int)
    assert_type(procession.Semaphore(), Semaphore)
    assert_type(procession.BoundedSemaphore(2), BoundedSemaphore)
    condition = procession.Condition(lock)
    assert_type(condition, Condition)
    with condition:
        condition.notify_all()
        assert_type(condition.wait(0), bool)
        assert_type(condition.wait_for(lambda: "x", timeout=1.0), str)
    event = procession.Event()
    assert_type(event, Event)
    event.set()
    assert event.wait(timeout=None)
    barrier = procession.Barrier(1, action=None, timeout=5)
    assert_type(barrier, Barrier)
    assert_type(barrier.wait(), int)
    try:
        barrier.abort()
        barrier.wait()
    except threading.BrokenBarrierError:
        assert barrier.broken


def values() -> None:
    whole = procession.Value("i", 7)
    assert_type(whole, Synchronized[int])
    assert_type(procession.Value("d", 0.5), Synchronized[float])
    assert_type(procession.Value(ctypes.c_double, 0.5), Synchronized[float])
    assert_type(procession.Value("c", b"c").value, bytes)
    assert_type(procession.Value("u", "u").value, str)
    assert_type(procession.Value(ctypes.c_bool, lock=False), ctypes.c_bool)
    whole.value += 1
    with whole.get_lock():
        whole.value -= 1
    assert_type(procession.RawValue(ctypes.c_int, 1).value, int)
    array = procession.Array("i", range(4), lock=procession.RLock())
    assert_type(array, SynchronizedArray[int])
    assert_type(array[0], int)
    assert_type(array[1:], list[int])
    array[1:3] = [5, 6]
    assert len(array) == 4
    assert list(array) == [0, 5, 6, 3]
    text = procession.Array("c", b"text")
    assert_type(text, SynchronizedString)
    assert_type(text.value, bytes)
    assert_type(procession.Array(ctypes.c_char, 8), SynchronizedString)
    assert_type(procession.Array("d", 2, lock=True)[0], float)
    assert_type(procession.RawArray(ctypes.c_double, 3), "ctypes.Array[ctypes.c_double]")
    assert_type(procession.Array(ctypes.c_int, 3, lock=False), ctypes.Array[ctypes.c_int])
    point = procession.Value(Point, 1.0, 2.0)
    point.x = point.y + 1
    assert_type(point.get_obj(), Point)
    assert point.x == 3.0


def length(word: str) -> int:
    return len(word)


def pools() -> None:
    with procession.Pool(1) as pool:
        assert_type(pool.map(length, ["a", "bc"]), list[int])
        assert_type(pool.apply(length, ("abc",)), int)
        assert_type(pool.apply_async(length, ("abc",)), procession.pool.AsyncResult[int])
        assert_type(pool.apply_async(length, ("abc",)).get(timeout=60), int)
        assert sorted(pool.imap_unordered(length, ["a", "bc"])) == [1, 2]


def managers() -> None:
    with procession.Manager() as manager:
        assert_type(manager, SyncManager)
        ages = manager.dict({"Ada": 36})
        assert_type(ages, "multiprocessing.managers.DictProxy[str, int]")
        ages["Grace"] = 85
        assert_type(manager.list([1, 2]), "multiprocessing.managers.ListProxy[int]")
        assert_type(manager.set([1, 2]).copy(), set[int])
        assert_type(manager.Queue(), "ManagedQueue[Any]")
        with manager.Lock() as taken:
            assert_type(taken, bool)
        assert_type(manager.Value("d", 0.5).value, float)
        assert_type(manager.Value("i", 1).get(), int)
        assert_type(manager.Value("text", "a").value, str)
        assert_type(manager.Array("i", [1, 2])[0], int)
        assert ages.copy() == {"Ada": 36, "Grace": 85}


def pipes() -> None:
    ours, theirs = procession.Pipe()
    assert_type(ours, "Connection[Any, Any]")
    ours.send({"a": 1})
    assert wait([theirs], timeout=60) == [theirs]
    assert theirs.recv() == {"a": 1}
    ours.close()
    theirs.close()


def contexts() -> None:
    assert_type(procession.get_context("fork"), ForkContext)
    assert_type(procession.get_context("spawn"), SpawnContext)
    assert_type(procession.get_context("forkserver"), ForkServerContext)
    # What takes a context of multiprocessing takes these.
    standard: multiprocessing.context.BaseContext = procession.get_context()
    assert standard.cpu_count() > 0
    assert_type(procession.current_process(), multiprocessing.process.BaseProcess)
    assert_type(procession.get_all_start_methods(), list[str])
    assert_type(procession.cpu_count(), int)


def memory() -> None:
    block = SharedMemory(create=True, size=16)
    try:
        assert_type(block.name, str)
    finally:
        block.close()
        block.unlink()


def main() -> None:
    faulthandler.dump_traceback_later(120, exit=True)
    context = procession.get_context(sys.argv[1])
    assert work(context) == ["a", "bb", "ccc"]
    queues()
    asyncio.run(tasks_of_asyncio())
    synchronization()
    values()
    pools()
    managers()
    pipes()
    contexts()
    memory()
    print("well typed")


if __name__ == "__main__":
    main()
