"""What public code reads of the private attributes of CPython's objects."""

import contextlib
import functools
import multiprocessing.pool
import subprocess
import sys
import textwrap
import time

import procession
import pytest
from procession import pool as pools
from procession.pool import Pool, ThreadPool
from procession.queues import JoinableQueue, Queue, SimpleQueue
from procession.synchronize import Barrier, Event, Lock, Semaphore
from tasks import nap, square


def hold(path):
    """Runs until the file is there."""
    while not path.exists():
        time.sleep(0.001)
    return str(path)


def wait_until(condition):
    until = time.monotonic() + 100
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.001)


def istarmap(pool, func, iterable, chunksize, iterator):
    """As many programs have copied it."""
    pool._check_running()
    batches = multiprocessing.pool.Pool._get_tasks(func, iterable, chunksize)
    result = iterator(pool)
    tasks = pool._guarded_task_generation(result._job, multiprocessing.pool.starmapstar, batches)
    pool._taskqueue.put((tasks, result._set_length))
    return (item for chunk in result for item in chunk)


def test_queues():
    queue = Queue(3)
    queue.put(1)
    assert queue._maxsize == 3 and Queue()._maxsize == multiprocessing.Queue()._maxsize
    assert queue._sem.get_value() == queue._sem._semlock._get_value() == 2
    assert not queue._sem._semlock._is_zero()
    assert len(queue._buffer) == 0 and queue._thread is None and not queue._joincancelled
    queue._send_bytes(queue._recv_bytes())
    assert queue.get() == 1
    for name in "_notempty", "_rlock", "_wlock":
        assert not hasattr(queue, name)
        with pytest.raises(AttributeError, match=rf"'Queue' object .*{name}.*use get\(timeout"):
            getattr(queue, name)
    with pytest.raises(AttributeError, match="_reader"):
        _ = SimpleQueue()._rlock


def test_joining_with_a_timeout():
    queue = JoinableQueue()
    queue.put(1)
    with queue._cond:
        assert not queue._unfinished_tasks._semlock._is_zero()
        assert queue._unfinished_tasks.get_value() == 1
        assert not queue._cond.wait(timeout=0.01)
    queue.get()
    queue.task_done()
    with queue._cond:
        assert queue._unfinished_tasks._semlock._is_zero() and queue._cond.wait(timeout=0.01)


def test_events_barriers_and_locks():
    event, barrier = Event(), Barrier(2)
    assert event._flag.get_value() == 0
    event.set()
    assert event._flag._semlock._get_value() == 1
    assert (barrier._count, barrier._parties, barrier._state) == (0, 2, 0)
    barrier.abort()
    assert barrier._state == -2
    assert Lock()._semlock._get_value() == 1 and Semaphore(3)._semlock._get_value() == 3
    for owner, name in (event, "_cond"), (barrier, "_cond"), (barrier, "_action"):
        with pytest.raises(AttributeError, match="use .*wait"):
            getattr(owner, name)


def test_progress_of_a_map(tmp_path):
    go = tmp_path / "go"
    with Pool(1) as pool:
        result = pool.map_async(hold, [tmp_path, go, go], 1)
        other = pool.apply_async(square, (3,))
        wait_until(lambda: result._number_left == 2)
        assert result._value == [str(tmp_path), None, None] and result._success and not result._event.is_set()
        assert result._chunksize == 1 and not result._event.wait(0.01)
        assert pool._cache == {result._job: result, other._job: other} == result._cache
        assert pool._taskqueue.qsize() >= 1 and not pool._taskqueue.empty()
        assert not hasattr(other, "_value") and not hasattr(other, "_success")
        assert not hasattr(other, "_number_left")
        go.touch()
        assert result.get() == [str(tmp_path), str(go), str(go)] and other.get() == 9
        assert result._number_left == 0 and result._event.wait() and result._cache == pool._cache == {}
        assert (other._value, other._success, other._callback) == (9, True, None)
        assert pool._taskqueue.empty() and pool._worker_handler.is_alive()
        failed = pool.apply_async(square, ("x",))
        failed.wait()
        assert not failed._success and type(failed._value) is TypeError
        for name in "_inqueue", "_outqueue", "_quick_put":
            with pytest.raises(AttributeError, match=rf"{name}.*_taskqueue\.qsize"):
                getattr(pool, name)
    assert not pool._worker_handler.is_alive()


