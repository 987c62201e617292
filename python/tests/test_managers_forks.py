"""Children by fork of a process whose manager is busy, stopped, or out of descriptors."""

import contextlib
import gc
import os
import resource
import signal
import threading

import procession
import pytest
from processes import ended, fork, until
from procession.managers import SyncManager


class Server:
    def hold_the_interpreter(self):
        sum(range(20_000_000))


class Manager(SyncManager):
    pass


Manager.register("Server", Server)


@pytest.fixture(params=["unix", "tcp"])
def manager(request):
    address = None if request.param == "unix" else ("127.0.0.1", 0)
    with Manager(address, ctx=procession.get_context("fork")) as manager:
        yield manager


@contextlib.contextmanager
def stopped(manager):
    os.kill(manager._process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(manager._process.pid, signal.SIGCONT)


def forks_and_uses(table):
    """A child that uses the table; not waited for."""

    def use():
        assert table["a"] == 1
        table["child"] = os.getpid()

    return fork(use)


def test_after_many_drops(manager):
    table = manager.dict(a=1)
    for _ in range(3):
        made = [manager.dict() for _ in range(500)]
        made.clear()
        assert ended(forks_and_uses(table)) == 0
    assert manager._number_of_objects() == 1


def test_while_the_manager_is_busy(manager):
    table, server = manager.dict(a=1), manager.Server()
    made = [manager.dict() for _ in range(1000)]
    thread = threading.Thread(target=server.hold_the_interpreter)
    thread.start()
    made.clear()
    assert ended(forks_and_uses(table)) == 0
    thread.join()


def test_while_the_manager_is_stopped(manager):
    table = manager.dict(a=1)
    made = [manager.dict() for _ in range(600)]
    with stopped(manager):
        # More than the socket takes.
        made.clear()
        # It uses no manager, and waits for none.
        assert ended(fork(lambda: None)) == 0
        pid = forks_and_uses(table)
    assert ended(pid) == 0
    assert table["child"] == pid
    until(lambda: manager._number_of_objects() == 1)


def test_what_the_parent_drops_while_the_manager_is_stopped(manager):
    """The child has it, though it has to connect by itself."""
    tables = [manager.dict(a=1)]
    made = [manager.dict() for _ in range(600)]
    with stopped(manager):
        made.clear()
        pid = forks_and_uses(tables[0])
        tables.clear()
        gc.collect()
    until(lambda: manager._number_of_objects() <= 1)
    assert ended(pid) == 0
    until(lambda: manager._number_of_objects() == 0)


def test_a_child_of_a_child_that_has_not_used_the_manager(manager):
    table = manager.dict(a=1)
    made = [manager.dict() for _ in range(600)]

    def fork_again():
        assert ended(forks_and_uses(table)) == 0
        assert table["a"] == 1

    with stopped(manager):
        made.clear()
        pid = fork(fork_again)
    assert ended(pid) == 0


def test_the_manager_has_no_descriptor_for_the_child():
    with SyncManager(ctx=procession.get_context("fork")) as manager:
        table, pid = manager.dict(a=1), manager._process.pid
        assert manager._number_of_objects() == 1
        limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        taken = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
        free = min(set(range(len(taken) + 1)) - taken)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (free, limits[1]))
        reader, writer = os.pipe()

        def use():
            os.close(writer)
            os.read(reader, 1)
            assert table["a"] == 1

        child = fork(use)
        os.close(reader)
        # The manager has got what was sent.
        manager._number_of_objects()
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        os.close(writer)
        assert ended(child) == 0
        assert (table["a"], list(manager.list([1]))) == (1, [1])


def test_the_manager_dies_before_the_child_uses_it(manager):
    table = manager.dict(a=1)
    made = [manager.dict() for _ in range(600)]

    def use():
        until(lambda: not os.path.exists(f"/proc/{pid}"))
        with pytest.raises(procession.managers.ManagerDied):
            table["a"]

    pid = manager._process.pid
    os.kill(pid, signal.SIGSTOP)
    made.clear()
    child = fork(use)
    os.kill(pid, signal.SIGKILL)
    manager._process.join()
    assert ended(child) == 0
