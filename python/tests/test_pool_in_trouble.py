"""Pools whose workers die, or whose end is a bad one."""

import ctypes
import faulthandler
import gc
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time

import procession
import pytest
from processes import ended, fork, until
from procession import PoolBroken, WorkerDied
from tasks import nap, pid, square

FORK = procession.get_context("fork")


def die(how):
    # Without a word on standard error, and without a core file.
    faulthandler.disable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if how == "fault":
        ctypes.string_at(0)
    elif how == "_exit":
        os._exit(7)
    elif how == "exit":
        sys.exit(3)
    os.kill(os.getpid(), how)
    time.sleep(600)


def die_once(path):
    """Dies the first time."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return "done"
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)


def kill(process):
    """Kills a worker, which may have ended."""
    try:
        os.kill(process.pid, signal.SIGKILL)
        return True
    except ProcessLookupError:
        return False


class Killer:
    """Kills one worker of a pool after another."""

    def __init__(self, pool, longest=0.02):
        self.pids = set()
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.run, args=(pool, longest))

    def run(self, pool, longest):
        while not self.stop.wait(random.random() * longest):
            worker = random.choice(list(pool._pool) or [None])
            if worker is not None:
                self.pids.add(worker.pid)
                kill(worker)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()


# Deaths


@pytest.mark.parametrize(
    "how, status",
    [
        (signal.SIGKILL, -signal.SIGKILL),
        (signal.SIGTERM, -signal.SIGTERM),
        (signal.SIGABRT, -signal.SIGABRT),
        ("fault", -signal.SIGSEGV),
        ("_exit", 7),
        ("exit", 3),
    ],
)
def test_a_worker_that_dies_is_an_error_of_its_task(how, status):
    with FORK.Pool(2) as pool:
        others = pool.map_async(square, range(1000), chunksize=1)
        with pytest.raises(WorkerDied) as caught:
            pool.apply(die, (how,))
        died = caught.value
        assert died.exitcode == status and died.pid not in (process.pid for process in pool._pool)
        assert died.signal == (-status if status < 0 else None)
        assert "die" in died.task and str(died.pid) in str(died)
        assert others.get() == [x * x for x in range(1000)]
        assert len(pool.map(pid, range(10))) == 10
        until(lambda: len(pool._pool) == 2)


def test_deaths_with_every_start_method(context, tmp_path):
    with context.Pool(2) as pool:
        with pytest.raises(WorkerDied) as caught:
            pool.map(die, [signal.SIGKILL])
        assert caught.value.signal == signal.SIGKILL
        results = pool.imap(die_for_3, range(5))
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(WorkerDied):
            next(results)
        assert list(results) == [4]
        assert pool.apply(die_once, (str(tmp_path / "a"),), retries=1) == "done"
    with context.Pool(1, retries=2) as pool:
        assert pool.map(die_once, [str(tmp_path / "b"), str(tmp_path / "c")]) == ["done"] * 2
        with pytest.raises(WorkerDied):
            pool.apply(die, (signal.SIGKILL,))


def die_for_3(x):
    return die(signal.SIGKILL) if x == 3 else x


def test_random_deaths_with_retries_lose_nothing():
    with FORK.Pool(4, retries=1000) as pool, Killer(pool) as killer:
        for _ in range(2):
            assert pool.map(square, range(10_000), chunksize=1) == [x * x for x in range(10_000)]
            assert list(pool.imap(square, range(3000))) == [x * x for x in range(3000)]
            assert sorted(pool.imap_unordered(square, range(3000), 7)) == [x * x for x in range(3000)]
        until(lambda: len(killer.pids) > 10)


def test_random_deaths_are_errors_of_what_died():
    with FORK.Pool(4) as pool, Killer(pool) as killer:
        died = []
        while not died or len(killer.pids) < 30:
            results = [pool.apply_async(square, (x,)) for x in range(3000)]
            for x, result in enumerate(results):
                try:
                    assert result.get() == x * x
                except WorkerDied as error:
                    died.append(error)
        assert all(error.signal == signal.SIGKILL and error.pid in killer.pids for error in died)
        # Each had one task in its hands.
        assert len({error.pid for error in died}) == len(died)


def test_all_workers_at_once():
    with FORK.Pool(3, retries=100) as pool:
        for _ in range(5):
            result = pool.map_async(square, range(2000), chunksize=1)
            for worker in list(pool._pool):
                kill(worker)
            assert result.get() == [x * x for x in range(2000)]


def test_deaths_while_idle():
    with FORK.Pool(2) as pool:
        for _ in range(5):
            before = pool.map(pid, range(2))
            for worker in list(pool._pool):
                kill(worker)
            until(lambda: not {worker.pid for worker in pool._pool} & set(before))
            assert pool.map(square, range(10)) == [x * x for x in range(10)]


def test_deaths_while_a_large_result_is_sent():
    with FORK.Pool(2) as pool:
        used = sum(pool._work.memory)
        outcomes = {True: 0, False: 0}
        while not all(outcomes.values()):
            result = pool.apply_async(bytes, (100_000_000,))
            time.sleep(random.random() * 0.2)
            for worker in list(pool._pool):
                kill(worker)
            try:
                outcomes[len(result.get()) == 100_000_000] += 1
            except WorkerDied:
                outcomes[False] += 1
            del result
            if outcomes[False] > 200:
                break
        assert outcomes[False]
        # What the dead have left is found, and one block is kept for what comes next.
        assert pool.apply(bytes, (10,)) == bytes(10)
        assert sum(pool._work.memory) < used + 150_000_000


def test_a_stopped_worker_that_is_killed():
    with FORK.Pool(2, retries=5) as pool:
        pool.map(square, range(10))
        worker = pool._pool[0]
        os.kill(worker.pid, signal.SIGSTOP)
        result = pool.map_async(square, range(2000), chunksize=1)
        result.wait(0.2)
        kill(worker)
        assert result.get() == [x * x for x in range(2000)]
        os.kill(pool._pool[0].pid, signal.SIGSTOP)
    pool.join()


def test_a_stopped_worker_delays_no_other_tasks_timeout():
    for _ in range(4):
        with FORK.Pool(2) as pool:
            overdue = pool.apply_async(nap, (600,), timeout=0.1)
            # The other worker takes, reports and acknowledges all the time, and is stopped anywhere in that.
            other = pool.apply(pid)
            pool.map_async(square, range(50_000), chunksize=1)
            time.sleep(random.random() * 0.02)
            os.kill(other, signal.SIGSTOP)
            with pytest.raises(procession.TaskTimeoutError):
                overdue.get()


def test_killing_for_one_task_never_waits_for_the_worker():
    with FORK.Pool(1) as pool:
        result = pool.map_async(square, range(20_000), chunksize=1)
        worker = pool._pool[0].pid
        while not result.ready():
            pool._supervisor.kill(worker, 10**9)
        assert result.get() == [x * x for x in range(20_000)]


def through(queue, lock, value, item):
    with lock:
        value.value += 1
    queue.put(item)
    return item


def die_first(path, queue, lock, value, item):
    die_once(path)
    return through(queue, lock, value, item)


def test_queues_and_locks_in_arguments_survive_a_death(context, tmp_path):
    queue, lock, value = context.Queue(), context.Lock(), context.Value("i")
    with context.Pool(2) as pool, context.Manager() as manager:
        for name, channel in ("a", queue), ("b", manager.Queue()):
            path = str(tmp_path / name)
            assert pool.apply(die_first, (path, channel, lock, value, 5), retries=1) == 5
            assert channel.get() == 5
        # The task's handles were closed with its last run; those in another are others.
        assert pool.starmap(through, [(queue, lock, value, item) for item in range(10)]) == list(range(10))
        assert sorted(queue.get() for _ in range(10)) == list(range(10)) and value.value == 12


def leave_a_child_behind(path):
    # It waits for the end of the test.
    if os.fork() == 0:
        while path.exists():
            time.sleep(0.01)
        os._exit(0)
    os._exit(3)


def test_a_worker_that_leaves_a_child_behind(context, tmp_path):
    path = tmp_path / "unfinished"
    path.touch()
    try:
        with context.Pool(1, daemon=False) as pool:
            for _ in range(4):
                pool.apply(pid)
                # Not only once the child has ended, which waits for the test.
                with pytest.raises(WorkerDied) as caught:
                    pool.apply(leave_a_child_behind, (path,))
                assert caught.value.exitcode == 3
    finally:
        path.unlink()


def test_a_worker_that_may_not_be_killed(monkeypatch):
    send = signal.pidfd_send_signal

    def refuse(pidfd, number, *rest):
        raise PermissionError("not yours")

    with FORK.Pool(1) as pool:
        monkeypatch.setattr(signal, "pidfd_send_signal", refuse)
        assert pool.apply(nap, (0.3,), timeout=0.01) == 0.3
        asleep = pool.apply_async(nap, (0.3,))
        asleep.cancel(kill=True)
        assert pool.apply(square, (3,)) == 9
        monkeypatch.setattr(signal, "pidfd_send_signal", send)


# Beginnings


def raise_at_first():
    raise LookupError("no licence")


def exit_at_first():
    os._exit(3)


def test_an_initializer_that_keeps_failing_ends_the_pool(context, capfd):
    for initializer, cause in (raise_at_first, LookupError), (exit_at_first, type(None)):
        with context.Pool(2, initializer) as pool:
            pending = [pool.apply_async(square, (2,)) for _ in range(3)]
            for result in pending:
                with pytest.raises(PoolBroken, match="initializer") as caught:
                    result.get()
                assert isinstance(caught.value.__cause__, cause)
            for call in lambda: pool.apply(square, (2,)), lambda: pool.imap(square, [2]):
                with pytest.raises(PoolBroken):
                    call()
            pool.close()
            pool.join()
            assert not pool._pool


def fail_twice(path):
    for name in "a", "b":
        try:
            os.close(os.open(path + name, os.O_CREAT | os.O_EXCL))
            os.kill(os.getpid(), signal.SIGKILL)
        except FileExistsError:
            pass


def test_an_initializer_that_works_in_the_end(tmp_path):
    with FORK.Pool(1, fail_twice, (str(tmp_path / "x"),)) as pool:
        assert pool.map(square, range(3)) == [0, 1, 4]


# The pool's process


def test_a_forked_child_is_told(capfd):
    with FORK.Pool(2) as pool:
        iterator = [pool.imap(nap, [0.05] * 5)]
        pending = pool.apply_async(nap, (0.3,))

        def child():
            for use in (
                lambda: pool.apply(square, (1,)),
                lambda: pool.map(square, [1]),
                lambda: pool.imap(square, [1]),
                lambda: pool.resize(3),
                lambda: pending.get(),
            ):
                with pytest.raises(RuntimeError, match="forked child"):
                    use()
            iterator.clear()
            gc.collect()
            pool.close()
            pool.join()
            pool.terminate()
            with FORK.Pool(1) as own:
                assert own.apply(square, (3,)) == 9

        assert ended(fork(child)) == 0
        assert len(list(iterator.pop())) == 5 and pending.get() == 0.3
        assert pool.map(square, [1, 2]) == [1, 4]
    assert capfd.readouterr().err == ""


def test_forks_while_threads_use_the_pool():
    with FORK.Pool(2) as pool:
        stop = threading.Event()

        def use():
            while not stop.is_set():
                assert pool.map(square, range(20), 1) == [x * x for x in range(20)]

        threads = [threading.Thread(target=use) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(10):

                def child():
                    with pytest.raises(RuntimeError):
                        pool.apply(square, (1,))
                    with FORK.Pool(1) as own:
                        assert own.apply(square, (3,)) == 9

                assert ended(fork(child)) == 0
        finally:
            stop.set()
            for thread in threads:
                thread.join()


def test_a_signal_handler_uses_the_pool_that_is_waited_for():
    with FORK.Pool(2) as pool:
        got = []
        waited = pool.apply_async(nap, (0.4,))
        cancelled = pool.map_async(nap, [600] * 3)

        def handle(*_):
            got.append(pool.apply(square, (5,), timeout=60))
            got.append(list(pool.imap(square, range(3))))
            cancelled.cancel(kill=True)

        pool.resize(4)
        previous = signal.signal(signal.SIGALRM, handle)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            assert waited.get() == 0.4
            assert got == [25, [0, 1, 4]]
            cancelled = pool.map_async(nap, [600] * 3)
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(BaseException, match="^$"):
                cancelled.get()
        finally:
            signal.signal(signal.SIGALRM, previous)


def test_an_interrupt_of_a_wait_leaves_the_pool_whole():
    def work():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with FORK.Pool(2) as pool:
            for wait in (
                lambda: pool.apply(nap, (2,)),
                lambda: pool.map(nap, [2] * 2),
                lambda: next(pool.imap(nap, [2])),
                lambda: pool.apply_async(nap, (2,)).wait(),
            ):
                timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
                timer.start()
                with pytest.raises(KeyboardInterrupt):
                    wait()
                timer.join()
                assert pool.map(square, range(20), 1) == [x * x for x in range(20)]

    assert ended(fork(work)) == 0


def test_exit_statuses_that_others_take():
    def work():
        for ignore in False, True:
            if ignore:
                signal.signal(signal.SIGCHLD, signal.SIG_IGN)
            else:

                def steal(*_):
                    try:
                        while os.waitpid(-1, os.WNOHANG)[0]:
                            pass
                    except ChildProcessError:
                        pass

                signal.signal(signal.SIGCHLD, steal)
            with FORK.Pool(2) as pool:
                for _ in range(3):
                    with pytest.raises(WorkerDied):
                        pool.apply(die, (signal.SIGKILL,))
                    assert pool.map(square, range(10)) == [x * x for x in range(10)]
            pool.join()
            assert not multiprocessing.active_children()

    assert ended(fork(work)) == 0


def run_true(_):
    return subprocess.run(["true"]).returncode, subprocess.check_output(["echo", "x"])


def test_workers_run_programs(context):
    with context.Pool(2) as pool:
        assert pool.map(run_true, range(4), chunksize=1) == [(0, b"x\n")] * 4


def test_the_forkserver_killed():
    from multiprocessing import forkserver

    with procession.get_context("forkserver").Pool(2, retries=10) as pool:
        assert pool.map(square, range(5)) == [0, 1, 4, 9, 16]
        os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)
        assert pool.map(square, range(500), 1) == [x * x for x in range(500)]
        for worker in list(pool._pool):
            kill(worker)
        assert pool.map(square, range(500), 1) == [x * x for x in range(500)]


# Scarcity


def limited(work, *limits):
    def child():
        for limit, value in limits:
            resource.setrlimit(limit, (value, resource.getrlimit(limit)[1]))
        work()

    assert ended(fork(child)) == 0


def test_out_of_descriptors():
    def work():
        before = len(os.listdir("/proc/self/fd"))
        held = []
        with FORK.Pool(2) as pool:
            assert pool.map(square, range(3)) == [0, 1, 4]
            try:
                while True:
                    held.append(os.dup(0))
            except OSError:
                pass
            with pytest.raises(OSError):
                FORK.Pool(2)
            assert pool.map(square, range(100), 1) == [x * x for x in range(100)]
            # The other one does the work meanwhile.
            victim = pool._pool[0]
            kill(victim)
            until(lambda: victim not in pool._pool)
            assert pool.map(square, range(100), 1) == [x * x for x in range(100)]
            for descriptor in held:
                os.close(descriptor)
            until(lambda: len(pool._pool) == 2)
            assert pool.map(square, range(100), 1) == [x * x for x in range(100)]
        assert len(os.listdir("/proc/self/fd")) <= before + 20

    # Other tests' objects, which are garbage by now, may still have some.
    highest = max(map(int, os.listdir("/proc/self/fd")))
    limited(work, (resource.RLIMIT_NOFILE, highest + 60))


def test_out_of_descriptors_when_reports_are_first_to_be_watched():
    def work():
        held = []
        with FORK.Pool(1) as pool:
            try:
                while True:
                    held.append(os.dup(0))
            except OSError:
                pass
            called = []
            assert pool.apply_async(square, (2,), callback=called.append).get() == 4 == called[0]
            for descriptor in held:
                os.close(descriptor)
            assert pool.apply_async(square, (3,), callback=called.append).get() == 9 == called[1]

    limited(work, (resource.RLIMIT_NOFILE, 100))


def test_nothing_leaks():
    def used():
        gc.collect()
        return len(os.listdir("/proc/self/fd")), threading.active_count(), sorted(os.listdir("/dev/shm"))

    def work():
        for round in range(45):
            with FORK.Pool(2, retries=round % 2) as pool:
                pool.map(square, range(10))
                list(pool.imap(square, range(3)))
                next(pool.imap(square, range(100)))
                pool.apply_async(square, (2,), callback=bool).get()
                pool.apply_async(nap, (600,))
                if round % 3 == 0:
                    kill(pool._pool[0])
            if round % 2:
                pool.join()
            if round == 4:
                first = used()
        del pool
        now = used()
        # Others' names may have come or gone.
        assert now[0] <= first[0] + 2 and now[1] == first[1], (first, now)
        assert not multiprocessing.active_children()
        with pytest.raises(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)

    assert ended(fork(work)) == 0


def test_memory_does_not_grow_with_tasks():
    def resident():
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize()

    with FORK.Pool(2) as pool:
        for _ in range(2):
            pool.map(square, range(20_000), chunksize=1)
        before, memory = resident(), pool._work.memory
        for _ in range(6):
            for value in pool.imap_unordered(square, range(20_000)):
                pass
            pool.map(square, range(20_000), chunksize=1)
        assert resident() < before + 20_000_000
        assert all(now <= then + 8_000_000 for now, then in zip(pool._work.memory, memory))
        assert pool._supervisor._dispatcher.until_next_effect() is None
