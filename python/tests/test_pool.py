"""Pools: what the standard library's do, and what only these do."""

import asyncio
import concurrent.futures
import functools
import itertools
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import time
import warnings

import numpy
import procession
import pytest
from processes import until
from procession import PoolTerminated
from procession.pool import MaybeEncodingError, ThreadPool

FORK = procession.get_context("fork")


def square(x):
    return x * x


def product(x, y=1):
    return x * y


def fail(x):
    raise KeyError(x)


def fail_at_3(x):
    if x == 3:
        raise ValueError(f"not {x}")
    return x


def pid(_=None):
    return os.getpid()


def nap(seconds):
    time.sleep(seconds)
    return seconds


# Every start method


def test_all_methods(context):
    with context.Pool(2) as pool:
        assert pool.apply(product, (3,), {"y": 4}) == 12
        assert pool.apply_async(product, (3, 5)).get() == 15
        assert pool.map(square, range(10)) == [x * x for x in range(10)]
        assert pool.map_async(square, range(10), 3).get() == [x * x for x in range(10)]
        assert pool.starmap(product, [(1, 2), (3, 4)]) == [2, 12]
        assert pool.starmap_async(product, iter([(1, 2), (3, 4)]), chunksize=1).get() == [2, 12]
        assert list(pool.imap(square, iter(range(10)))) == [x * x for x in range(10)]
        assert sorted(pool.imap_unordered(square, range(10), 4)) == [x * x for x in range(10)]
        assert pid() not in pool.map(pid, range(10))
        with pytest.raises(KeyError):
            pool.apply(fail, (1,))
        pool.close()
        pool.join()


GIVEN = []


def begin(*given):
    GIVEN.extend(given)


def given():
    return GIVEN


def test_initializer_and_tasks_per_child(context):
    with context.Pool(1, begin, ("a", 2), 3) as pool:
        assert pool.apply(given) == ["a", 2]
        pids = [pool.apply(pid) for _ in range(8)]
        # One was done before.
        assert [len(list(group)) for _, group in itertools.groupby(pids)] == [2, 3, 3]


def through(queue, lock, value, item):
    with lock, value.get_lock():
        value.value += 1
    queue.put(item)
    return item, queue


def test_queues_locks_and_values_in_arguments_and_results(context):
    queue, lock, value = context.Queue(), context.Lock(), context.Value("i")
    with context.Pool(2) as pool, context.Manager() as manager:
        for channel in queue, manager.Queue():
            value.value = 0
            results = pool.starmap(through, [(channel, lock, value, item) for item in range(20)], chunksize=3)
            assert [item for item, _ in results] == list(range(20))
            assert sorted(results[item][1].get() for item in range(20)) == list(range(20))
            assert value.value == 20


# Chunks and iterators


def listed(*items):
    return items


@pytest.mark.parametrize("chunksize", [None, 1, 2, 3, 100])
def test_chunks(pool, chunksize):
    for count in 0, 1, 5, 6, 50:
        expected = [x * x for x in range(count)]
        assert pool.map(square, range(count), chunksize) == expected
        assert pool.map(square, iter(range(count)), chunksize) == expected
        assert pool.starmap(listed, [(x, x) for x in range(count)], chunksize) == [
            (x, x) for x in range(count)
        ]
        if chunksize is not None:
            assert list(pool.imap(square, range(count), chunksize)) == expected
            assert sorted(pool.imap_unordered(square, iter(range(count)), chunksize)) == expected


def test_bad_arguments(pool):
    for chunksize in 0, -1:
        for call in pool.map, pool.map_async, pool.starmap, pool.imap, pool.imap_unordered:
            with pytest.raises(ValueError, match="1+"):
                call(square, [1], chunksize)
    for call in pool.map, pool.imap, pool.imap_unordered, pool.starmap:
        with pytest.raises(TypeError):
            call(square, 5)
    for options in {"retries": -1}, {"retries": "1"}, {"timeout": 0}, {"timeout": -1}:
        for call in (
            lambda options: pool.apply(square, (1,), **options),
            lambda options: pool.map(square, [1], **options),
            lambda options: pool.imap(square, [1], **options),
        ):
            with pytest.raises(ValueError):
                call(options)
    with pytest.raises(ValueError):
        pool.imap(square, [1], buffersize=0)
    with pytest.raises(ValueError):
        pool.resize(0)
    for arguments in {"processes": 0}, {"maxtasksperchild": 0}, {"max_memory_per_child": -1}, {"timeout": 0}:
        with pytest.raises(ValueError):
            FORK.Pool(**arguments)
    with pytest.raises(TypeError):
        FORK.Pool(1, initializer=5)
    # Nothing of that has hurt it.
    assert pool.map(square, [1, 2]) == [1, 4]


