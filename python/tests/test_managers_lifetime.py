"""How long a manager's objects live: as long as somebody has a proxy, whoever is killed."""

import gc
import os
import pickle
import signal
import threading
import time

import procession
import pytest
from processes import ended, finish, fork, kill, start, until
from procession.managers import BaseManager, SyncManager


class Collector:
    def collect(self):
        gc.collect()


class Sleeper:
    def sleep(self, seconds):
        time.sleep(seconds)
        return "slept"


class Manager(SyncManager):
    pass


Manager.register("Collector", Collector)
Manager.register("Sleeper", Sleeper)


@pytest.fixture
def manager():
    with Manager() as manager:
        yield manager


@pytest.fixture(params=[b"a key of its own", None])
def keyed(request):
    with SyncManager(authkey=request.param) as manager:
        yield manager


def objects(manager):
    return manager._number_of_objects()


def read(proxies, results):
    results.put(list(proxies.get()))


def test_a_proxy_on_its_way_in_a_queue(context):
    with context.Manager() as manager:
        proxies, results = context.Queue(), context.Queue()
        proxies.put(manager.list([1, 2]))
        assert objects(manager) == 1
        finish(start(context, read, proxies, results))
        assert results.get() == [1, 2]
        until(lambda: objects(manager) == 0)


def make(proxies, manager):
    proxies.put(manager.list(["made", "there"]))


def test_a_proxy_from_a_process_that_has_ended(manager):
    proxies, results = procession.Queue(), procession.Queue()
    fork_context = procession.get_context("fork")
    finish(start(fork_context, make, proxies, manager))
    finish(start(fork_context, read, proxies, results))
    assert results.get() == ["made", "there"]
    until(lambda: objects(manager) == 0)


def test_a_proxy_from_a_process_that_was_killed(manager):
    proxies = procession.Queue()

    def make_and_die():
        proxies.put(manager.list([1]))
        os.kill(os.getpid(), signal.SIGKILL)

    assert ended(fork(make_and_die)) == -signal.SIGKILL
    assert list(proxies.get()) == [1]
    until(lambda: objects(manager) == 0)


def test_what_nobody_received_goes_after_its_time(tmp_path):
    class Hasty(SyncManager):
        class _Server(SyncManager._Server):
            transit_seconds = 0.2

    with Hasty(ctx=procession.get_context("fork")) as manager:

        def pickle_and_die():
            pickle.dumps(manager.list([1]))
            os.kill(os.getpid(), signal.SIGKILL)

        ended(fork(pickle_and_die))
        until(lambda: objects(manager) == 0)


def test_one_pickle_read_twice(manager):
    made = manager.list([1])
    data = pickle.dumps(made)
    first, second = pickle.loads(data), pickle.loads(data)
    del made
    first.append(2)
    assert list(second) == [1, 2]
    del first, second
    assert objects(manager) == 0
    with pytest.raises(procession.managers.RemoteError, match="nobody had a proxy"):
        pickle.loads(data)


def test_nested_proxies_go_with_what_contains_them(keyed):
    table = keyed.dict()
    table["list"] = keyed.list([keyed.dict(inner=keyed.list([1]))])
    assert objects(keyed) == 4
    table["list"][0]["inner"].append(2)
    assert list(table["list"][0]["inner"]) == [1, 2]
    inner = table["list"][0]["inner"]
    del table["list"]
    assert objects(keyed) == 2
    inner.append(3)
    assert list(inner) == [1, 2, 3]
    del inner
    assert objects(keyed) == 1
    table["list"] = keyed.list()
    table.clear()
    assert objects(keyed) == 1


def test_objects_that_contain_themselves(manager):
    items = manager.list()
    items.append(items)
    assert items[0][0][0]._id == items._id
    del items
    manager.Collector().collect()
    assert objects(manager) == 0


def nest(table, depth):
    # Made by this process, which ends before anybody reads them.
    table["made by"] = os.getpid()
    for number in range(depth):
        table[number]["deeper"][0].append(os.getpid())


def test_nested_proxies_in_other_processes(context):
    with context.Manager() as manager:
        table = manager.dict()
        for number in range(3):
            table[number] = manager.dict(deeper=manager.list([manager.list()]))
        pids = []
        for _ in range(2):
            process = start(context, nest, table, 3)
            finish(process)
            pids.append(process.pid)
        assert [list(table[number]["deeper"][0]) for number in range(3)] == [pids] * 3
        assert objects(manager) == 10


def attach(address, table):
    client = SyncManager(address=address)
    client.connect()
    table["theirs"] = client.list([client.dict(a=client.Queue())])
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_nested_proxy_outlives_the_process_that_made_it(context):
    with context.Manager() as manager:
        table = manager.dict()
        process = start(context, attach, manager.address, table)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        table["theirs"][0]["a"].put(1)
        assert table["theirs"][0]["a"].get() == 1
        assert objects(manager) == 4


def hold(proxies, ready):
    kept = [list(proxies), *proxies[0]]
    ready.set()
    time.sleep(1000)
    del kept


