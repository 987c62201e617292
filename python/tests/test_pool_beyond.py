"""What only these pools do: sizes, limits, cancelling, progress."""

import asyncio
import concurrent.futures
import os
import subprocess
import sys
import textwrap
import threading
import time
import warnings

import procession
import pytest
from processes import until
from tasks import fail, nap, pid, product, square

FORK = procession.get_context("fork")


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
    # The initializer has a new worker import what it calls before the time of a task runs.
    with context.Pool(1, pid, timeout=0.2) as pool:
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