def test_a_map_raises_the_first_failure_once_all_have_ended(pool):
    counter = FORK.Value("i")
    with pytest.raises(ValueError, match="not 3"):
        pool.starmap(count_and_fail_at_3, [(counter, x) for x in range(10)], chunksize=1)
    assert counter.value == 10


def count_and_fail_at_3(counter, x):
    with counter:
        counter.value += 1
    return fail_at_3(x)


def test_an_iterator_raises_in_the_place_of_what_failed(pool):
    results = pool.imap(fail_at_3, range(5))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="not 3"):
        next(results)
    assert list(results) == [4]
    with pytest.raises(StopIteration):
        results.next()


def broken(count):
    yield from range(count)
    raise LookupError("half-way")


def test_an_iterable_that_raises(pool):
    for chunksize in 1, 4:
        results = pool.imap(square, broken(8), chunksize)
        assert [next(results) for _ in range(8)] == [x * x for x in range(8)]
        with pytest.raises(LookupError, match="half-way"):
            next(results)
        with pytest.raises(StopIteration):
            next(results)
        with pytest.raises(LookupError):
            list(pool.imap_unordered(square, broken(0), chunksize))
    for call in pool.map, pool.map_async:
        with pytest.raises(LookupError):
            call(square, broken(8))

    for chunksize in None, 1, 4:
        with pytest.raises(LookupError):
            pool.map(square, Sized(10, broken(3)), chunksize)
        for length, count in (10, 3), (1, 0), (5, 4):
            with pytest.raises(RuntimeError):
                pool.map(square, Sized(length, iter(range(count))), chunksize)
        called = []
        result = pool.map_async(square, Sized(5, broken(2)), chunksize, error_callback=called.append)
        with pytest.raises(LookupError):
            result.get()
        assert len(called) == 1
        assert pool.map(square, Sized(3, iter(range(3))), chunksize) == [0, 1, 4]


class Sized:
    def __init__(self, length, items):
        self.length = length
        self.items = items

    def __len__(self):
        return self.length

    def __iter__(self):
        return self.items


def test_an_endless_iterable_is_read_no_further_than_buffersize(pool):
    read = []

    def numbers():
        for number in itertools.count():
            read.append(number)
            yield number

    results = pool.imap(square, numbers(), buffersize=10)
    for number in range(100):
        assert next(results) == number * number
        assert len(read) <= number + 1 + 10
    del results
    unordered = pool.imap_unordered(square, itertools.count(), buffersize=5)
    assert len([next(unordered) for _ in range(500)]) == 500
    # Without it too, there is an end.
    assert next(pool.imap(square, itertools.count())) == 0


def test_an_iterator_dropped_half_way_cancels_what_has_not_begun(pool):
    counter = FORK.Value("i")
    results = pool.imap(functools.partial(count_slowly, counter), range(1000))
    next(results)
    del results
    pool.close()
    pool.join()
    assert counter.value < 1000


def count_slowly(counter, x):
    time.sleep(0.005)
    with counter:
        counter.value += 1


def test_results_come_while_the_iterable_is_slow(pool):
    go_on = threading.Event()

    def slow():
        yield 1
        assert go_on.wait(60)
        yield 2

    results = pool.imap(square, slow())
    assert next(results) == 1
    with pytest.raises(procession.TimeoutError):
        results.next(timeout=0.05)
    go_on.set()
    assert list(results) == [4]


