"""concurrent.futures over the package's contexts."""

import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

import procession
import pytest

WATCHDOG = 120


@pytest.fixture(params=["fork", "spawn", "forkserver"])
def context(request):
    return procession.get_context(request.param)


READY = None


def initialize(value):
    global READY
    READY = value


def initialized(_):
    return READY


def square(x):
    return x * x


def fail(text):
    raise ValueError(text)


def not_picklable():
    return threading.Lock()


def put(queue, lock, value, number):
    with lock:
        value.value += number
    queue.put(number)
    return os.getpid()


def kill_itself():
    os.kill(os.getpid(), signal.SIGKILL)


def test_results(context):
    with ProcessPoolExecutor(2, mp_context=context) as executor:
        assert list(executor.map(square, range(50), chunksize=7)) == [x * x for x in range(50)]
        futures = [executor.submit(square, x) for x in range(50)]
        assert {future.result() for future in as_completed(futures)} == {x * x for x in range(50)}
        large = b"x" * 3_000_000
        assert executor.submit(bytes.upper, large).result() == large.upper()


def test_an_initializer(context):
    with ProcessPoolExecutor(2, mp_context=context, initializer=initialize, initargs=(7,)) as executor:
        assert set(executor.map(initialized, range(8))) == {7}


def test_errors(context):
    with ProcessPoolExecutor(1, mp_context=context) as executor:
        with pytest.raises(ValueError, match="bad") as caught:
            executor.submit(fail, "bad").result()
        assert "in fail" in str(caught.value.__cause__)
        # What cannot be pickled, on the way there and on the way back; the executor goes on.
        with pytest.raises((TypeError, AttributeError)):
            executor.submit(square, threading.Lock()).result()
        with pytest.raises((TypeError, AttributeError)):
            executor.submit(not_picklable).result()
        assert executor.submit(square, 3).result() == 9


def test_a_killed_worker_breaks_the_pool(context):
    with ProcessPoolExecutor(2, mp_context=context) as executor:
        futures = [executor.submit(kill_itself), *(executor.submit(square, x) for x in range(20))]
        with pytest.raises(BrokenProcessPool):
            for future in futures:
                future.result()
        with pytest.raises(BrokenProcessPool):
            executor.submit(square, 1)


def test_shared_objects_among_the_arguments(context):
    queue, lock, value = context.Queue(), context.Lock(), context.Value("i", 0)
    with ProcessPoolExecutor(2, mp_context=context) as executor:
        futures = [executor.submit(put, queue, lock, value, number) for number in range(20)]
        assert all(future.result() for future in futures)
    assert sorted(queue.get() for _ in range(20)) == list(range(20))
    assert value.value == sum(range(20))


def test_workers_of_one_task():
    context = procession.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as executor:
        pids = {executor.submit(os.getpid).result() for _ in range(3)}
    assert len(pids) == 3


def test_shutdown_with_work_to_do(context):
    executor = ProcessPoolExecutor(1, mp_context=context)
    futures = [executor.submit(square, x) for x in range(100)]
    executor.shutdown(cancel_futures=True)
    assert all(future.done() for future in futures)
    assert futures[0].cancelled() or futures[0].result() == 0
    with pytest.raises(RuntimeError):
        executor.submit(square, 1)
