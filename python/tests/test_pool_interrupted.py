"""Signal handlers that raise in the middle of a pool's calls, and some that end the pool there."""

import gc
import os
import resource
import signal
import threading
import time

import procession
import pytest
from processes import HUNG, METHODS, alarms, ended, finish, fork, started, until
from tasks import nap, square

FORK = procession.get_context("fork")


class Interrupted(Exception):
    pass


def interrupt(*_):
    raise Interrupted


def descriptors():
    return [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]


def used():
    """Descriptors but for those of arenas, threads and children."""
    gc.collect()
    with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
        children = file.read().split()
    return sum("procession-arena" not in path for path in descriptors()), threading.active_count(), children


def alone(work, *args):
    """Run this in a process without other threads, one of which might get its signals."""

    def child():
        signal.alarm(HUNG)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        work(*args)

    assert ended(fork(child)) == 0


# Handing out


@pytest.mark.parametrize("wrong", [{"timeout": -1}, {"timeout": 0}, {"retries": -1}])
def test_what_is_refused_is_not_handed_out(wrong):
    counter = FORK.Value("i")
    pool = FORK.Pool(1)
    for call in (
        lambda: pool.apply(count, (counter,), **wrong),
        lambda: pool.apply_async(count, (counter,), callback=print, **wrong),
        lambda: pool.map(count, [counter], **wrong),
        lambda: pool.map_async(count, [counter], **wrong),
        lambda: pool.starmap(count, [(counter,)], **wrong),
        lambda: pool.imap(count, [counter], **wrong),
        lambda: pool.imap_unordered(count, iter([counter]), **wrong),
    ):
        with pytest.raises(ValueError):
            call()
        assert pool._work.jobs == 0
    pool.close()
    pool.join()
    assert counter.value == 0


def count(counter):
    with counter:
        counter.value += 1


CALLS = {
    "apply_async": lambda pool: pool.apply_async(square, (2,), callback=bool, timeout=600),
    "map_async": lambda pool: pool.map_async(square, range(300), chunksize=1, timeout=600),
    "imap": lambda pool: pool.imap(square, iter(range(300)), timeout=600),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_is_interrupted_when_it_is_half_handed_out_ends(name, monkeypatch):
    def limit(*_):
        raise Interrupted

    pool = FORK.Pool(1)
    monkeypatch.setattr(pool._supervisor, "limit", limit)
    with pytest.raises(Interrupted):
        CALLS[name](pool)
    pool.close()
    pool.join()
    assert pool._work.jobs == 0


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_is_interrupted_anywhere_ends(name):
    alone(interrupt_anywhere, CALLS[name])


def interrupt_anywhere(call):
    pool = FORK.Pool(2)
    call(pool)
    with alarms(interrupt):
        for round in range(400):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.00001 + 0.000003 * (round % 200))
                call(pool)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Interrupted:
                pass
    pool.close()
    pool.join()
    assert pool._work.jobs == 0


# Making a pool


class Interrupts(procession.pool.Pool):
    """Ctrl-C comes while the second worker starts."""

    made = 0

    @staticmethod
    def Process(ctx, *args, **kwds):
        Interrupts.made += 1
        if Interrupts.made % 3 == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return ctx.Process(*args, **kwds)


@pytest.mark.parametrize("method", METHODS)
def test_ctrl_c_while_a_pool_is_made_leaves_nothing(method):
    # As `alone`; a forked child could not use its parent's fork server.
    with started(make_interrupted, method, method="spawn") as process:
        finish(process)


def make_interrupted(method):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    context = procession.get_context(method)
    # What a start method sets up once.
    context.Pool(1).terminate()
    before = used()
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            Interrupts(3, context=context)
    assert used() == before


def test_a_handler_that_raises_while_a_pool_is_made_leaves_nothing():
    alone(make_with_alarms)