def test_a_killed_process_holds_nothing(context):
    with context.Manager() as manager:
        ready = context.Event()
        inner = [manager.list([number]) for number in range(5)]
        process = start(context, hold, [manager.list(inner), manager.dict()], ready)
        ready.wait()
        del inner
        assert objects(manager) == 7
        kill(process)
        until(lambda: objects(manager) == 0)


def test_a_forked_child_has_what_the_parent_drops_at_once(manager):
    reader, writer = os.pipe()
    made = [manager.list([1])]

    def use():
        os.close(writer)
        # Not before the parent has dropped it.
        os.read(reader, 1)
        made[0].append(2)
        assert list(made[0]) == [1, 2]

    pid = fork(use)
    os.close(reader)
    made.clear()
    gc.collect()
    assert objects(manager) == 1
    os.close(writer)
    assert ended(pid) == 0
    until(lambda: objects(manager) == 0)


def test_a_child_of_a_forked_child(manager):
    made = manager.list()

    def middle():
        assert ended(fork(lambda: made.append("grandchild"))) == 0
        made.append("child")

    assert ended(fork(middle)) == 0
    assert list(made) == ["grandchild", "child"]


def test_a_parent_and_a_forked_child_at_once(manager):
    """Each has a connection of its own, and its replies."""
    mine, other = manager.dict(), manager.dict()
    assert (len(mine), len(other)) == (0, 0)

    def work(table, name):
        for number in range(300):
            table[number] = name, number
            assert table[number] == (name, number)

    pid = fork(lambda: work(other, "child"))
    work(mine, "parent")
    assert ended(pid) == 0
    assert other[299] == ("child", 299)


def test_forks_while_threads_make_and_drop_proxies(manager):
    ending = threading.Event()

    def churn():
        while not ending.is_set():
            manager.list([manager.dict()])

    threads = [threading.Thread(target=churn) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        made = [manager.list()]
        for number in range(20):
            assert ended(fork(lambda: made[0].append(number))) == 0
    finally:
        ending.set()
        for thread in threads:
            thread.join()
    assert list(made.pop()) == list(range(20))
    gc.collect()
    until(lambda: objects(manager) == 0)


def iterate(table, results):
    results.put([list(table), sorted(iter(table["inner"]))])


def test_methods_that_return_proxies_in_other_processes(context):
    with context.Manager() as manager:
        table, results = manager.dict(inner=manager.dict(a=1, b=2)), context.Queue()
        finish(start(context, iterate, table, results))
        assert results.get() == [["inner"], ["a", "b"]]
        until(lambda: objects(manager) == 2)


class Node:
    def __init__(self, depth=0):
        self._depth = depth

    def child(self):
        return Node(self._depth + 1)

    def depth(self):
        return self._depth


class Tree(BaseManager):
    pass


Tree.register("Node", Node, method_to_typeid={"child": "Child"})
Tree.register("Child", method_to_typeid={"child": "Child"}, create_method=False)


def descend(node, results):
    results.put(node.child().child().depth())


def test_proxies_from_proxies_of_registered_types(context):
    with Tree(ctx=context) as manager:
        node, results = manager.Node(), context.Queue()
        finish(start(context, descend, node, results))
        assert (results.get(), node.child().depth()) == (2, 1)
        until(lambda: objects(manager) == 1)


def test_what_a_call_returned_is_not_kept_for_the_next(manager):
    """The server keeps neither arguments nor results, nor the frames of exceptions."""
    items = manager.list([manager.list()])
    with pytest.raises(IndexError):
        items[0][7]
    assert items.pop()[:] == []
    assert objects(manager) == 1
    with pytest.raises(ValueError):
        items.remove(manager.list())
    until(lambda: objects(manager) == 1)


def test_an_interrupted_call_does_not_shift_the_replies(manager):
    class Interrupt(Exception):
        pass

    def interrupt(*args):
        raise Interrupt

    sleeper, table = manager.Sleeper(), manager.dict(a=1)
    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1))
        timer.start()
        with pytest.raises(Interrupt):
            sleeper.sleep(1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert [table["a"], len(table)] == [1, 1]
    assert objects(manager) == 2


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_proxies_in_a_pool(method):
    context = procession.get_context(method)
    with context.Manager() as manager:
        table, items = manager.dict(), manager.list()
        with context.Pool(2) as pool:
            pool.starmap(record, [(table, items, number) for number in range(20)])
            # Made by a worker, and dropped there before it arrives.
            made = pool.apply(answer, (manager.address,))
            assert list(made) == ["from a worker"]
        assert sorted(items) == list(range(20))
        assert {key: list(value) for key, value in table.items()} == {n: [n] for n in range(20)}


def record(table, items, number):
    client = SyncManager(address=table._token.address)
    client.connect()
    table[number] = client.list([number])
    items.append(number)


def answer(address):
    client = SyncManager(address=address)
    client.connect()
    return client.list(["from a worker"])
