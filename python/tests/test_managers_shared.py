"""How long a manager's objects in shared memory live: as long as a process has them."""

import os
import pickle
import random
import resource
import signal
import time

import procession
import pytest
from processes import ended, finish, fork, kill, start, until
from procession.managers import SyncManager

KINDS = {
    **dict.fromkeys(["Queue", "JoinableQueue", "Lock", "RLock", "Condition", "Event"], ()),
    **dict.fromkeys(["Semaphore", "BoundedSemaphore", "Barrier"], (1,)),
    **{"Value": ("i", 0), "Array": ("i", [1])},
}
LIMIT = 256


@pytest.fixture
def manager():
    with SyncManager() as manager:
        yield manager


def one_of_each(manager):
    return [getattr(manager, kind)(*arguments) for kind, arguments in KINDS.items()]


def objects(manager):
    return manager._number_of_objects()


def descriptors(manager):
    return len(os.listdir(f"/proc/{manager._process.pid}/fd"))


def use(things):
    """Use an object of each kind that `one_of_each` makes."""
    queue, joinable, lock, rlock, condition, event, *counting, barrier, value, numbers = things
    for each in queue, joinable:
        each.put("there")
        assert each.get() == "there"
    for each in lock, rlock, condition, *counting:
        with each:
            pass
    event.set()
    assert event.is_set()
    barrier.wait()
    value.value = "a text that is not in shared memory " * 10
    assert value.value.startswith("a text")
    value.value = 1
    numbers[:] = numbers[:] + numbers[:]
    assert list(numbers) == [1, 1]
    numbers[:] = numbers[:1]


def make_and_drop(method):
    resource.setrlimit(resource.RLIMIT_NOFILE, (LIMIT, LIMIT))
    with procession.get_context(method).Manager() as manager:
        names = list(KINDS)
        for number in range(5000):
            kind = names[number % len(names)]
            made = getattr(manager, kind)(*KINDS[kind])
            if kind == "Queue":
                made.put(number)
                assert made.get() == number
        del made
        assert objects(manager) == 0


def test_more_objects_than_descriptors(context):
    finish(start_undaemonic(context, make_and_drop, context.get_start_method()))


def start_undaemonic(context, target, *args):
    process = context.Process(target=target, args=args)
    process.start()
    return process


def test_objects_in_other_objects(context):
    with context.Manager() as manager:
        table, items = manager.dict(), manager.list()
        table["things"] = one_of_each(manager)
        items.append(manager.dict(things=one_of_each(manager)))
        assert objects(manager) == 3 + 2 * len(KINDS)
        use(table["things"])
        use(items[0]["things"])
        process = start(context, use_from, table, items)
        finish(process)
        until(lambda: objects(manager) == 3 + 2 * len(KINDS))
        table.clear()
        items.clear()
        assert objects(manager) == 2


def use_from(table, items):
    use(table["things"])
    use(items[0]["things"])


def test_a_condition_holds_its_lock(manager):
    condition = manager.Condition(manager.Lock())
    assert objects(manager) == 2
    copied = pickle.loads(pickle.dumps(condition))
    del condition
    with copied:
        copied.notify()
    assert objects(manager) == 2
    del copied
    assert objects(manager) == 0


def wait_and_use(things, dropped):
    dropped.wait()
    use(things)


def test_what_a_child_has_got(context):
    with context.Manager() as manager:
        dropped, things = context.Event(), one_of_each(manager)
        process = start(context, wait_and_use, things, dropped)
        del things
        assert objects(manager) == len(KINDS)
        dropped.set()
        finish(process)
        until(lambda: objects(manager) == 0)


def receive_and_use(queue, reader, dropped):
    dropped.wait()
    use(queue.get())
    use(reader.recv())


def test_what_is_on_its_way(context):
    with context.Manager() as manager:
        dropped, queue = context.Event(), context.Queue()
        reader, writer = context.Pipe(duplex=False)
        process = start(context, receive_and_use, queue, reader, dropped)
        queue.put(one_of_each(manager))
        writer.send(one_of_each(manager))
        assert objects(manager) == 2 * len(KINDS)
        dropped.set()
        finish(process)
        until(lambda: objects(manager) == 0)


def send_and_die(queue, manager_address, things):
    manager = SyncManager(manager_address)
    manager.connect()
    queue.put((things[0], manager.Lock()))
    os.kill(os.getpid(), signal.SIGKILL)


def test_from_a_process_that_was_killed(context):
    with context.Manager() as manager:
        queue = context.Queue()
        process = start(context, send_and_die, queue, manager.address, [manager.Queue()])
        process.join()
        assert process.exitcode == -signal.SIGKILL
        theirs, lock = queue.get()
        theirs.put(1)
        assert theirs.get() == 1
        with lock:
            assert objects(manager) == 2
        del theirs, lock
        until(lambda: objects(manager) == 0)


def have(things, ready):
    ready.set()
    time.sleep(1000)


def test_a_killed_process_holds_nothing(context):
    with context.Manager() as manager:
        before = descriptors(manager)
        things, ready = one_of_each(manager), context.Event()
        process = start(context, have, things, ready)
        ready.wait()
        del things
        assert objects(manager) == len(KINDS)
        kill(process)
        until(lambda: objects(manager) == 0)
        # A look at what else can be closed comes with what is made next.
        until(lambda: manager.Queue() and descriptors(manager) <= before + 12)


def hammer(manager, table):
    table[os.getpid()] = True
    while True:
        things = one_of_each(manager)
        table["things"] = things
        pickle.loads(pickle.dumps(table["things"]))


class Hasty(SyncManager):
    class _Server(SyncManager._Server):
        # A process may be killed between a pickle and its reading.
        transit_seconds = 0.2


def test_clients_that_are_killed_anywhere():
    with Hasty(ctx=procession.get_context("fork")) as manager:
        table = manager.dict()
        before = descriptors(manager)
        for _ in range(25):
            pids = [fork(lambda: hammer(manager, table)) for _ in range(2)]
            until(lambda pids=pids: set(pids) <= set(table.keys()))
            time.sleep(random.random() * 0.05)
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
                ended(pid)
            table.clear()
            table["things"] = one_of_each(manager)
            use(table["things"])
        assert len(manager._debug_info().splitlines()) >= 2 * (1 + len(KINDS))
        table.clear()
        until(lambda: objects(manager) == 1)
        until(lambda: manager.Queue() and descriptors(manager) <= before + 12)


def test_a_forked_child_has_what_the_parent_drops_at_once(manager):
    reader, writer = os.pipe()
    things = one_of_each(manager)

    def work():
        os.close(writer)
        # The parent has dropped them.
        os.read(reader, 1)
        use(pickle.loads(pickle.dumps(things)))

    pid = fork(work)
    os.close(reader)
    things.clear()
    assert objects(manager) == len(KINDS)
    os.close(writer)
    assert ended(pid) == 0
    until(lambda: objects(manager) == 0)


def test_a_pickle_of_an_object_that_is_gone(manager):
    made = manager.Queue()
    data = pickle.dumps(made)
    first = pickle.loads(data)
    del made
    assert objects(manager) == 1
    del first
    assert objects(manager) == 0
    with pytest.raises(procession.managers.RemoteError, match="nobody had a proxy"):
        pickle.loads(data)
