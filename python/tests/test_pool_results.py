"""How a pool's results come to whoever wants them, and what becomes of those that nobody wants or that cannot be read."""

import asyncio
import collections
import concurrent.futures
import itertools
import os
import signal
import threading

import procession
import pytest
from processes import until
from procession.pool import MaybeEncodingError
from tasks import nap, square

FORK = procession.get_context("fork")


class Counting:
    """A function that counts its calls."""

    def __init__(self):
        self.counter = FORK.Value("i")

    def __call__(self, _):
        with self.counter:
            self.counter.value += 1
        return bytes(1000)


# Iterators that nobody reads


@pytest.mark.parametrize("name", ["imap", "imap_unordered"])
@pytest.mark.parametrize("kind", [list, iter])
def test_an_iterator_that_nobody_reads_is_done(name, kind):
    calls = Counting()
    pool = FORK.Pool(2)
    # More than may wait to be taken.
    getattr(pool, name)(calls, kind(range(100)), buffersize=3)
    pool.close()
    pool.join()
    assert calls.counter.value == 100


def test_results_of_an_iterator_that_nobody_reads_are_dropped(pool):
    calls = Counting()
    results = pool.imap(calls, range(50))
    until(lambda: calls.counter.value == 50)
    del results
    until(lambda: not pool._work.jobs)
    assert pool.map(square, range(5)) == [0, 1, 4, 9, 16]


def test_an_iterator_of_which_something_was_taken_is_cancelled(pool):
    calls = Counting()
    results = pool.imap(calls, itertools.count(), buffersize=10)
    next(results)
    del results
    pool.close()
    # It would never end.
    pool.join()
    assert calls.counter.value < 1000


def test_an_endless_iterator_that_nobody_reads_ends_with_the_pool():
    calls = Counting()
    with FORK.Pool(1) as pool:
        pool.imap_unordered(calls, itertools.count(), buffersize=2)
        until(lambda: calls.counter.value > 50)
    pool.join()


# What cannot be read


class Raising:
    """Something whose unpickling, in the pool's process, raises."""

    def __init__(self, error, size=0):
        self.arguments = os.getpid(), error, bytes(size)

    def __reduce__(self):
        return raise_if_owner, self.arguments


def raise_if_owner(maker, error, _):
    if os.getpid() != maker:
        raise error


@pytest.mark.parametrize("size", [0, 100_000])
@pytest.mark.parametrize("error", [SystemExit(7), KeyboardInterrupt("its own")])
def test_an_unpickling_that_raises_what_handlers_raise_is_an_error_of_its_task(pool, error, size):
    errors = []
    # Collected by a thread of the pool, ...
    pool.apply_async(Raising, (error, size), callback=print, error_callback=errors.append)
    until(lambda: errors)
    assert type(errors[0]) is type(error)
    # ... by this thread, which waits for something else, ...
    result, other = pool.apply_async(Raising, (error, size)), pool.apply_async(nap, (0.3,))
    assert other.get() == 0.3
    for _ in range(2):
        with pytest.raises(type(error)) as caught:
            result.get()
        assert caught.value.args == error.args
    # ... and by another one.
    result, got = pool.apply_async(Raising, (error, size)), []
    thread = threading.Thread(target=lambda: got.append(pool.apply_async(nap, (0.3,)).get()))
    thread.start()
    thread.join()
    assert got == [0.3]
    with pytest.raises(type(error)):
        result.get()
    assert pool.apply(square, (3,)) == 9


class Stop(BaseException):
    pass


class Signalling:
    """Something during whose first unpickling, in the pool's process, a signal comes."""

    def __init__(self, size):
        self.arguments = os.getpid(), bytes(size)

    def __reduce__(self):
        return signal_owner, self.arguments


SIGNALLED = []


def signal_owner(maker, content):
    if os.getpid() != maker and not SIGNALLED:
        SIGNALLED.append(1)
        os.kill(os.getpid(), signal.SIGUSR1)
    return len(content)


@pytest.mark.parametrize("size", [0, 100_000])
def test_what_a_handler_raises_during_an_unpickling_loses_no_result(pool, size):
    def stop(*_):
        raise Stop

    SIGNALLED.clear()
    previous = signal.signal(signal.SIGUSR1, stop)
    try:
        result = pool.apply_async(Signalling, (size,))
        with pytest.raises(Stop):
            result.get()
        assert result.get() == size
    finally:
        signal.signal(signal.SIGUSR1, previous)


# What cannot be told


class Mute(Exception):
    def __repr__(self):
        raise RuntimeError("no words")

    __str__ = __repr__


class RaisesMute(Exception):
    def __reduce__(self):
        raise Mute


class NoAttributes(Exception):
    def __getattribute__(self, name):
        raise RuntimeError(f"no {name}")


