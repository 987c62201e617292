"""Proxies in messages that are read again, or that are never sent."""

import os
import queue
import signal

import procession
import pytest
from processes import finish, start, until
from procession.managers import SyncManager


class Refuser:
    def take(self, *values):
        return len(values)


class Manager(SyncManager):
    pass


Manager.register("Refuser", Refuser)


class Unreadable:
    def __reduce__(self):
        return refuse, ()


def refuse():
    raise ValueError("it does not want to be read")


@pytest.fixture
def manager():
    with Manager(ctx=procession.get_context("fork")) as manager:
        yield manager


def take(tasks, results, dies):
    items = tasks.get()
    if dies:
        os.kill(os.getpid(), signal.SIGKILL)
    items.append(os.getpid())
    results.put(items[:])
    tasks.task_done()


def test_a_task_that_is_handed_out_again(context):
    with context.Manager() as manager:
        tasks, results = context.JoinableQueue(redeliver=True), context.Queue()
        tasks.put(manager.list())
        for dies in True, False:
            process = start(context, take, tasks, results, dies)
            process.join()
            assert process.exitcode == (-signal.SIGKILL if dies else 0)
        assert results.get() == [process.pid]
        until(lambda: manager._number_of_objects() == 0)


def die_once(items, path):
    items.append(1)
    if not os.path.exists(path):
        open(path, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return items[:]


def test_a_task_that_is_tried_again(manager, tmp_path):
    with procession.Pool(1) as pool:
        result = pool.apply_async(die_once, (manager.list(), str(tmp_path / "died")), retries=1)
        assert result.get() == [1, 1]
        until(lambda: manager._number_of_objects() == 0)


def read(tasks):
    tasks.get()
    tasks.task_done()


def test_a_task_that_is_acknowledged(manager):
    context = procession.get_context("fork")
    tasks = context.JoinableQueue(redeliver=True)
    tasks.put(manager.list())
    finish(start(context, read, tasks))
    until(lambda: manager._number_of_objects() == 0)


def test_a_queue_that_is_full(manager):
    tasks = procession.Queue(1)
    tasks.put(None)
    with pytest.raises(queue.Full):
        tasks.put_nowait(manager.list())
    until(lambda: manager._number_of_objects() == 0)


def test_what_cannot_be_pickled(manager):
    items, tasks = manager.list(), procession.Queue()
    for send in items.append, tasks.put:
        with pytest.raises(Exception, match="pickle"):
            send([manager.dict(), lambda: None])
    until(lambda: manager._number_of_objects() == 1)
    items.append(manager.dict())
    assert manager._number_of_objects() == 2


def test_arguments_that_the_manager_cannot_read(manager):
    refuser = manager.Refuser()
    with pytest.raises(procession.managers.RemoteError, match="want to be read"):
        refuser.take(Unreadable(), manager.dict())
    until(lambda: manager._number_of_objects() == 1)


def test_read_only_arrays_arrive_writable(manager):
    numpy = pytest.importorskip("numpy")
    fixed = numpy.arange(10)
    fixed.flags.writeable = False
    items = manager.list([fixed])
    items[0][...] = 1
    assert items[0].flags.writeable and items[0].sum() == fixed.sum()
