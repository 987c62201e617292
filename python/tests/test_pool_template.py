"""The process that a pool's later workers are forked from: it holds no lock, and may be killed."""

import contextlib
import errno
import importlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import procession
import pytest
from processes import HUNG, children, ended, fork, run, until
from tasks import pid, square

FORK = procession.get_context("fork")
MODULE = "slow_module_of_a_test"


def nap_and_leave():
    time.sleep(0.3)


def die(_=None):
    os._exit(1)


def use_module():
    return importlib.import_module(MODULE).answer


def template(pool):
    """The pid of the pool's template."""
    return pool._supervisor._start.template._pid


@pytest.fixture
def slow_module(tmp_path, monkeypatch):
    (tmp_path / f"{MODULE}.py").write_text("import time\ntime.sleep(1)\nanswer = 42\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop(MODULE, None)


def after_tasks(pool):
    pool.apply_async(nap_and_leave)


def after_death(pool):
    pool.apply_async(die)


def after_timeout(pool):
    pool.apply_async(time.sleep, (HUNG,), timeout=0.2)


def after_resize(pool):
    pool.apply_async(time.sleep, (HUNG,))
    pool.resize(2)


def after_cancel(pool):
    result = pool.apply_async(time.sleep, (HUNG,))
    until(lambda: pool._is_running(result))
    result.cancel(kill=True)


# What another thread is in the middle of while a worker is replaced


@pytest.mark.parametrize("replace", [after_tasks, after_death, after_timeout, after_resize, after_cancel])
def test_a_replaced_worker_can_import_what_the_program_was_importing(replace, slow_module):
    with FORK.Pool(1, maxtasksperchild=1 if replace is after_tasks else None) as pool:
        pool.apply(abs, (1,))
        replace(pool)
        importlib.import_module(MODULE)
        assert pool.apply_async(use_module).get(HUNG) == 42


def test_a_worker_of_an_executor_can_import_what_the_program_was_importing(slow_module):
    with procession.ProcessPoolExecutor(1, mp_context=FORK, max_tasks_per_child=1) as executor:
        executor.submit(nap_and_leave)
        importlib.import_module(MODULE)
        assert executor.submit(use_module).result(HUNG) == 42


def print_and_log(number):
    print("worker", number, flush=True)
    logging.getLogger("worker").warning("worker %s", number)
    return number


def trouble_with_output(seconds):
    """Threads print into a full pipe and log into another while workers are replaced in every
    way."""
    logging.basicConfig(stream=sys.stderr)
    ends = threading.Event()

    def say():
        while not ends.is_set():
            print("x" * 9000)
            logging.warning("x" * 9000)

    pool = FORK.Pool(3, maxtasksperchild=2, retries=50)
    talkers = [threading.Thread(target=say, daemon=True) for _ in range(2)]
    for talker in talkers:
        talker.start()
    end = time.monotonic() + seconds
    count = 0
    while time.monotonic() < end:
        results = [pool.apply_async(print_and_log, (number,)) for number in range(8)]
        pool.apply_async(die, retries=0)
        pool.apply_async(time.sleep, (HUNG,), timeout=0.05)
        pool.resize(2 + count % 3)
        assert [result.get(HUNG) for result in results] == list(range(8))
        count += 1
    assert count
    ends.set()
    pool.close()
    pool.join()
    os._exit(0)


def test_workers_are_replaced_while_threads_hold_the_locks_of_output():
    code = "import test_pool_template as t; t.trouble_with_output(3)"
    program = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=os.path.dirname(__file__),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    # Read slowly: a printing thread nearly always waits with the buffer's lock.
    watchdog = threading.Timer(HUNG, os.killpg, (program.pid, signal.SIGKILL))
    watchdog.start()
    said = b""
    while part := os.read(program.stdout.fileno(), 8192):
        said = (said + part)[-4000:]
        time.sleep(0.001)
    watchdog.cancel()
    program.stdout.close()
    assert program.wait() == 0, said


_lock = threading.Lock()


def take_lock(_):
    with _lock:
        return True


def test_a_replaced_worker_inherits_no_lock_that_a_thread_holds_now():
    with FORK.Pool(1, maxtasksperchild=1) as pool, _lock:
        results = [pool.apply_async(take_lock, (number,)) for number in range(4)]
        assert all(result.get(HUNG) for result in results)


# What a worker is that was forked from it


inherited = "nothing"


def relatives(_=None):
    import multiprocessing

    parent = multiprocessing.parent_process()
    return os.getppid(), parent.pid, parent.is_alive(), multiprocessing.current_process().name, inherited


def test_later_workers_are_children_of_this_process_and_inherit_what_the_first_did():
    global inherited
    inherited = "what was there"
    local = []
    with FORK.Pool(1, local.append, (1,), maxtasksperchild=1) as pool:
        inherited = "what came later"
        seen = [pool.apply(relatives) for _ in range(3)]
        workers = {pool.apply(pid) for _ in range(3)}
        # None of them was forked by the pool's thread.
        assert template(pool)
    assert {(ppid, parent, alive, state) for ppid, parent, alive, _, state in seen} == {
        (os.getpid(), os.getpid(), True, "what was there")
    }
    assert len({name for *_, name, _ in seen}) == 3 and all("ForkPoolWorker-" in row[3] for row in seen)
    assert len(workers) == 3


def test_exit_codes_of_later_workers_are_known():
    with FORK.Pool(1, maxtasksperchild=1) as pool:
        pool.apply(pid)
        for code in (3, 4):
            with pytest.raises(procession.WorkerDied) as caught:
                pool.apply(os._exit, (code,))
            assert caught.value.exitcode == code


class Counted(procession.get_context("fork").Process):
    """A process with state of its own, some of which cannot be pickled, and a pipe."""

    same = staticmethod(lambda: "closure")

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.made_by = os.getpid()
        self.mine, self.theirs = procession.Pipe()
        self.function = Counted.same

    def run(self):
        self.theirs.send((self.made_by, self.function(), self.name))
        super().run()


class CountedContext(type(FORK)):
    Process = Counted


def test_a_process_class_of_the_program_runs_in_later_workers():
    with CountedContext().Pool(1, maxtasksperchild=1) as pool:
        said = set()
        for _ in range(4):
            worker = pool._pool[0]
            assert pool.apply(os.getpid) == worker.pid
            assert worker.mine.poll(HUNG)
            said.add(worker.mine.recv())
            until(lambda worker=worker: worker not in pool._pool and pool._pool)
        assert {(made_by, value) for made_by, value, _ in said} == {(os.getpid(), "closure")} and len(
            said
        ) == 4


def test_a_worker_whose_state_cannot_be_sent_is_forked_all_the_same():
    class Local(FORK.Process):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.own = lambda: self

        def run(self):
            assert self.own() is self
            super().run()

    class Context(type(FORK)):
        Process = Local

    with Context().Pool(1, maxtasksperchild=1) as pool:
        assert len({pool.apply(pid) for _ in range(3)}) == 3


def test_a_worker_is_ended_for_whose_descriptor_there_is_no_room(monkeypatch):
    receive = socket.recv_fds
    lost = []

    def receive_less(*args):
        message, descriptors, flags, address = receive(*args)
        if not lost:
            # As the kernel does when this process has as many as it may.
            lost.extend(descriptors)
            for descriptor in descriptors:
                os.close(descriptor)
            descriptors = []
        return message, descriptors, flags, address

    before = children()
    with FORK.Pool(1) as pool:
        first = pool.apply(pid)
        monkeypatch.setattr(socket, "recv_fds", receive_less)
        with pytest.raises(procession.WorkerDied):
            pool.apply(die)
        assert pool.apply(pid) != first and lost
        assert children() - before == {template(pool), pool._pool[0].pid}


# Its end


def test_it_ends_with_the_pool():
    before = children()
    with FORK.Pool(2) as pool:
        one = template(pool)
        assert len(children() - before) == 3
        pool.map(square, range(3))
    pool.join()
    assert not os.path.exists(f"/proc/{one}") and children() == before
    pool = FORK.Pool(2, maxtasksperchild=1)
    pool.map(square, range(10), chunksize=1)
    pool.close()
    pool.join()
    assert children() == before


@pytest.mark.parametrize("thread", [False, True])
def test_it_ends_with_a_killed_program(thread):
    read, write = os.pipe()

    def program():
        def work():
            pool = FORK.Pool(1, maxtasksperchild=1)
            workers = [pool.apply(pid) for _ in range(2)]
            until(lambda: pool._pool and pool._pool[0].pid not in workers)
            pids = [template(pool), pool._pool[0].pid]
            os.write(write, " ".join(map(str, pids)).encode())
            os.kill(os.getpid(), signal.SIGKILL)

        if thread:
            run(lambda: threading.Thread(target=work).start())
            signal.pause()
        run(work)

    assert ended(fork(program)) == -signal.SIGKILL
    os.close(write)
    with os.fdopen(read) as file:
        pids = file.read().split()
    assert len(pids) == 2
    until(lambda: not any(lives(pid) for pid in pids))


def lives(pid):
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", encoding="ascii") as file:
        return file.read().rpartition(")")[2].split()[0] != "Z"
    return False


def test_the_next_call_makes_another_one():
    with FORK.Pool(1) as pool:
        first = pool.apply(pid)
        one = template(pool)
        os.kill(one, signal.SIGKILL)
        until(lambda: pool._supervisor.lacks_template)
        assert pool.apply(pid) == first
        assert template(pool) != one
        with pytest.raises(procession.WorkerDied):
            pool.apply(die)
        assert pool.apply(pid) != first


def test_calls_are_done_while_none_can_be_made(monkeypatch):
    def refuse():
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with FORK.Pool(1) as pool:
        first = pool.apply(pid)
        os.kill(template(pool), signal.SIGKILL)
        until(lambda: pool._supervisor.lacks_template)
        with monkeypatch.context() as patched:
            patched.setattr(pool._supervisor._start, "open_template", refuse)
            assert pool.apply(pid) == first and pool._supervisor.lacks_template
        assert pool.apply(pid) == first and template(pool)


def test_a_pool_without_it_and_without_workers_is_broken():
    with FORK.Pool(2) as pool:
        pool.map(square, range(4))
        results = [pool.apply_async(time.sleep, (HUNG,)) for _ in range(3)]
        until(lambda: all(pool._is_running(result) for result in results[:2]))
        os.kill(template(pool), signal.SIGKILL)
        until(lambda: pool._supervisor.lacks_template)
        for worker in list(pool._pool):
            worker.kill()
        for result in results[:2]:
            with pytest.raises(procession.WorkerDied):
                result.get(HUNG)
        with pytest.raises(procession.PoolBroken, match="was killed, and no worker is left"):
            results[2].get(HUNG)


@pytest.mark.parametrize("count", [1, 4])
def test_it_goes_on_after_it_was_stopped(count):
    before = children()
    with FORK.Pool(1, maxtasksperchild=1) as pool:
        for _ in range(count):
            pool.apply(pid)
        until(lambda: count == 1 or pool._supervisor._start.template._requests == count)
        os.kill(template(pool), signal.SIGSTOP)
        assert len({pool.apply(pid) for _ in range(3)}) == 3
    assert children() == before


def test_signals_do_not_end_it():
    with FORK.Pool(1, maxtasksperchild=1) as pool:
        one = template(pool)
        # As a terminal sends them to all processes there.
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1):
            os.kill(one, number)
        workers = {pool.apply(pid) for _ in range(3)}
        assert len(workers) == 3 and template(pool) == one


