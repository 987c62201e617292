"""procession.ProcessPoolExecutor: the interface of concurrent.futures, and what a dead worker means to it."""

import asyncio
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from concurrent.futures import CancelledError, as_completed, wait
from concurrent.futures.process import BrokenProcessPool

import procession
import pytest
from processes import until
from tasks import nap, square


def fail(text):
    raise ValueError(text)


def die(number=signal.SIGKILL):
    os.kill(os.getpid(), number)


def die_once(path):
    with open(path, "a") as file:
        file.write("x")
    if os.path.getsize(path) == 1:
        die()
    return os.path.getsize(path)


def has_children():
    child = procession.Process(target=square, args=(2,))
    child.start()
    child.join()
    return child.exitcode


READY = None


def initialize(value):
    global READY
    READY = value


def initialized():
    return READY


def refuse():
    raise OSError("not today")


def test_calls(context):
    with procession.ProcessPoolExecutor(2, context, initialize, ("ready",)) as executor:
        assert executor.submit(square, 3).result() == 9
        assert executor.submit(pow, base=2, exp=5).result() == 32
        assert executor.submit(initialized).result() == "ready"
        futures = [executor.submit(square, i) for i in range(50)]
        assert sorted(future.result() for future in as_completed(futures)) == [i * i for i in range(50)]
        with pytest.raises(ValueError, match="bad") as error:
            executor.submit(fail, "bad").result()
        assert "in fail" in str(error.value.__cause__)
    with pytest.raises(RuntimeError, match="shutdown"):
        executor.submit(square, 1)


