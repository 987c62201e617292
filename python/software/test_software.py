"""Real software over the package's contexts, and in programs in which it has taken the place of ``multiprocessing``."""

import concurrent.futures
import concurrent.futures.process
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy
import procession
import pytest

METHODS = ["fork", "spawn", "forkserver"]
PROGRAMS = pathlib.Path(__file__).parent / "programs"
WATCHDOG = 240


def double(array):
    return array * 2


def fail(number):
    raise ValueError(f"number {number}")


def killed(_):
    os.kill(os.getpid(), signal.SIGKILL)


def start(values):
    global started
    started = values


def initialised(number):
    return started[0] + number


@pytest.mark.parametrize("method", METHODS)
def test_process_pool_executor(method):
    context = procession.get_context(method)
    queue = context.Queue()
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as executor:
        arrays = [numpy.full(200_000, number) for number in range(20)]
        for array, doubled in zip(arrays, executor.map(double, arrays)):
            assert (doubled == 2 * array).all()
        with pytest.raises(ValueError, match="number 3"):
            executor.submit(fail, 3).result(timeout=WATCHDOG)
        executor.submit(put, queue, "a queue in a task").result(timeout=WATCHDOG)
        assert queue.get(timeout=WATCHDOG) == "a queue in a task"
    with concurrent.futures.ProcessPoolExecutor(2, context, start, ([40],)) as executor:
        assert list(executor.map(initialised, range(3))) == [40, 41, 42]
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as executor:
        with pytest.raises(concurrent.futures.process.BrokenProcessPool):
            executor.submit(killed, None).result(timeout=WATCHDOG)


def put(queue, value):
    queue.put(value)


@pytest.mark.parametrize("method", METHODS)
def test_loky(method):
    import loky

    context = procession.get_context(method)
    with loky.ProcessPoolExecutor(2, context=context) as executor:
        assert list(executor.map(double, range(50))) == [2 * number for number in range(50)]


def run(program, *arguments):
    """The output of a program that was not written for the package."""
    done = subprocess.run(
        [sys.executable, "-m", "procession", PROGRAMS / f"{program}.py", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        timeout=WATCHDOG,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("program", sorted(path.stem for path in PROGRAMS.glob("*.py")))
def test_program(program, method):
    assert run(program, method).endswith("as expected\n")


def test_a_worker_that_is_killed_does_not_hang_the_others():
    context = procession.get_context("forkserver")
    queue, begun = context.Queue(1), context.SimpleQueue()
    workers = [context.Process(target=endlessly, args=(queue, begun), daemon=True) for _ in range(3)]
    for worker in workers:
        worker.start()
    for _ in range(3):
        begun.get()
    for worker in workers[:2]:
        time.sleep(0.05)
        worker.kill()
    for _ in range(100):
        queue.get(timeout=WATCHDOG)


def endlessly(queue, begun):
    begun.put(None)
    while True:
        queue.put(os.getpid())