@pytest.mark.parametrize("iterator", ["IMapIterator", "IMapUnorderedIterator"])
@pytest.mark.parametrize("module", [pools, multiprocessing.pool])
def test_iterators_of_the_programs_own(module, iterator):
    items = [(n, 2) for n in range(10)]
    with Pool(2) as pool:
        got = list(istarmap(pool, pow, items, 3, getattr(module, iterator)))
        assert sorted(got) == [n * n for n in range(10)]
        if iterator == "IMapIterator":
            assert got == sorted(got)
            with pytest.raises(TypeError):
                list(istarmap(pool, pow, [(1, 2), ("x", 1)], 1, getattr(module, iterator)))
    with ThreadPool(2) as pool:
        iterator = getattr(multiprocessing.pool, iterator)
        assert sorted(istarmap(pool, pow, items, 3, iterator)) == sorted(got)


def test_after_install():
    program = """
        import procession
        procession.install()
        import multiprocessing.pool

        def istarmap(self, func, iterable, chunksize=1):
            batches = multiprocessing.pool.Pool._get_tasks(func, iterable, chunksize)
            result = multiprocessing.pool.IMapIterator(self)
            generation = self._guarded_task_generation(result._job, multiprocessing.pool.starmapstar, batches)
            self._taskqueue.put((generation, result._set_length))
            return (item for chunk in result for item in chunk)

        multiprocessing.pool.Pool.istarmap = istarmap
        with multiprocessing.Pool(2) as pool, multiprocessing.pool.ThreadPool(2) as threads:
            for p in pool, threads:
                assert list(p.istarmap(pow, [(1, 2), (3, 4)])) == [1, 81]
            assert isinstance(threads.apply_async(abs, (1,)), multiprocessing.pool.AsyncResult)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True)


class Bounded(Queue):
    """Uses what only CPython's queues have, and so is one."""

    def room(self):
        return self._sem.acquire(False)


class Decorated(Queue):
    @contextlib.contextmanager
    def taken(self):
        yield self._sem.acquire(False)

    def room(self):
        with self.taken() as taken:
            return taken


class Cached(Queue):
    @functools.cached_property
    def take(self):
        return self._sem.acquire

    def room(self):
        return self.take(False)


@pytest.mark.parametrize("cls", [Bounded, Decorated, Cached])
def test_subclasses_that_use_them_are_cpythons(cls):
    queue = cls(1, ctx=procession.get_context("fork"))
    assert queue.room() and not queue.room()


def test_executors(tmp_path):
    go = tmp_path / "go"
    with procession.ProcessPoolExecutor(1, initializer=nap, initargs=(0,)) as executor:
        assert executor._pending_work_items == {} and executor._executor_manager_thread is None
        futures = [executor.submit(hold, go) for _ in range(3)]
        pending = list(executor._pending_work_items.values())
        go.touch()
        assert [item.future for item in pending] == futures
        assert not executor._shutdown_thread and not executor._broken
        assert (executor._initializer, executor._initargs) == (nap, (0,))
        with pytest.raises(AttributeError, match="_call_queue.*_pending_work_items"):
            _ = executor._call_queue
    assert executor._shutdown_thread and executor._pending_work_items == {}


@pytest.mark.parametrize("make", [Pool, procession.ProcessPoolExecutor])
@pytest.mark.parametrize("arguments", [{"nonsense": 3}, {"initializer": 3}, {"retries": -1}])
def test_a_constructor_that_raises_leaves_no_word(make, arguments, monkeypatch):
    said = []
    monkeypatch.setattr(sys, "unraisablehook", said.append)
    with pytest.raises((TypeError, ValueError)):
        make(1, **arguments)
    assert not said


def test_what_dir_lists_can_be_read(tmp_path):
    release = tmp_path / "release"
    with Pool(1) as pool, procession.ProcessPoolExecutor(1) as executor:
        running = [pool.apply_async(hold, (release,)), pool.map_async(hold, [release, release])]
        objects = [procession.Queue(), procession.JoinableQueue(), procession.SimpleQueue()]
        objects += [procession.Event(), procession.Barrier(1), procession.Condition(), pool, executor]
        for obj in [*objects, *running]:
            assert "__class__" in dir(obj)
            for name in dir(obj):
                getattr(obj, name)
        release.touch()
        for result in running:
            result.get(100)