def make_with_alarms():
    FORK.Pool(1).terminate()
    before = used()
    raised = 0
    with alarms(interrupt):
        for round in range(60):
            pool = None
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.0003 + 0.0001 * round)
                pool = FORK.Pool(2)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Interrupted:
                raised += 1
            if pool is not None:
                pool.terminate()
    pool = None
    # It may have come when there was a pool that was not yet named; that ends by itself.
    until(lambda: used() == before)
    assert raised


def test_a_pool_whose_thread_cannot_be_started_leaves_nothing(monkeypatch):
    start = threading.Thread.start

    def refuse(thread):
        if thread.name == "PoolSupervisor":
            raise RuntimeError("can't start new thread")
        start(thread)

    FORK.Pool(1).terminate()
    before = used()
    monkeypatch.setattr(threading.Thread, "start", refuse)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="can't start"):
            FORK.Pool(3)
    assert used() == before


def test_a_pool_for_which_there_are_too_few_descriptors_leaves_no_pidfd():
    alone(make_with_few_descriptors)


def make_with_few_descriptors():
    FORK.Pool(1).terminate()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(descriptors()) + 20, most))
    for _ in range(3):
        with pytest.raises(OSError):
            FORK.Pool(16)
    # CPython leaves a pipe where there is none for the second of a process, for one.
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    gc.collect()
    assert not any("pidfd" in path for path in descriptors())
    assert not procession.active_children()


def blocked():
    return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def put_blocked(queue):
    queue.put(blocked())


@pytest.mark.parametrize("late", [False, True])
def test_a_forkserver_that_the_pool_starts_blocks_no_signal(late, monkeypatch):
    from multiprocessing.forkserver import _forkserver

    context = procession.get_context("forkserver")
    with context.Pool(1) as pool:
        first = pool.apply(os.getpid)
        if late:
            # As when it dies just after it was seen to run.
            monkeypatch.setattr("procession._spawn.Start._ensure_servers", lambda _: None)
        os.kill(_forkserver._forkserver_pid, signal.SIGKILL)
        os.kill(first, signal.SIGKILL)
        until(lambda: pool.apply(os.getpid, retries=10) != first)
        queue = context.Queue()
        process = context.Process(target=put_blocked, args=(queue,))
        process.start()
        assert queue.get() is False and pool.apply(blocked) is False
        process.join()


# Handlers that end the pool


def resize(pool):
    pool.resize(3)
    pool.resize(2)


def kill(pool):
    pool.apply_async(nap, (600,)).cancel(kill=True)


def expect_callbacks(pool):
    pool.apply_async(square, (2,), callback=bool)


def call_and_resize(pool):
    pool.apply_async(square, (2,)).get()
    resize(pool)


@pytest.mark.parametrize("use", [resize, kill, expect_callbacks, call_and_resize])
def test_a_signal_handler_ends_the_pool(use):
    for round in range(25):
        pool = FORK.Pool(2)
        done = []

        def end(*_):
            pool.terminate()
            pool.join()
            done.append(True)

        with alarms(end):
            signal.setitimer(signal.ITIMER_REAL, 0.001 + 0.0003 * round)
            try:
                while not done:
                    use(pool)
            except (ValueError, procession.PoolTerminated) as error:
                assert done, error
        assert not pool._pool


def test_resizing_while_the_pool_ends():
    for _ in range(10):
        pool = FORK.Pool(2)
        errors = []

        def work():
            try:
                while True:
                    resize(pool)
            except BaseException as error:
                errors.append(str(error))

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        time.sleep(0.01)
        pool.terminate()
        for thread in threads:
            thread.join()
        assert errors == ["Pool not running"] * 2


def test_a_handler_that_the_workers_inherit_does_not_keep_them():
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        pool = FORK.Pool(2)
        result = pool.map_async(nap, [600] * 2, chunksize=1)
        until(lambda: len(pool._work.running()) == 2)
        # They have a second, and not their naps.
        pool.terminate()
        with pytest.raises(procession.PoolTerminated):
            result.get()
    finally:
        signal.signal(signal.SIGTERM, before)
