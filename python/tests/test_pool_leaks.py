"""What pools have had is given back: descriptors, processes, threads and memory."""

import gc
import os
import threading
import time
import weakref

import procession
import pytest


def descriptors():
    """How many there are, without those of arenas, which are kept for objects to come."""
    leads_to = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
    return sum("procession-arena" not in path for path in leads_to)


@pytest.fixture
def nothing_left(context):
    def use():
        with context.Pool(1) as pool:
            pool.apply(abs, (1,))

    use()  # What a start method sets up once.
    gc.collect()
    before, threads = descriptors(), threading.active_count()
    yield
    gc.collect()
    assert descriptors() == before
    assert threading.active_count() == threads
    assert not procession.active_children()


@pytest.mark.parametrize("end", ["close", "terminate"])
def test_an_ended_pool_leaves_nothing(context, nothing_left, end):
    for _ in range(3):
        pool = context.Pool(1)
        assert pool.map(abs, [-1, -2], chunksize=1) == [1, 2]
        getattr(pool, end)()
        pool.join()


def test_results_whose_errors_were_raised_keep_nothing(context, nothing_left):
    def use():
        pool = context.Pool(1)
        call, results, some = (
            pool.apply_async(int, ("x",)),
            pool.imap(int, ["x", "1"]),
            pool.map_async(int, ["x"]),
        )
        errors = []
        for take in (call.get, results.next, some.get):
            try:
                take()
            except ValueError as error:
                # Its traceback leads to this frame, and so to the results that have it.
                errors.append(error)
        assert len(errors) == 3
        pool.terminate()
        pool.join()
        return weakref.ref(pool)

    gone = use()
    gc.collect()
    assert gone() is None


def test_workers_that_are_killed_at_their_start_leave_nothing(context, nothing_left):
    for _ in range(5):
        pool = context.Pool(3)
        for worker in procession.active_children():
            worker.kill()
        pool.terminate()
        pool.join()
        del pool, worker


def test_results_of_a_terminated_pool_keep_nothing(context, nothing_left):
    def use():
        pool = context.Pool(1)
        asleep = pool.apply_async(time.sleep, (60,))
        pool.terminate()
        with pytest.raises(procession.PoolTerminated):
            asleep.get()
        return weakref.ref(pool)

    gone = use()
    gc.collect()
    assert gone() is None