def test_a_killed_one_and_killed_workers_hang_nobody():
    # Whatever it is in the middle of when it is killed.
    with FORK.Pool(3, maxtasksperchild=1, retries=1000) as pool:
        for round in range(15):
            results = [pool.apply_async(square, (x,)) for x in range(12)]
            time.sleep(0.002 * (round % 8))
            current = pool._supervisor._start.template
            if current is not None:
                current.kill()
            try:
                for x, result in enumerate(results):
                    while not result.ready():
                        # A call, in which a thread of the program makes another one.
                        pool.apply_async(square, (1,))
                        result.wait(0.05)
                    assert result.get() == x * x
            except procession.PoolBroken:
                pytest.fail("a call came in time")


def start_slowly():
    time.sleep(0.4)


@pytest.mark.parametrize("delay", [0, 0.05, 0.2])
@pytest.mark.parametrize("calls", [True, False])
def test_no_task_hangs_when_it_is_killed_while_a_worker_starts(delay, calls):
    before = children()
    with FORK.Pool(1, start_slowly, maxtasksperchild=1) as pool:
        assert pool.apply(square, (3,)) == 9
        results = [pool.apply_async(square, (x,)) for x in range(4)]
        time.sleep(delay)
        os.kill(template(pool), signal.SIGKILL)
        for x, result in enumerate(results):
            if calls:
                while not result.ready():
                    pool.apply_async(square, (1,))
                    result.wait(0.05)
                assert result.get() == x * x
                continue
            # No thread of the program can fork another one.
            try:
                assert result.get(HUNG) == x * x
            except procession.PoolBroken as error:
                assert "was killed, and no worker is left" in str(error)
    assert children() == before


def test_pools_in_pools():
    with procession.ProcessPoolExecutor(1, mp_context=FORK, max_tasks_per_child=1) as executor:
        assert [executor.submit(nested).result(HUNG) for _ in range(2)] == [[0, 1, 4, 9]] * 2


def nested():
    with FORK.Pool(2, maxtasksperchild=1) as pool:
        return pool.map(square, range(4), chunksize=1)


def test_a_pool_of_a_manager_replaces_workers():
    with FORK.Manager() as manager:
        pool = manager.Pool(1, None, (), 1)
        assert len({pool.apply(pid) for _ in range(3)}) == 3