def test_map():
    with procession.ProcessPoolExecutor(2) as executor:
        assert list(executor.map(pow, [2, 3, 4], [1, 2, 3])) == [2, 9, 64]
        assert list(executor.map(pow, range(1000), [2] * 1000, chunksize=10)) == [i * i for i in range(1000)]
        results = executor.map(square, iter(int, 1), buffersize=4)
        assert [next(results) for _ in range(20)] == [0] * 20
        results.close()
        with pytest.raises(TimeoutError):
            list(executor.map(nap, [30], timeout=0.2))
        with pytest.raises(ValueError):
            executor.map(square, [1], chunksize=0)
        with pytest.raises(ZeroDivisionError):
            executor.map(square, (1 // (1 - i) for i in range(3)))
        executor.shutdown(wait=False, cancel_futures=True)
        executor._pool.terminate()


def test_arguments():
    for wrong in (0, -1):
        with pytest.raises(ValueError):
            procession.ProcessPoolExecutor(wrong)
    with pytest.raises(TypeError):
        procession.ProcessPoolExecutor(initializer=3)
    with pytest.raises(ValueError):
        procession.ProcessPoolExecutor(max_tasks_per_child=0)
    with pytest.raises(TypeError):
        procession.ProcessPoolExecutor(max_tasks_per_child="1")


def test_a_dead_worker_fails_its_call_alone(context):
    with procession.ProcessPoolExecutor(2, context) as executor:
        slow = executor.submit(nap, 1)
        with pytest.raises(BrokenProcessPool) as error:
            executor.submit(die).result()
        assert isinstance(error.value, procession.WorkerDied)
        assert error.value.signal is signal.SIGKILL
        assert slow.result() == 1
        assert executor.submit(square, 4).result() == 16
        with pytest.raises(BrokenProcessPool):
            list(executor.map(os._exit, [3]))
        assert list(executor.map(square, [5])) == [25]


def test_a_call_is_made_again(tmp_path):
    with procession.ProcessPoolExecutor(2, retries=1) as executor:
        assert executor.submit(die_once, tmp_path / "tries").result() == 2


def test_a_call_takes_too_long():
    with procession.ProcessPoolExecutor(1, timeout=0.2) as executor:
        with pytest.raises(procession.TaskTimeoutError):
            executor.submit(nap, 60).result()
        assert executor.submit(square, 2).result() == 4


def test_an_initializer_that_fails_ends_the_executor():
    executor = procession.ProcessPoolExecutor(2, initializer=refuse)
    with pytest.raises(BrokenProcessPool) as error:
        executor.submit(square, 1).result()
    assert "not today" in str(error.value.__cause__)
    with pytest.raises(BrokenProcessPool):
        executor.submit(square, 1)
    executor.shutdown()


def test_futures_are_cancelled():
    with procession.ProcessPoolExecutor(1) as executor:
        first = executor.submit(nap, 0.5)
        while not first.running():
            time.sleep(0.01)
        called = []
        others = [executor.submit(nap, 60) for _ in range(3)]
        others[0].add_done_callback(called.append)
        assert not first.cancel()
        assert all(future.cancel() for future in others)
        assert all(future.cancel() and future.cancelled() and future.done() for future in others)
        assert called == [others[0]]
        assert not wait(others).not_done
        with pytest.raises(CancelledError):
            others[1].result()
        assert first.result() == 0.5
        assert not first.cancel()


def test_cancelling_races_with_beginning():
    with procession.ProcessPoolExecutor(2) as executor:
        for _ in range(200):
            future = executor.submit(square, 3)
            if future.cancel():
                assert future.cancelled()
            else:
                assert future.result() == 9
        assert executor.submit(square, 4).result() == 16


def test_a_shutdown_cancels_what_has_not_begun():
    executor = procession.ProcessPoolExecutor(1)
    first = executor.submit(nap, 0.5)
    while not first.running():
        time.sleep(0.01)
    others = [executor.submit(nap, 60) for _ in range(100)]
    executor.shutdown(cancel_futures=True)
    assert first.result() == 0.5
    assert all(future.cancelled() for future in others)


def test_a_shutdown_without_waiting():
    executor = procession.ProcessPoolExecutor(2)
    futures = [executor.submit(nap, 0.1) for _ in range(6)]
    executor.shutdown(wait=False)
    assert [future.result() for future in futures] == [0.1] * 6
    executor.shutdown()


def test_workers_may_have_children():
    with procession.ProcessPoolExecutor(1) as executor:
        assert executor.submit(has_children).result() == 0


def test_threads_share_an_executor():
    with procession.ProcessPoolExecutor(2) as executor:
        sums = []

        def work(start):
            sums.append(sum(executor.submit(square, start + i).result() for i in range(100)))

        threads = [threading.Thread(target=work, args=(i * 100,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(sums) == sum(i * i for i in range(400))


def test_an_event_loop():
    async def main():
        loop = asyncio.get_running_loop()
        with procession.ProcessPoolExecutor(2) as executor:
            calls = [loop.run_in_executor(executor, square, i) for i in range(20)]
            return await asyncio.gather(*calls)

    assert asyncio.run(main()) == [i * i for i in range(20)]


KEEPING = {
    "an executor": "",
    "an executor that is shut down": "executor.shutdown(wait=False)",
    "no executor": "del executor",
    "an executor of a function": "del executor; submit_all()",
    "an unread map": "executor.map(work, range(4, 8)); del executor",
}


@pytest.mark.parametrize("keeping", KEEPING)
def test_what_was_submitted_is_done_before_the_interpreter_ends(keeping):
    program = f"""
        import os, procession, time

        def work(number):
            time.sleep(0.3)
            os.write(1, b"done %d\\n" % number)

        def submit_all():
            executor = procession.ProcessPoolExecutor(2)
            for number in range(4, 8):
                executor.submit(work, number)

        if __name__ == "__main__":
            executor = procession.ProcessPoolExecutor(2)
            for number in range(4):
                executor.submit(work, number)
            {KEEPING[keeping]}
        """
    done = subprocess.run(
        [sys.executable, "-Wd", "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    count = 8 if "range(4" in KEEPING[keeping] or "submit_all" in KEEPING[keeping] else 4
    assert sorted(done.stdout.splitlines()) == [f"done {number}" for number in range(count)]


HELD = []


def submit_to_one_that_is(kept, path):
    executor = procession.ProcessPoolExecutor(1)
    for _ in range(3):
        executor.submit(write, path)
    if kept:
        HELD.append(executor)


@pytest.mark.parametrize("kept", [False, True])
def test_what_was_submitted_is_done_before_a_child_ends(context, tmp_path, kept):
    process = context.Process(target=submit_to_one_that_is, args=(kept, tmp_path / "done"))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert os.path.getsize(tmp_path / "done") == 3


def test_nothing_is_submitted_while_the_interpreter_ends():
    program = """
        import procession, threading, time

        def use():
            executor = procession.ProcessPoolExecutor(1)
            threading.main_thread().join()
            time.sleep(0.2)
            for executor in executor, used:
                try:
                    executor.submit(abs, 1)
                except RuntimeError as error:
                    print(error)

        if __name__ == "__main__":
            used = procession.ProcessPoolExecutor(1)
            used.submit(abs, 1).result()
            threading.Thread(target=use).start()
        """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("cannot schedule new futures after interpreter shutdown\n") == 2


def test_an_executor_that_nobody_holds_ends_when_its_calls_are_done():
    executor = procession.ProcessPoolExecutor(2)
    futures = [executor.submit(nap, 0.2) for _ in range(4)]
    results = executor.map(nap, [0.2] * 2)
    workers = list(executor._processes.values())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del executor
        gc.collect()
        assert [future.result() for future in futures] == [0.2] * 4
        assert list(results) == [0.2] * 2
        del futures, results
        until(lambda: not any(worker.is_alive() for worker in workers))
    # They were not killed.
    assert [worker.exitcode for worker in workers] == [0, 0]


def write(path):
    with open(path, "a") as file:
        file.write("x")
    time.sleep(0.01)


def test_a_map_that_nobody_reads_is_done(tmp_path):
    with procession.ProcessPoolExecutor(2) as executor:
        executor.map(write, [tmp_path / str(number) for number in range(40)])
        executor.map(write, [tmp_path / str(number) for number in range(40, 80)], chunksize=3, buffersize=1)
    assert len(os.listdir(tmp_path)) == 80


def test_a_map_of_which_something_was_taken_is_cancelled(tmp_path):
    with procession.ProcessPoolExecutor(1) as executor:
        next(executor.map(write, [tmp_path / str(number) for number in range(1000)]))
    assert len(os.listdir(tmp_path)) < 1000


def test_threads_make_one_pool(monkeypatch):
    made = []

    class Counted(procession.futures._Pool):
        def __init__(self, *args, **kwargs):
            made.append(self)
            time.sleep(0.05)
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(procession.futures, "_Pool", Counted)
    with procession.ProcessPoolExecutor(1) as executor:
        barrier = threading.Barrier(5)
        futures = []

        def submit():
            barrier.wait()
            futures.append(executor.submit(square, 3))

        threads = [threading.Thread(target=submit) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [future.result() for future in futures] == [9] * 5
    assert len(made) == 1


def raise_it(error):
    raise error


def test_exceptions_of_calls_are_just_that():
    with procession.ProcessPoolExecutor(1) as executor:
        (worker,) = [executor.submit(os.getpid).result()]
        with pytest.raises(SystemExit) as exit:
            executor.submit(raise_it, SystemExit(3)).result()
        assert exit.value.code == 3
        future = executor.submit(raise_it, CancelledError("its own"))
        with pytest.raises(CancelledError, match="its own"):
            future.result()
        assert not future.cancelled() and isinstance(future.exception(), CancelledError)
        for error in procession.TimeoutError("its own"), TimeoutError("its own"):
            with pytest.raises(type(error), match="its own"):
                list(executor.map(raise_it, [error], timeout=60))
        with pytest.raises(RuntimeError, match="StopIteration"):
            list(executor.map(raise_it, [StopIteration(1)]))
        assert executor.submit(os.getpid).result() == worker


@pytest.mark.parametrize("end", ["terminate_workers", "kill_workers"])
def test_workers_are_ended(end):
    executor = procession.ProcessPoolExecutor(1, retries=1)
    getattr(procession.ProcessPoolExecutor(1), end)()
    running = executor.submit(nap, 600)
    until(running.running)
    waiting = executor.submit(nap, 600)
    workers = dict(executor._processes)
    assert executor._max_workers == len(workers) == 1
    assert all(worker.pid == pid for pid, worker in workers.items())
    getattr(executor, end)()
    with pytest.raises(BrokenProcessPool):
        running.result()
    assert waiting.cancelled()
    assert not any(worker.is_alive() for worker in workers.values())
    with pytest.raises(RuntimeError, match="shutdown"):
        executor.submit(square, 1)
    executor.shutdown()
