"""What callbacks may do, and what becomes of a pool whose callbacks do what they may not."""

import threading

import procession
import pytest
from tasks import square

FORK = procession.get_context("fork")


def test_a_callback_that_waits_for_its_pool_is_told_that_it_cannot():
    told = []

    def callback(_):
        pool.close()
        try:
            pool.join()
        except RuntimeError as error:
            told.append(str(error))

    pool = FORK.Pool(1)
    assert pool.apply_async(square, (2,), callback=callback).get() == 4
    pool.join()
    assert len(told) == 1 and told[0].startswith("cannot join current thread")


def test_a_done_callback_that_waits_for_its_executor_is_told_that_it_cannot():
    told = []

    def callback(_):
        try:
            executor.shutdown()
        except RuntimeError as error:
            told.append(str(error))

    executor = procession.ProcessPoolExecutor(1, FORK)
    go_on = FORK.Event()
    future = executor.submit(wait_and_square, go_on, 2)
    future.add_done_callback(callback)
    go_on.set()
    assert future.result() == 4
    executor.shutdown()
    assert len(told) == 1 and told[0].startswith("cannot join current thread")


def wait_and_square(event, x):
    event.wait()
    return square(x)


def test_a_callback_terminates_its_pool():
    ended = threading.Event()

    def callback(_):
        pool.terminate()
        pool.join()
        ended.set()

    pool = FORK.Pool(1)
    assert pool.apply_async(square, (2,), callback=callback).get() == 4
    assert ended.is_set()
    with pytest.raises(ValueError, match="not running"):
        pool.apply(square, (2,))


@pytest.mark.parametrize("problem", [RuntimeError, SystemExit])
def test_a_hook_that_raises_ends_no_later_callback(problem, monkeypatch, capfd):
    def hook(_):
        raise problem("by the hook")

    def wrong(_):
        raise ZeroDivisionError

    monkeypatch.setattr(threading, "excepthook", hook)
    with FORK.Pool(1) as pool:
        assert pool.apply_async(square, (2,), callback=wrong).get() == 4
        called = []
        assert pool.apply_async(square, (3,), callback=called.append).get() == 9 == called[0]
    text = capfd.readouterr().err
    assert "ZeroDivisionError" in text and "by the hook" in text
