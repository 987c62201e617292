"""Managers, whose queues, locks and values are in shared memory."""

import array
import collections.abc
import copy
import ctypes
import itertools
import multiprocessing.managers
import os
import pickle
import queue
import resource
import signal
import time

import procession
import pytest
from processes import alarms, finish, kill, start, until
from procession.managers import BaseManager, SharedMemoryManager, SyncManager

WATCHDOG = 120


@pytest.fixture
def manager():
    with procession.Manager() as manager:
        yield manager


def work(queue, lock, value, array, pids, dictionary):
    with lock:
        value.value += 1
        array[value.value % 3] += 1
    queue.put(os.getpid())
    pids.add(os.getpid())
    dictionary[os.getpid()] = queue
    return isinstance(lock, procession.synchronize.Lock)


def test_everything_in_a_pool(context):
    with context.Manager() as manager:
        queue, lock, pids = manager.Queue(), manager.Lock(), manager.set()
        value, array, dictionary = manager.Value("i", 0), manager.Array("i", [0, 0, 0]), manager.dict()
        with context.Pool(2) as pool:
            assert all(pool.starmap(work, [(queue, lock, value, array, pids, dictionary)] * 30))
        assert value.value == 30
        assert array[:].tolist() == [10, 10, 10]
        assert queue.qsize() == 30
        seen = {queue.get() for _ in range(30)}
        assert seen == pids.copy() == set(dictionary.keys())
        for same in dictionary.values():
            assert same.empty()


def pass_on(connection, things):
    connection.send(things)


def test_what_a_process_passed_on_outlives_it(context, manager):
    lock = manager.Lock()
    things = [manager.Queue(2), lock, manager.Condition(lock)]
    things += [manager.Value("d", 0.5), manager.Array("b", [1])]
    here = things
    for _ in range(2):
        # Through two processes that are gone when it is opened.
        reader, writer = context.Pipe(duplex=False)
        process = context.Process(target=pass_on, args=(writer, things))
        process.start()
        process.join()
        things = reader.recv()
    things[0].put("there")
    assert here[0].get() == "there"
    assert not things[0].full()
    with things[2]:
        assert lock.locked()
        assert not lock.acquire(blocking=False)
        assert not things[2].wait(0)
    things[3].value += 1
    assert here[3].value == 1.5
    things[4][0] = -1
    assert list(here[4]) == [-1]


KINDS = {
    **dict.fromkeys(["Queue", "JoinableQueue", "Lock", "RLock", "Condition", "Event"], ()),
    **dict.fromkeys(["Semaphore", "BoundedSemaphore", "Barrier"], (1,)),
    **{"Value": ("i", 0), "Array": ("i", [1]), "dict": (), "list": (), "set": (), "Namespace": ()},
}


def touch(connection):
    thing = connection.recv()
    connection.send((repr(thing), thing._manager))


def test_each_object_keeps_its_manager(context):
    """The manager is kept by nothing else: `Manager().Queue()`."""
    here, there = context.Pipe()
    # What starts a manager is the slow part.
    forked = context.get_start_method() == "fork"
    for kind in KINDS if forked else ["Queue", "Value", "dict"]:
        arguments, manager = KINDS[kind], context.Manager()
        pid = manager._process.pid
        thing = getattr(manager, kind)(*arguments)
        del manager
        process = start(context, touch, there)
        here.send(thing)
        seen, kept = here.recv()
        finish(process)
        assert seen.partition(" at ")[0] == repr(thing).partition(" at ")[0]
        # As with CPython's, only where it was made.
        assert kept is None
        copied = pickle.loads(pickle.dumps(thing))
        del thing
        until(lambda pid=pid: not os.path.exists(f"/proc/{pid}"))
        del copied


def test_objects_are_proxies(manager):
    for kind, arguments in KINDS.items():
        thing = getattr(manager, kind)(*arguments)
        assert isinstance(thing, procession.managers.BaseProxy)
        assert isinstance(thing, multiprocessing.managers.BaseProxy)
        assert thing._token.typeid == kind
        assert thing._token.address == manager.address
    assert copy.deepcopy(manager.Value("i", 5)).value == 5
    assert copy.deepcopy(manager.Array("i", [5])) == array.array("i", [5])
    queue = manager.Queue()
    copy.deepcopy(queue).put(1)
    assert queue.get() == 1
    del thing
    assert manager._number_of_objects() == 1
    del queue
    assert manager._number_of_objects() == 0


