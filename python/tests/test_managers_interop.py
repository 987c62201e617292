"""This package's managers and CPython's, over one socket."""

import multiprocessing.managers
import subprocess
import sys
import textwrap

import procession
import pytest
from processes import ended, finish, fork, start, until
from procession.managers import SyncManager

KEY = b"key"
CLIENT = """
    import gc, multiprocessing.managers, sys

    manager = multiprocessing.managers.SyncManager(sys.argv[1], b"key")
    manager.connect()
    table = manager.dict(a=1)
    table["b"] = 2
    assert sorted(table) == ["a", "b"], list(table)
    try:
        table["c"]
    except KeyError as error:
        assert "Traceback" in str(error.__cause__)
    else:
        raise AssertionError
    tasks = manager.Tasks() if hasattr(manager, "Tasks") else manager.Queue()
    tasks.put(1)
    assert tasks.get() == 1
    try:
        table._callmethod("no_such_method")
    except multiprocessing.managers.RemoteError as error:
        assert "not in exposed" in str(error)
    assert "procession" not in sys.modules
    # Its exceptions refer to what their frames had.
    gc.collect()
    print(manager._number_of_objects())
    del table, tasks
    gc.collect()
    print(manager._number_of_objects())
"""


def test_a_client_that_is_cpythons(tmp_path):
    path = tmp_path / "client.py"
    path.write_text(textwrap.dedent(CLIENT))
    with SyncManager(str(tmp_path / "socket"), KEY) as manager:
        ours = manager.list()
        done = subprocess.run(
            [sys.executable, str(path), manager.address], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout.split()) == (0, ["3", "1"]), done.stderr
        ours.append(1)
        assert manager._number_of_objects() == 1


class Client(procession.managers.BaseManager):
    pass


Client.register("dict", None, procession.managers.DictProxy)
Client.register("list", None, procession.managers.ListProxy)


@pytest.fixture
def theirs(tmp_path):
    with multiprocessing.managers.SyncManager(str(tmp_path / "socket"), KEY) as manager:
        yield manager


def test_a_server_that_is_cpythons(theirs):
    client = Client(theirs.address, KEY)
    client.connect()
    table, items = client.dict(a=1), client.list([1])
    assert isinstance(table, procession.managers.DictProxy)
    assert theirs._number_of_objects() == client._number_of_objects() == 2
    table["b"] = 2
    assert sorted(table.keys()) == ["a", "b"]
    with pytest.raises(KeyError):
        table["c"]
    with pytest.raises(procession.managers.RemoteError):
        table | {}
    del table
    assert theirs._number_of_objects() == 1
    # Which counts the child for ever.
    assert ended(fork(lambda: items.append(2))) == 0
    assert items[:] == [1, 2]
    theirs.shutdown()
    with pytest.raises(procession.managers.ManagerDied):
        items[0]


def test_proxies_that_are_cpythons():
    """A class of somebody who derives from CPython's, with this package's manager."""
    with Mine() as manager:
        counter = manager.Counter()
        assert isinstance(counter, CounterProxy)
        assert (counter.next(), counter.next()) == (1, 2)
        assert manager._number_of_objects() == 1
        results = procession.Queue()
        process = procession.Process(target=count, args=(counter, results))
        process.start()
        process.join()
        assert results.get() == 3
        del counter
        until(lambda: manager._number_of_objects() == 0)


class Counter:
    def __init__(self):
        self.count = 0

    def next(self):
        self.count += 1
        return self.count


class CounterProxy(multiprocessing.managers.BaseProxy):
    _exposed_ = ("next",)

    def next(self):
        return self._callmethod("next")


class Mine(SyncManager):
    pass


Mine.register("Counter", Counter, CounterProxy)


def count(counter, results):
    results.put(counter.next())


class TheirNamespaceProxy(multiprocessing.managers.NamespaceProxy):
    _exposed_ = ("__getattribute__", "__setattr__", "__delattr__", "next")

    def next(self):
        return object.__getattribute__(self, "_callmethod")("next")


Mine.register("Number", Counter, TheirNamespaceProxy)
Mine.register("Bare", Counter, multiprocessing.managers.BaseProxy)


def test_proxies_derived_from_cpythons(context):
    with Mine(ctx=context) as manager:
        table, results = manager.dict(), context.Queue()
        table["counter"], table["number"], table["bare"] = manager.Counter(), manager.Number(), manager.Bare()
        assert isinstance(table["counter"], CounterProxy) and isinstance(table["number"], TheirNamespaceProxy)
        assert (table["counter"].next(), table["counter"].next(), table["number"].next()) == (1, 2, 1)
        assert table["number"].count == 1
        assert manager._number_of_objects() == 4
        finish(start(context, count_both, table["counter"], table, results))
        assert results.get() == (3, 4)
        table.clear()
        until(lambda: manager._number_of_objects() == 1)


def count_both(counter, table, results):
    results.put((counter.next(), table["counter"].next()))


NESTS = """
    import multiprocessing.managers, sys

    multiprocessing.current_process().authkey = b"key"
    manager = multiprocessing.managers.SyncManager(sys.argv[1], b"key")
    manager.connect()
    table = manager.dict()
    table["items"] = manager.list([1, manager.list([2])])
    table["items"].append(3)
    assert (table["items"][0], table["items"][1][0], len(table["items"])) == (1, 2, 3)
    print(manager._number_of_objects())
    table.clear()
    print(manager._number_of_objects())
"""


def test_a_client_that_is_cpythons_nests_proxies(tmp_path):
    path = tmp_path / "client.py"
    path.write_text(textwrap.dedent(NESTS))
    with SyncManager(str(tmp_path / "socket"), KEY) as manager:
        done = subprocess.run(
            [sys.executable, str(path), manager.address], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout.split()) == (0, ["3", "1"]), done.stderr