def test_several_threads_take_from_one_iterator(pool):
    results, taken = pool.imap_unordered(square, range(5000)), []
    threads = [threading.Thread(target=lambda: taken.extend(results)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == [x * x for x in range(5000)]


# Results


def test_async_results(pool):
    result = pool.apply_async(nap, (0.3,))
    assert not result.ready()
    with pytest.raises(ValueError, match="not ready"):
        result.successful()
    with pytest.raises(procession.TimeoutError):
        result.get(timeout=0.01)
    result.wait(0.01)
    result.wait()
    assert result.ready() and result.successful() and result.get(0) == result.get() == 0.3
    failed = pool.apply_async(fail, (1,))
    failed.wait()
    assert failed.ready() and not failed.successful()
    for _ in range(2):
        with pytest.raises(KeyError):
            failed.get()
    empty = pool.map_async(square, [])
    assert empty.ready() and empty.successful() and empty.get() == []


def test_callbacks_are_called_before_the_result_is_ready(pool):
    called, wrong = [], []
    assert pool.apply_async(square, (3,), callback=called.append, error_callback=wrong.append).get() == 9
    assert called == [9] and wrong == []
    with pytest.raises(KeyError):
        pool.apply_async(fail, (3,), callback=called.append, error_callback=wrong.append).get()
    assert called == [9] and isinstance(wrong[0], KeyError)
    assert pool.map_async(square, [1, 2], callback=called.append).get() == called[-1] == [1, 4]
    with pytest.raises(ValueError):
        pool.starmap_async(fail_at_3, [(3,)], error_callback=wrong.append).get()
    assert isinstance(wrong[-1], ValueError)


def test_a_callback_that_raises_hurts_nobody(pool, monkeypatch):
    hooked = []
    monkeypatch.setattr(threading, "excepthook", lambda problem: hooked.append(problem.exc_type))

    def wrong(_):
        raise ZeroDivisionError

    assert pool.apply_async(square, (3,), callback=wrong).get() == 9
    with pytest.raises(KeyError):
        pool.apply_async(fail, (3,), error_callback=wrong).get()
    assert hooked == [ZeroDivisionError] * 2
    assert pool.map(square, [1]) == [1]


def test_callbacks_use_the_pool(pool):
    results, mapped = [], []

    def go_on(value):
        results.append(pool.apply_async(square, (value,), callback=results.append))
        mapped.extend(pool.map(square, range(value)))
        mapped.append(pool.apply(square, (value,)))

    assert pool.apply_async(square, (2,), callback=go_on).get() == 4
    assert results[0].get() == 16 and results[1] == 16
    assert mapped == [0, 1, 4, 9, 16]


def test_threads_submit_and_get_at_the_same_time(pool):
    problems = []

    def work(number):
        try:
            for round in range(30):
                assert pool.apply(square, (number,)) == number * number
                assert pool.map(square, range(20), 3) == [x * x for x in range(20)]
                assert list(pool.imap(square, range(5))) == [0, 1, 4, 9, 16]
                called = []
                assert pool.apply_async(square, (round,), callback=called.append).get() == called[0]
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems


def test_threads_get_one_result(pool):
    result, got = pool.apply_async(nap, (0.1,)), []
    threads = [threading.Thread(target=lambda: got.append(result.get())) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [0.1] * 5


USED = None


class AppliesWhenRead:
    """Something whose unpickling, in the pool's process, uses the pool."""

    def __init__(self, value):
        self.value = value

    def __reduce__(self):
        return apply_if_owner, (os.getpid(), self.value)


def apply_if_owner(maker, value):
    return value if os.getpid() == maker else USED.apply(square, (value,))


def applying(value):
    return AppliesWhenRead(value)


def test_what_is_unpickled_uses_the_pool(pool):
    global USED
    USED = pool
    try:
        assert pool.map(applying, range(20), chunksize=1) == [x * x for x in range(20)]
        assert list(pool.imap_unordered(applying, [3])) == [9]
    finally:
        USED = None


def test_results_that_nobody_takes_are_collected(pool):
    counter = FORK.Value("i")
    for _ in range(200):
        pool.apply_async(count_and_return, (counter, 1_000_000))
    until(lambda: counter.value == 200 and not pool._work.jobs)
    # What is left is no result.
    assert sum(pool._work.memory) < 50_000_000
    pool.map_async(bytes, [1_000_000] * 100, chunksize=1)
    pool.close()
    pool.join()


def count_and_return(counter, size):
    with counter:
        counter.value += 1
    return bytes(size)


# Exceptions


class Awkward(Exception):
    def __init__(self, first, second):
        super().__init__(first)


class Unpicklable:
    def __reduce__(self):
        raise TypeError("not this one")


def raise_awkward():
    raise Awkward(1, 2)


def raise_unpicklable():
    raise ValueError(Unpicklable())


def return_unpicklable():
    return Unpicklable()


def raise_base():
    raise KeyboardInterrupt("from a task")


def return_unreadable():
    return Unreadable()


class Unreadable:
    def __reduce__(self):
        return read, (os.getpid(),)


def read(maker):
    if maker != os.getpid():
        raise EOFError("cannot be read here")


def test_what_cannot_be_sent_is_an_error_of_its_task(pool):
    for _ in range(3):
        with pytest.raises(MaybeEncodingError, match="not this one"):
            pool.apply(return_unpicklable)
        with pytest.raises(MaybeEncodingError):
            pool.apply(raise_awkward)
        with pytest.raises(MaybeEncodingError):
            pool.apply(raise_unpicklable)
        with pytest.raises(KeyboardInterrupt, match="from a task"):
            pool.apply(raise_base)
        with pytest.raises(EOFError, match="cannot be read here"):
            pool.apply(return_unreadable)
    with pytest.raises(MaybeEncodingError):
        pool.map(call, [return_unpicklable] * 3)
    results = pool.imap(call, [pid, return_unpicklable, raise_awkward, pid])
    next(results)
    for _ in range(2):
        with pytest.raises(MaybeEncodingError):
            next(results)
    assert len(list(results)) == 1


def call(function):
    return function()


def test_what_cannot_be_pickled_is_an_error_of_its_call(pool):
    for arguments in (Unpicklable(),), (threading.Lock(),):
        result = pool.apply_async(square, arguments)
        with pytest.raises(TypeError):
            result.get()
        with pytest.raises(TypeError):
            pool.map(square, arguments)
        results = pool.imap(square, [2, *arguments, 3])
        assert next(results) == 4
        with pytest.raises(TypeError):
            next(results)
        assert list(results) == [9]
    assert pool.apply(square, (2,)) == 4


def test_the_traceback_of_the_worker_is_the_cause(pool):
    for call in (
        lambda: pool.apply(fail, (1,)),
        lambda: pool.map(fail, [1]),
        lambda: list(pool.imap(fail, [1])),
    ):
        with pytest.raises(KeyError) as caught:
            call()
        cause = str(caught.value.__cause__)
        assert "raise KeyError(x)" in cause and "in fail" in cause


# Functions


def test_lambdas_and_closures_with_cloudpickle(pool):
    pytest.importorskip("cloudpickle")
    base = 10
    assert pool.map(lambda x: x + base, range(5)) == [10, 11, 12, 13, 14]
    assert pool.apply(lambda: base) == 10
    assert pool.apply(call, (lambda: base,)) == 10
    # Not what it was the first time.
    for base in range(3):
        assert pool.apply(lambda: base) == base


def test_lambdas_without_cloudpickle_are_a_clear_error(pool, monkeypatch):
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    for call in (
        lambda: pool.apply(lambda: 1),
        lambda: pool.map(lambda x: x, [1]),
        lambda: next(pool.imap(lambda x: x, [1])),
        lambda: pool.apply(square, (lambda: 1,)),
    ):
        with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
            call()
    assert pool.map(square, [2]) == [4]


def test_methods_of_objects_carry_their_objects(pool):
    known = {}
    get = known.get
    assert pool.apply(get, (1,)) is None
    known[1] = 2
    assert pool.apply(get, (1,)) == 2
    items = [1, 2, 3]
    assert pool.map(items.pop, [0, 0, 0, 0], chunksize=1) == [1] * 4
    assert pool.map(len, [[1], [1, 2]]) == [1, 2]
    assert pool.map("x".join, [["a", "b"]]) == ["axb"]
    assert pool.map(Counting(3).add, [1, 2, 3]) == [4, 5, 6]
    assert pool.map(functools.partial(product, 3), [1, 2]) == [3, 6]
    assert pool.map(int, ["1", "2"]) == [1, 2]


class Counting:
    def __init__(self, start):
        self.start = start

    def add(self, x):
        return self.start + x


# Arrays

KEPT = None


def keep(array):
    global KEPT
    KEPT = array
    array[0] = 7
    return float(array.sum())


def kept(_=None):
    return None if KEPT is None else (float(KEPT[0]), float(KEPT.sum()))


def test_arrays_in_arguments_are_the_workers_own():
    with FORK.Pool(1) as pool:
        array = numpy.ones(1_000_000)
        assert pool.apply(keep, (array,)) == 1_000_006
        assert array[0] == 1
        # Others come and go where it may have lain.
        for _ in range(5):
            assert pool.apply(numpy.sum, (numpy.zeros(1_000_000),)) == 0
        assert pool.apply(kept) == (7, 1_000_006)
        for chunksize in 1, 2:
            sums = pool.map(keep, [numpy.full(300_000, number) for number in range(6)], chunksize)
            assert sums == [number * 299_999 + 7 for number in range(6)]
            # There is more than may wait, and what the worker keeps is no reason to wait.
        assert sum(map(len, pool.imap(numpy.ravel, (numpy.ones(2_000_000) for _ in range(12))))) == 24_000_000


def test_arrays_in_results_outlive_the_pool():
    with FORK.Pool(2) as pool:
        arrays = pool.map(numpy.arange, [1_000_000] * 4, chunksize=1)
        arrays += pool.imap(numpy.arange, [1_000_000] * 2, chunksize=2)
    pool.join()
    del pool
    for number, array in enumerate(arrays):
        array += number
        assert array[0] == number and array[-1] == 999_999 + number


# Its state


def test_states(context):
    pool = context.Pool(1)
    with pytest.raises(ValueError, match="still running"):
        pool.join()
    result = pool.map_async(nap, [0.05] * 3, chunksize=1)
    pool.close()
    pool.close()
    for call in (
        lambda: pool.apply(square, (1,)),
        lambda: pool.map(square, [1]),
        lambda: pool.imap(square, [1]),
        lambda: pool.resize(2),
        lambda: pool.__enter__(),
    ):
        with pytest.raises(ValueError, match="not running"):
            call()
    pool.join()
    pool.join()
    assert result.get() == [0.05] * 3
    pool.terminate()
    pool.terminate()
    pool.join()
    assert "TERMINATE" in repr(pool)


def test_terminate_ends_what_is_not_done(context):
    pool = context.Pool(2)
    called = []
    pending = [pool.apply_async(nap, (600,), error_callback=called.append) for _ in range(5)]
    pending.append(pool.map_async(nap, [600] * 3))
    results = pool.imap(nap, itertools.repeat(600), buffersize=3)
    processes = list(pool._pool)
    pool.terminate()
    pool.terminate()
    pool.close()
    pool.join()
    assert not any(process.is_alive() for process in processes)
    for result in pending:
        with pytest.raises(PoolTerminated):
            result.get()
    assert len(called) == 5
    with pytest.raises(PoolTerminated):
        next(results)
    with pytest.raises(StopIteration):
        next(results)


def test_terminate_while_others_submit_and_wait():
    for round in range(10):
        pool = FORK.Pool(2)
        problems = []

        def work():
            results = []
            try:
                while True:
                    results.append(pool.apply_async(square, (2,), callback=bool))
                    results.append(pool.map_async(square, range(3)))
            except (ValueError, PoolTerminated):
                pass
            for result in results:
                try:
                    assert result.get() in (4, [0, 1, 4])
                except PoolTerminated:
                    pass
                except BaseException as problem:
                    problems.append(problem)

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(round * 0.005)
        (pool.close if round % 2 else pool.terminate)()
        pool.join()
        for thread in threads:
            thread.join()
        assert not problems


def test_an_unclosed_pool_warns_and_leaves_no_worker():
    pool = FORK.Pool(2)
    processes = list(pool._pool)
    pool.map(square, range(5))
    with pytest.warns(ResourceWarning, match="unclosed"):
        del pool
    until(lambda: not any(process.is_alive() for process in processes))


def test_a_pool_is_not_pickled(pool):
    with pytest.raises(NotImplementedError):
        pickle.dumps(pool)


def test_thread_pools_are_the_standard_librarys():
    with ThreadPool(2) as pool:
        assert pool.map(square, [1, 2]) == [1, 4]


# Beyond


def test_resize_under_load():
    with FORK.Pool(2) as pool:
        results = pool.imap_unordered(square, range(6000))
        for processes in 5, 1, 4, 2:
            pool.resize(processes)
            for _ in range(1000):
                next(results)
            until(lambda: len(pool._pool) == processes)
        assert len(list(results)) == 2000
        assert len(set(pool.map(slow_pid, range(40), chunksize=1))) <= 2


def slow_pid(_):
    time.sleep(0.005)
    return os.getpid()


def test_timeouts(context):
    # The initializer has a new worker import this module before the time of a task runs.
    with context.Pool(1, begin, timeout=0.2) as pool:
        with pytest.raises(procession.TaskTimeoutError, match="nap"):
            pool.apply(nap, (600,))
        assert pool.apply(nap, (0.5,), timeout=600) == 0.5
        results = pool.imap(nap, [0, 600, 0.01])
        assert next(results) == 0
        with pytest.raises(procession.TimeoutError):
            next(results)
        assert next(results) == 0.01
        with pytest.raises(procession.TaskTimeoutError):
            pool.map(nap, [0, 600])


def test_a_timeout_hurts_only_what_takes_too_long():
    with FORK.Pool(2) as pool:
        innocent = pool.map_async(square, range(20_000), chunksize=1)
        ended = 0
        for round in range(40):
            try:
                # It may end at the very moment.
                pool.apply(nap, (0.02 if round % 2 else 0.018,), timeout=0.015)
            except procession.TaskTimeoutError:
                ended += 1
        assert ended and innocent.get() == [x * x for x in range(20_000)]


def test_threads_with_timeouts(pool):
    problems = []

    def work():
        try:
            for number in range(150):
                assert pool.apply(square, (number,), timeout=600) == number * number
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems


def test_cancel():
    with FORK.Pool(1) as pool:
        began = FORK.Queue()
        running = pool.apply_async(tell_and_nap, (began, 600))
        pending = pool.apply_async(square, (1,))
        waiting = pool.map_async(square, range(10))
        began.get()
        assert pending.cancel() and waiting.cancel()
        for result in pending, waiting:
            with pytest.raises(concurrent.futures.CancelledError):
                result.get()
        assert not running.cancel() and not running.ready()
        assert running.cancel(kill=True)
        with pytest.raises(concurrent.futures.CancelledError):
            running.get()
        done = pool.apply_async(square, (2,))
        assert done.get() == 4
        assert not done.cancel() and not done.cancel(kill=True) and done.get() == 4


def tell_and_nap(began, seconds):
    began.put(1)
    time.sleep(seconds)


def test_cancelled_calls_are_not_made_and_others_are():
    with FORK.Pool(2) as pool:
        made = FORK.Array("b", 1000)
        results = [pool.apply_async(make, (made, number)) for number in range(1000)]
        cancelled = [result.cancel(kill=number % 50 == 0) for number, result in enumerate(results)]
        for number, result in enumerate(results):
            if cancelled[number]:
                with pytest.raises(concurrent.futures.CancelledError):
                    result.get()
            else:
                assert result.get() == number
        for number, was_cancelled in enumerate(cancelled):
            if not was_cancelled or number % 50:
                assert made[number] == (not was_cancelled)


def make(made, number):
    made[number] = 1
    return number


def test_more_calls_are_cancelled_than_there_is_room_for_at_once():
    with FORK.Pool(1) as pool:
        for _ in range(70_000):
            pool.map_async(square, [1, 2], 1).cancel()
        assert pool.map(square, [3]) == [9]
        result = pool.apply_async(nap, (600,))
        pending = pool.apply_async(square, (3,))
        assert pending.cancel()
        until(lambda: result.cancel(kill=True))


def test_cancelled_calls_that_are_taken_back_leave_room_for_others():
    with FORK.Pool(1) as pool:
        began = FORK.Queue()
        pool.apply_async(tell_and_nap, (began, 600))
        began.get()
        for _ in range(70_000):
            pool.map_async(square, [1, 2], 1).cancel()
        assert not pool.apply_async(square, (3,)).cancel()
        pool._cancel_pending()
        assert pool.apply_async(square, (3,)).cancel()


def test_progress(pool, capfd, monkeypatch):
    def calls():
        return (
            pool.map(square, range(30), 4, progress=True),
            pool.starmap(product, [(x, x) for x in range(30)], progress=True),
            list(pool.imap(square, iter(range(30)), progress=True)),
            sorted(pool.imap_unordered(square, range(30), progress=True)),
        )

    expected = ([x * x for x in range(30)],) * 4
    for module in "tqdm", "tqdm.auto":
        monkeypatch.setitem(sys.modules, module, None)
    assert calls() == expected
    shown = capfd.readouterr()
    assert shown.out == "" and shown.err.count("30 of 30\n") == 3 and "\r30\n" in shown.err
    with pytest.raises(KeyError):
        pool.map(fail, [1], progress=True)
    monkeypatch.undo()
    pytest.importorskip("tqdm")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert calls() == expected
    assert "30/30" in capfd.readouterr().err


def test_memory_per_child():
    with FORK.Pool(1, max_memory_per_child=400 << 20) as pool:
        first = pool.apply(pid)
        assert pool.apply(pid) == first
        pool.apply(keep_bytes, (500 << 20,))
        assert pool.apply(pid) != first


def keep_bytes(size):
    global KEPT
    KEPT = b"x" * size


def have_children(count):
    with FORK.Pool(count) as pool:
        return pool.map(square, range(count))


def test_workers_that_are_no_daemons_have_children():
    with FORK.Pool(2, daemon=False) as pool:
        assert pool.map(have_children, [1, 2, 3], chunksize=1) == [[0], [0, 1], [0, 1, 4]]
    with FORK.Pool(1) as pool:
        with pytest.raises(AssertionError, match="daemonic"):
            pool.apply(have_children, (1,))


def test_describe(pool):
    began = FORK.Queue()
    result = pool.apply_async(tell_and_nap, (began, 600))
    began.get()
    text = pool.describe()
    assert (
        "task 0 of job" in text
        and "waits" in text
        and all(str(process.pid) in text for process in pool._pool)
    )
    result.cancel(kill=True)


def test_asyncio(pool):
    async def main():
        values = await asyncio.gather(*(pool.aapply(square, (x,)) for x in range(20)))
        with pytest.raises(KeyError):
            await pool.aapply(fail, (1,))
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(pool.aapply(nap, (0.3,)), 0.01)
        ticks = 0
        task = asyncio.create_task(pool.aapply(nap, (0.2,)))
        while not task.done():
            ticks += 1
            await asyncio.sleep(0.01)
        assert ticks > 1
        # What is still to come when the loop is closed.
        late = asyncio.create_task(pool.aapply(nap, (0.2,)))
        await asyncio.sleep(0.05)
        late.cancel()
        return values

    assert asyncio.run(main()) == [x * x for x in range(20)]
    time.sleep(0.3)
    assert pool.apply(square, (2,)) == 4


def test_as_multiprocessing():
    program = """
        import procession, multiprocessing
        procession.install()
        from multiprocessing import Pool
        from multiprocessing.pool import Pool as Class
        def square(x):
            return x * x
        if __name__ == "__main__":
            with Pool(2) as pool:
                assert isinstance(pool, procession.pool.Pool), type(pool)
                print(pool.map(square, range(4)))
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=100
    )
    assert (ran.stdout, ran.stderr) == ("[0, 1, 4, 9]\n", "")