def test_pickles_of_one_object(manager):
    queue = manager.Queue()
    data = pickle.dumps(queue)
    copies = [pickle.loads(data) for _ in range(3)]
    copies[0].put(1)
    copies[1].put(2)
    assert [copies[2].get(), queue.get()] == [1, 2]


def test_queues_are_as_threads_have_them(manager):
    for made in manager.Queue(1), manager.JoinableQueue(1):
        made.put("a", True)
        assert made.full()
        with pytest.raises(queue.Full):
            made.put("b", timeout=0.01)
        with pytest.raises(queue.Full):
            made.put_nowait("b")
        assert made.get(block=False) == "a"
        made.task_done()
        made.join()
        with pytest.raises(ValueError):
            made.task_done()
        with pytest.raises(queue.Empty):
            made.get_nowait()
        with pytest.raises((pickle.PicklingError, AttributeError)):
            made.put(lambda: None)
        assert made.empty()


def test_more_queues_than_descriptors():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 1000:
        pytest.skip("this process may not have enough descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
    try:
        with procession.Manager() as manager:
            for number in range(300):
                made = manager.Queue()
                made.put(number)
                assert made.get() == number
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_locks_are_as_threads_have_them(manager):
    lock = manager.Lock()
    assert lock.acquire(blocking=True, timeout=-1)
    assert not lock.acquire(False)
    assert not lock.acquire(timeout=0.01)
    lock.release()
    with pytest.raises(RuntimeError):
        lock.release()
    rlock = manager.RLock()
    with rlock, rlock:
        pass
    with pytest.raises(RuntimeError):
        rlock.release()
    semaphore = manager.Semaphore(2)
    assert semaphore.acquire() and semaphore.acquire(blocking=False) and not semaphore.acquire(blocking=False)
    bounded = manager.BoundedSemaphore()
    with bounded:
        pass
    with pytest.raises(ValueError):
        bounded.release()
    condition = manager.Condition(lock)
    with pytest.raises(RuntimeError):
        condition.notify()
    with pytest.raises(RuntimeError):
        condition.wait()
    with condition:
        assert not lock.acquire(blocking=False)
        condition.notify_all()
        assert not condition.wait_for(lambda: False, timeout=0.01)
    event = manager.Event()
    assert not event.wait(0.01)
    event.set()
    assert event.is_set() and event.wait()
    event.clear()
    barrier = manager.Barrier(1)
    assert (barrier.wait(), barrier.parties, barrier.n_waiting, barrier.broken) == (0, 1, 0, False)


def hold(lock, ready):
    lock.acquire()
    ready.set()
    time.sleep(1000)


def test_a_lock_of_a_killed_process_goes_to_the_next(context, manager):
    lock, ready = manager.Lock(), manager.Event()
    process = context.Process(target=hold, args=(lock, ready))
    process.start()
    ready.wait()
    process.kill()
    process.join()
    with pytest.warns(procession.OwnerDiedWarning):
        assert lock.acquire()
    lock.release()


def test_values_in_shared_memory(manager):
    value = manager.Value("i", 3)
    assert (value.value, value.get(), str(value)) == (3, 3, "Value('i', 3)")
    assert repr(value).startswith("<ValueProxy object, typeid 'Value' at 0x")
    assert (manager.Value("I", -1).value, manager.Value("f", 0.1).value) == (-1, 0.1)
    assert type(manager.Value("l", 1, lock=False)) is type(value)


OBJECTS = [
    None,
    True,
    0,
    -(2**63),
    2**70,
    2**2000,
    0.5,
    "",
    "text",
    "\ud800",
    b"\0",
    "x" * 120,
    "x" * 121,
    [1],
    {},
]


@pytest.mark.parametrize("typecode", ["i", "d", ctypes.c_char_p, str, object, "anything"])
def test_values_hold_any_object(manager, typecode):
    for first in OBJECTS:
        value = manager.Value(typecode, first)
        assert isinstance(value, procession.managers.ValueProxy)
        other = pickle.loads(pickle.dumps(value))
        for which, expected in enumerate([first, *OBJECTS]):
            if which:
                value.value = expected
            for each in value, other:
                assert (each.value, type(each.value)) == (expected, type(expected))
            assert str(other) == f"Value({typecode!r}, {expected!r})"


class Point:
    """What a process without this module cannot unpickle."""


def append(value, what):
    value.value = value.value + what


def test_values_in_other_processes(context, manager):
    text, items, shared = manager.Value("i", "x"), manager.Value("i", [1]), manager.Value(Point, 0)
    lines = manager.list()
    shared.value = lines
    for what in ["y", "z" * 200]:
        finish(start(context, append, text, what))
    finish(start(context, append, items, [2]))
    shared.value.append(1)
    assert (text.value, items.value, lines[:]) == ("xy" + "z" * 200, [1, 2], [1])
    nested = manager.dict(text=text)
    nested["text"].value = 1
    assert text.value == 1


class Setter:
    """Uses a value in the manager's process."""

    def set(self, value, what):
        value.value = what
        return value.value


def test_values_in_the_managers_process():
    with Mine() as manager:
        value, setter = manager.Value("i", 0), manager.Setter()
        for what in OBJECTS:
            assert setter.set(value, what) == what == value.value


def set_for_ever(value, values, ready):
    for count in itertools.count():
        value.value = values[count % 2]
        if count == 2:
            ready.set()


@pytest.mark.parametrize("values", [("a" * 100, "b" * 100), ("a" * 100, ["b"] * 100)])
def test_a_value_survives_those_that_set_it(manager, values):
    value = manager.Value("i", values[0])
    for _ in range(20):
        ready = manager.Event()
        process = procession.get_context("fork").Process(target=set_for_ever, args=(value, values, ready))
        process.start()
        ready.wait()
        assert value.value in values
        kill(process)
        assert value.value in values
        value.value = 1
        assert value.value == 1


def test_a_signals_handler_sets_a_value(manager):
    value, count = manager.Value("i", 0), 0

    def handler(signum, frame):
        nonlocal count
        mine = count = count + 1
        value.value = -mine
        # Another handler may have run in this one.
        seen = value.value
        assert -count <= seen <= -mine

    with alarms(handler):
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        while count < 200:
            value.value = "x" * 100
            assert value.value == "x" * 100 or value.value <= 0


def test_arrays(manager):
    array = manager.Array("i", range(5))
    assert (len(array), list(array), str(array)) == (5, [0, 1, 2, 3, 4], "array('i', [0, 1, 2, 3, 4])")
    array[0] = 10
    array[1:3] = array[3:5]
    assert array[-1] == 4
    assert array[::2].tolist() == [10, 4, 4]
    assert repr(array).startswith("<ArrayProxy object, typeid 'Array' at 0x")
    assert len(manager.Array("d", [])) == 0
    assert str(manager.Array("u", "ab")) == "array('u', 'ab')"
    with pytest.raises(TypeError):
        manager.Array("i", ["x"])


def lengthen(items, barrier):
    barrier.wait()
    for _ in range(10):
        items[0:0] = array.array("i", [1])
        items[0] += 0


def test_an_array_whose_length_changes(context, manager):
    items, barrier = manager.Array("i", [0]), manager.Barrier(3)
    processes = [start(context, lengthen, items, barrier) for _ in range(3)]
    for process in processes:
        finish(process)
    assert (len(items), sum(items)) == (31, 30)
    assert len(pickle.loads(pickle.dumps(items))) == 31


def test_sets(manager):
    made = manager.set([1, 2])
    made |= {3}
    made.add(4)
    made.discard(1)
    assert 4 in made and len(made) == 3
    assert sorted(made) == [2, 3, 4]
    assert made & {2, 9} == {2}
    assert made >= {2}
    assert made.copy() == {2, 3, 4}


def test_what_cpython_got_later(manager):
    table = manager.dict(a=1, b=2)
    assert (table | {"c": 3}, {"a": 0, "d": 4} | table) == (
        {"a": 1, "b": 2, "c": 3},
        {"a": 1, "d": 4, "b": 2},
    )
    same = table
    table |= {"c": 3}
    assert table is same and table.copy() == {"a": 1, "b": 2, "c": 3}
    assert list(reversed(table)) == ["c", "b", "a"]
    assert table.fromkeys("xy", 0) == {"x": 0, "y": 0}
    items = manager.list([2, 1])
    assert items.copy() == [2, 1] and list(reversed(items)) == [1, 2]
    items.clear()
    assert items[:] == []
    with pytest.raises(TypeError):
        table | 1


def test_what_stays_with_the_process(manager):
    namespace, items, table = manager.Namespace(), manager.list([3, 1]), manager.dict(a=1)
    namespace.x = items
    namespace.x.append(2)
    items.sort()
    table.update(b=[items, 2])
    assert (list(items), table["b"][0][:], str(items)) == ([1, 2, 3], [1, 2, 3], "[1, 2, 3]")
    with manager.Pool(1) as pool:
        assert pool.map(abs, [-1]) == [1]


class Counter:
    def __init__(self):
        self.count = 0

    def next(self):
        self.count += 1
        return self.count


class Mine(SyncManager):
    pass


Mine.register("Counter", Counter)
Mine.register("Setter", Setter)
Mine.register("Lock", Counter)


def test_registered_types(context):
    with Mine(ctx=context) as manager:
        counter = manager.Counter()
        assert [counter.next(), counter.next()] == [1, 2]
        # It goes before ours.
        assert manager.Lock().next() == 1
        assert manager.Queue().empty()


class Remote(BaseManager):
    pass


QUEUE = queue.Queue()
Remote.register("queue", callable=lambda: QUEUE)


def test_a_server_in_a_process_of_its_own(tmp_path):
    address = str(tmp_path / "socket")
    with Remote(address=address, authkey=b"k", ctx=procession.get_context("fork")) as server:
        server.queue().put("over the socket")
        client = Remote(address=address, authkey=b"k")
        client.connect()
        assert client.queue().get() == "over the socket"


def test_a_client_of_a_manager(tmp_path):
    address = str(tmp_path / "socket")
    with SyncManager(address=address, authkey=b"k") as server:
        client = SyncManager(address=address, authkey=b"k")
        client.connect()
        made = client.Queue()
        made.put(1)
        assert made.get() == 1
        assert client.list([server.Event().is_set()])[0] is False


def test_errors_name_their_reason(manager):
    with pytest.raises(procession.managers.RemoteError, match="ValueError"):
        manager.Semaphore(-1)
    with pytest.raises(procession.managers.RemoteError, match="TypeError"):
        manager.Queue("many")
    made = manager.Queue()
    data = pickle.dumps(made)
    manager.shutdown()
    # A process that has it serves others; when it is gone, it cannot be opened any more.
    made.put(1)
    assert pickle.loads(data).get() == 1
    made.put(2)
    assert pickle.loads(pickle.dumps(made)).get() == 2
    del made
    with pytest.raises(procession.managers.ManagerDied):
        pickle.loads(data)


def test_what_a_manager_needs_that_runs():
    for kind, method in [(SharedMemoryManager, "SharedMemory"), (SharedMemoryManager, "ShareableList")]:
        with pytest.raises(ValueError):
            getattr(kind(), method)(8)
    with pytest.raises(AssertionError):
        SyncManager().Queue()


def test_proxies_are_collections(manager):
    # As CPython's of 3.14 are, in every version.
    for thing, kind in [
        (manager.dict(), collections.abc.MutableMapping),
        (manager.list(), collections.abc.MutableSequence),
        (manager.set(), collections.abc.MutableSet),
    ]:
        assert isinstance(thing, kind)


def test_shared_memory_manager(context):
    with SharedMemoryManager(ctx=context) as manager:
        block = manager.SharedMemory(16)
        block.buf[0] = 7
        items = manager.ShareableList([1, "two"])
        assert list(items) == [1, "two"]
        name = block.name
        block.close()
        items.shm.close()
    with pytest.raises(FileNotFoundError):
        procession.shared_memory.SharedMemory(name)


def start_and_die(method, kind, connection):
    manager = kind(ctx=procession.get_context(method))
    manager.start()
    connection.send(manager._process.pid)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("kind", [SyncManager, SharedMemoryManager])
def test_a_manager_ends_with_who_started_it(context, kind):
    reader, writer = procession.Pipe(duplex=False)
    arguments = (context.get_start_method(), kind, writer)
    process = procession.get_context("spawn").Process(target=start_and_die, args=arguments)
    process.start()
    pid = reader.recv()
    process.join()
    while True:
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] in "ZX":
                    break
        except FileNotFoundError:
            break
        time.sleep(0.01)
