"""What travels into pools and out of them: exceptions, functions, arrays."""

import functools
import os
import pickle
import sys
import threading

import numpy
import procession
import pytest
from procession.pool import MaybeEncodingError
from tasks import call, fail, pid, product, square

FORK = procession.get_context("fork")


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
    for attempt in (
        lambda: pool.apply(fail, (1,)),
        lambda: pool.map(fail, [1]),
        lambda: list(pool.imap(fail, [1])),
    ):
        with pytest.raises(KeyError) as caught:
            attempt()
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
    for attempt in (
        lambda: pool.apply(lambda: 1),
        lambda: pool.map(lambda x: x, [1]),
        lambda: next(pool.imap(lambda x: x, [1])),
        lambda: pool.apply(square, (lambda: 1,)),
    ):
        with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
            attempt()
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
