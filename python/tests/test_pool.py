"""Pools: what the standard library's do."""

import functools
import itertools
import os
import pickle
import threading
import time

import procession
import pytest
from processes import until
from procession import PoolTerminated
from procession.pool import ThreadPool
from tasks import fail, fail_at_3, nap, pid, product, square

FORK = procession.get_context("fork")


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
