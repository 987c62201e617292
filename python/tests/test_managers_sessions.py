"""A process's sessions: with several managers, with one after another, and with one that dies while it starts."""

import os
import signal
import threading
import time

import procession
import pytest
from processes import ended, finish, fork, start, until
from procession.managers import ManagerDied, SharedMemoryManager, SyncManager


def use(tables, results):
    """In a thread for each manager; all are new to this process."""

    def read(table):
        results.put(table.get()["number"])

    threads = [threading.Thread(target=read, args=(table,)) for table in tables]
    for thread in threads:
        thread.start()
        # The first is at it when the second begins.
        time.sleep(0.3)
    for thread in threads:
        thread.join()


def test_a_manager_that_is_stopped_holds_up_no_other(context):
    with context.Manager() as first, context.Manager() as second:
        tables, results = [context.Queue(), context.Queue()], context.Queue()
        for number, (manager, table) in enumerate(zip((first, second), tables, strict=True)):
            table.put(manager.dict(number=number))
        os.kill(first._process.pid, signal.SIGSTOP)
        try:
            process = start(context, use, tables, results)
            assert results.get() == 1
        finally:
            os.kill(first._process.pid, signal.SIGCONT)
        assert results.get() == 0
        finish(process)


def read_one(tables, results):
    results.put(tables.get()["a"])


def test_the_key_of_a_manager_that_was_at_the_address(tmp_path):
    context = procession.get_context("spawn")
    address = str(tmp_path / "socket")
    first = SyncManager(address, b"another key", ctx=context)
    first.start()
    os.kill(first._process.pid, signal.SIGKILL)
    first._process.join()
    os.unlink(address)
    with SyncManager(address, ctx=context) as second:
        tables, results = context.Queue(), context.Queue()
        tables.put(second.dict(a=1))
        finish(start(context, read_one, tables, results))
        assert results.get() == 1


FORK = procession.get_context("fork")


class ForkedBeside(FORK.Process):
    """Another thread forks, it seems, as soon as it is started."""

    beside = []

    def start(self):
        super().start()
        self.beside.append(fork(lambda: time.sleep(1000)))


class Context(type(FORK)):
    Process = ForkedBeside


def test_a_start_that_dies_while_others_are_forked():
    """Their copies of its pipe do not make it seem to live."""
    try:
        with pytest.raises(ManagerDied, match="its start"):
            SyncManager(ctx=Context()).start(os._exit, (3,))
    finally:
        for pid in ForkedBeside.beside:
            os.kill(pid, signal.SIGKILL)
            ended(pid)


def test_blocks_of_a_manager_that_died():
    manager = SharedMemoryManager()
    manager.start()
    os.kill(manager._process.pid, signal.SIGKILL)
    manager._process.join()
    before = set(os.listdir("/dev/shm"))
    for make in lambda: manager.SharedMemory(100), lambda: manager.ShareableList([1]):
        with pytest.raises(ManagerDied):
            make()
    assert not {name for name in set(os.listdir("/dev/shm")) - before if name.startswith("psm_")}
    manager.shutdown()


def test_blocks_that_somebody_else_removed():
    manager = SharedMemoryManager(shutdown_timeout=1000)
    manager.start()
    blocks = [manager.SharedMemory(100) for _ in range(3)]
    blocks[1].unlink()
    # It ends when it is asked, and not when it is made to.
    manager.shutdown()
    assert manager._process.exitcode == 0
    assert not {block.name for block in blocks} & set(os.listdir("/dev/shm"))
    for block in blocks:
        block.close()


def test_claimed_tickets_are_forgotten(tmp_path):
    class Counting(SyncManager):
        class _Server(SyncManager._Server):
            public = [*SyncManager._Server.public, "tickets"]

            def tickets(self, c):
                return len(self._orphans), len(self._tickets)

    context = procession.get_context("fork")
    with Counting(ctx=context) as manager:
        tables = context.Queue()
        for _ in range(5):
            finish(start(context, put_one, tables, manager))
            tables.get()
        until(lambda: manager._ask("tickets") == (0, 0))


def put_one(tables, manager):
    tables.put(manager.dict())