class Exits(Exception):
    def __reduce__(self):
        return raise_exit, ()


class TwoArguments(Mute):
    def __init__(self, first, second):
        super().__init__(first)


def raise_exit():
    raise SystemExit(9)


def raise_it(kind, *arguments):
    raise kind(*arguments)


def test_exceptions_that_cannot_be_described_are_errors_of_their_tasks():
    with FORK.Pool(1) as pool:
        (worker,) = pool._pool
        for kind in (RaisesMute, NoAttributes, Exits):
            with pytest.raises(MaybeEncodingError, match=kind.__name__):
                pool.apply(raise_it, (kind,))
        with pytest.raises(MaybeEncodingError, match="TwoArguments"):
            pool.apply(raise_it, (TwoArguments, 1, 2))
        with pytest.raises(MaybeEncodingError, match="Mute"):
            pool.apply(RaisesMute)
        with pytest.raises(Mute):
            pool.apply(raise_it, (Mute,))
        assert list(pool._pool) == [worker]


# Calls


def arguments(*args, **kwargs):
    return args, kwargs


@pytest.mark.parametrize("kwds", [collections.UserDict(a=1), collections.ChainMap({"a": 1})])
def test_keyword_arguments_are_any_mapping(pool, kwds):
    assert pool.apply(arguments, [2], kwds) == ((2,), {"a": 1})


@pytest.mark.parametrize("kwds", [None, [("a", 1)]])
def test_keyword_arguments_are_a_mapping(pool, kwds):
    with pytest.raises(TypeError, match="must be a mapping"):
        pool.apply(arguments, (), kwds)


class Interrupting:
    def __reduce__(self):
        raise KeyboardInterrupt("while it is pickled")


def test_an_argument_whose_pickling_is_interrupted_was_never_handed_out(pool):
    with pytest.raises(KeyboardInterrupt):
        pool.map(square, [Interrupting()])
    results = pool.imap(square, (item for item in [Interrupting()]))
    with pytest.raises(KeyboardInterrupt):
        next(results)
    assert results._job._progress == (0, 0)
    assert list(results) == [] and pool.map(square, [2]) == [4]


def raise_stop():
    raise StopIteration(3)


def test_a_coroutine_has_a_call_that_raises_stop_iteration(pool):
    async def main():
        with pytest.raises(RuntimeError) as caught:
            await asyncio.wait_for(pool.aapply(raise_stop), 60)
        assert isinstance(caught.value.__cause__, StopIteration) and caught.value.__cause__.value == 3

    asyncio.run(main())


def raise_cancelled():
    raise concurrent.futures.CancelledError("its own")


def test_a_call_that_raises_cancelled_error_was_not_cancelled(pool):
    result = pool.apply_async(raise_cancelled)
    with pytest.raises(concurrent.futures.CancelledError, match="its own"):
        result.get()
    assert not result.cancel() and not result._is_cancelled


def test_ten_thousand_calls_are_cancelled():
    with FORK.Pool(1) as pool:
        asleep = pool.apply_async(nap, (600,))
        calls = [pool.apply_async(square, (number,)) for number in range(10_000)]
        assert all(call.cancel() for call in calls)
        after = pool.apply_async(square, (3,))
        until(lambda: asleep.cancel(kill=True))
        assert after.get() == 9
        with pytest.raises(concurrent.futures.CancelledError):
            calls[-1].get()


# What takes long to be read

READING, READ_ON = threading.Event(), threading.Event()


class Slow:
    """Something whose unpickling, in the pool's process, waits."""

    def __reduce__(self):
        return wait_if_owner, (os.getpid(),)


def wait_if_owner(maker):
    if os.getpid() == maker:
        return None
    READING.set()
    return READ_ON.wait(60)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def test_deaths_are_told_while_a_result_for_a_callback_is_read(pool):
    READING.clear()
    READ_ON.clear()
    got = []
    result = pool.apply_async(Slow, callback=got.append)
    assert READING.wait(60)
    with pytest.raises(procession.WorkerDied):
        pool.apply(die)
    assert pool.map(square, [1, 2, 3], 1) == [1, 4, 9]
    assert not result.ready() and not got
    READ_ON.set()
    # It was not waited for in vain.
    assert result.get() is True and got == [True]


def test_a_large_result_for_a_callback(pool):
    got = []
    assert pool.apply_async(bytes, (1_000_000,), callback=got.append).get() == bytes(1_000_000)
    assert got == [bytes(1_000_000)]
    result = pool.apply_async(raise_it, (ValueError, "x" * 100_000), error_callback=got.append)
    with pytest.raises(ValueError, match="xxx"):
        result.get()
    assert isinstance(got[1], ValueError)
