"""A manager's process that ends, and clients that end in the middle of a call."""

import errno
import gc
import os
import pickle
import queue
import random
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time

import procession
import pytest
from processes import ended, finish, fork, sleeps, start, until
from procession.managers import BaseManager, ManagerDied, SyncManager


class Server:
    """What tests have in a manager's process."""

    def sleep(self, seconds):
        time.sleep(seconds)

    def echo(self, value):
        return value

    def zeros(self, size):
        return bytes(size)

    def threads(self):
        return threading.active_count()

    def start_child(self):
        """A child by fork, with copies of all the process has."""
        pid = os.fork()
        if pid == 0:
            time.sleep(1000)
        return pid


class Manager(SyncManager):
    pass


Manager.register("Server", Server)


@pytest.fixture
def manager():
    with Manager() as manager:
        yield manager


def killed(manager):
    os.kill(manager._process.pid, signal.SIGKILL)
    manager._process.join()


def test_the_error_says_what_died(manager):
    table = manager.dict(a=1)
    pid, address = manager._process.pid, manager.address
    killed(manager)
    for attempt in (
        *(lambda: table["a"], lambda: manager.list(), lambda: pickle.dumps(table)),
        *(lambda: iter(table), lambda: manager.Queue(), lambda: manager._number_of_objects()),
    ):
        with pytest.raises(ManagerDied) as caught:
            attempt()
        assert (caught.value.address, caught.value.pid) == (address, pid)
        assert isinstance(caught.value, ConnectionError) and isinstance(caught.value, EOFError)
        assert str(pid) in str(caught.value) and repr(address) in str(caught.value)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (type(copy), copy.address, copy.pid, str(copy)) == (ManagerDied, address, pid, str(caught.value))
    assert "failed" in str(table)


def wait_in_a_call(server, results):
    results.put(os.getpid())
    try:
        server.sleep(1000)
    except ManagerDied as error:
        results.put(error)


def test_who_waits_in_a_call_is_told(context, manager):
    server, results = manager.Server(), context.Queue()
    process = start(context, wait_in_a_call, server, results)
    thread = threading.Thread(target=wait_in_a_call, args=(server, results), daemon=True)
    thread.start()
    assert {results.get(), results.get()} == {process.pid, os.getpid()}
    until(lambda: server.threads() > 4)
    pid = manager._process.pid
    killed(manager)
    assert [results.get().pid, results.get().pid] == [pid, pid]
    finish(process)
    thread.join()


def test_children_of_the_manager_do_not_keep_its_connections(manager):
    server, other = manager.Server(), manager.dict()
    other["a"] = 1
    child = server.start_child()
    try:
        killed(manager)
        with pytest.raises(ManagerDied):
            server.threads()
        with pytest.raises(ManagerDied):
            manager.list()
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_shut_down_manager(manager):
    table = manager.dict()
    manager.shutdown()
    with pytest.raises(ManagerDied):
        table["a"]
    with pytest.raises(AssertionError, match="not yet started"):
        manager.list()


def test_another_manager_at_the_address(tmp_path):
    address = str(tmp_path / "socket")
    first = SyncManager(address=address)
    first.start()
    old = first.list(["old"])
    os.kill(first._process.pid, signal.SIGKILL)
    first._process.join()
    os.unlink(address)
    with SyncManager(address=address) as second:
        items = second.list(["new"])
        with pytest.raises(ManagerDied):
            old[0]
        assert (items[0], second._number_of_objects()) == ("new", 1)
        del old
        gc.collect()
        assert second._number_of_objects() == 1


def hammer(table, items):
    mine = items[0]
    while True:
        table[os.getpid()] = bytes(random.randrange(100_000))
        mine.append(table.get(os.getpid()))
        mine.pop()
        table["nested"] = [items, mine]
        for inner in items:
            len(inner)


def test_clients_that_are_killed_anywhere(context):
    with Manager(ctx=context) as manager:
        table, server = manager.dict(), manager.Server()
        items = manager.list([manager.list()])
        before = server.threads()
        for number in range(12 if context.get_start_method() == "fork" else 3):
            processes = [start(context, hammer, table, items) for _ in range(2)]
            until(lambda: {process.pid for process in processes} <= set(table.keys()))
            time.sleep(random.random() * 0.05)
            for process in processes:
                process.kill()
                process.join()
            table.clear()
            table["a"] = number
            assert table["a"] == number
        table.clear()
        assert manager._number_of_objects() == 4
        del items
        until(lambda: manager._number_of_objects() == 2)
        until(lambda: server.threads() <= before)


@pytest.mark.parametrize("call", ["zeros", "echo"])
def test_a_client_that_is_stopped_in_a_call(manager, call):
    """It neither takes its reply nor gives all of its request."""
    server = manager.Server()
    before = server.threads()

    def work():
        while True:
            server.zeros(10_000_000) if call == "zeros" else server.echo(bytes(10_000_000))

    pid = fork(work)
    try:
        until(lambda: server.threads() > before)
        for _ in range(5):
            os.kill(pid, signal.SIGSTOP)
            assert server.echo("others go on") == "others go on"
            assert list(manager.list([1])) == [1]
            os.kill(pid, signal.SIGCONT)
            time.sleep(random.random() * 0.02)
    finally:
        os.kill(pid, signal.SIGKILL)
        assert ended(pid) == -signal.SIGKILL
    until(lambda: server.threads() <= before)


def test_a_stopped_manager_can_be_shut_down():
    manager = Manager(shutdown_timeout=0.2)
    manager.start()
    process = manager._process
    manager.dict()
    os.kill(process.pid, signal.SIGSTOP)
    manager.shutdown()
    assert process.exitcode == -signal.SIGKILL


def test_a_manager_that_is_slow_is_not_dead(manager):
    table = manager.dict()
    pid = manager._process.pid
    os.kill(pid, signal.SIGSTOP)
    child = fork(lambda: table.update(a=1))
    until(lambda: sleeps(child))
    os.kill(pid, signal.SIGCONT)
    assert ended(child) == 0
    assert table["a"] == 1


def test_no_descriptors_in_a_client(manager):
    """That is another error, and no more than that."""
    table = manager.dict(a=1)

    def work():
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            table["a"]
        except OSError as error:
            assert error.errno == errno.EMFILE
        else:
            raise AssertionError
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert table["a"] == 1

    assert ended(fork(work)) == 0


def fail():
    raise ValueError("the initializer's")


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_manager_that_cannot_start(context, tmp_path):
    with pytest.raises(ValueError, match="the initializer's") as caught:
        SyncManager(ctx=context).start(fail)
    assert "in fail" in str(caught.value.__cause__)
    with pytest.raises(ManagerDied):
        SyncManager(ctx=context).start(die)
    (tmp_path / "taken").write_text("")
    with pytest.raises(OSError, match="in use"):
        SyncManager(str(tmp_path / "taken"), ctx=context).start()
    assert procession.active_children() == []


class Remote(BaseManager):
    pass


Remote.register("get_queue", callable=queue.Queue)


def serve(connection):
    server = Remote(address=("127.0.0.1", 0), authkey=b"key").get_server()
    connection.send(server.address)
    server.serve_forever()


def test_a_server_that_is_killed():
    """Over TCP, and without a manager's process."""
    context = procession.get_context("fork")
    reader, writer = procession.Pipe(duplex=False)
    process = start(context, serve, writer)
    client = Remote(address=reader.recv(), authkey=b"key")
    client.connect()
    tasks = client.get_queue()
    tasks.put(1)
    assert tasks.get() == 1
    child = fork(lambda: tasks.put("from a forked child"))
    assert ended(child) == 0
    assert tasks.get() == "from a forked child"
    timer = threading.Timer(0.1, process.kill)
    timer.start()
    with pytest.raises(ManagerDied) as caught:
        tasks.get()
    assert caught.value.pid == process.pid
    process.join()
    with pytest.raises(ConnectionRefusedError):
        Remote(address=client.address, authkey=b"key").connect()


@pytest.mark.parametrize("method", ["get", "put", "acquire"])
def test_a_dead_client_takes_nothing(method):
    """The thread that waited for it in the manager's process does not take what comes later."""
    with Plain(ctx=procession.get_context("fork")) as manager:
        tasks, lock, server = manager.Tasks(1), manager.Plain_lock(), manager.Server()
        before = server.threads()
        lock.acquire()
        if method == "put":
            tasks.put("first")
        call = {"get": tasks.get, "put": lambda: tasks.put("the dead one's"), "acquire": lock.acquire}[method]
        pid = fork(call)
        until(lambda: server.threads() > before)
        until(lambda: sleeps(pid))
        os.kill(pid, signal.SIGKILL)
        assert ended(pid) == -signal.SIGKILL
        until(lambda: server.threads() <= before)
        if method == "get":
            tasks.put("for the living")
            assert tasks.get(timeout=1000) == "for the living"
        if method == "put":
            assert (tasks.get(), tasks.empty()) == ("first", True)
        lock.release()
        assert lock.acquire(timeout=1000)


def test_a_condition_is_not_acquired_for_the_dead():
    with Plain(ctx=procession.get_context("fork")) as manager:
        condition, server = manager.Plain_condition(), manager.Server()
        assert condition.acquire()
        threads = server.threads()
        pid = fork(condition.acquire)
        # Those of its session and of its call.
        until(lambda: server.threads() == threads + 2)
        until(lambda: sleeps(pid))
        os.kill(pid, signal.SIGKILL)
        ended(pid)
        until(lambda: server.threads() == threads)
        condition.release()
        assert condition.acquire(False)
        condition.release()


def test_calls_that_wait_are_as_they_were():
    with Plain(ctx=procession.get_context("fork")) as manager:
        tasks, lock = manager.Tasks(1), manager.Plain_lock()
        for call in lambda: tasks.get(False), lambda: tasks.get(True, 0.3), lambda: tasks.get(timeout=0):
            with pytest.raises(queue.Empty):
                call()
        tasks.put(item=1, timeout=5)
        for call in lambda: tasks.put(2, False), lambda: tasks.put(2, timeout=0.3):
            with pytest.raises(queue.Full):
                call()
        with pytest.raises(ValueError, match="non-negative"):
            tasks.put(1, timeout=-1)
        with pytest.raises(TypeError):
            tasks.get(1, 2, 3)
        assert lock.acquire() is True
        assert lock.acquire(False) is False
        assert lock.acquire(True, 0.3) is False
        assert lock.acquire(timeout=0.3) is False
        with pytest.raises(ValueError):
            lock.acquire(True, -2)
        threading.Timer(0.3, lock.release).start()
        assert lock.acquire(True, -1) is True


class Plain(BaseManager):
    pass


Plain.register("Tasks", queue.Queue)
Plain.register("Plain_lock", threading.Lock)
Plain.register("Plain_condition", threading.Condition)
Plain.register("Server", Server)


def run(tmp_path, text, *arguments, **options):
    path = tmp_path / "program.py"
    path.write_text(textwrap.dedent(text))
    return subprocess.Popen(
        [sys.executable, str(path), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def gone(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def members(group):
    """The processes of a group that have not ended."""
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return [pid for pid in pids if not gone(pid) and group_of(pid) == group]


def group_of(pid):
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


@pytest.mark.parametrize("end", ["pass", "sys.exit(3)", "1 / 0", "os._exit(4)", "os.abort()"])
def test_a_manager_ends_with_the_program(tmp_path, context, end):
    program = f"""
        import os, sys, procession

        if __name__ == "__main__":
            manager = procession.get_context(sys.argv[1]).Manager()
            kept = manager.dict(a=manager.list())
            print(manager._process.pid, flush=True)
            {end}
    """
    process = run(tmp_path, program, context.get_start_method())
    pid = int(process.stdout.readline())
    _, errors = process.communicate()
    until(lambda: gone(pid))
    assert errors.count("Traceback") == (1 if end == "1 / 0" else 0), errors


def test_ctrl_c(tmp_path, context):
    """At any moment: what is running is ended, and only the program itself says so."""
    program = """
        import os, sys, procession

        if __name__ == "__main__":
            print("here", flush=True)
            with procession.get_context(sys.argv[1]).Manager() as manager:
                table = manager.dict()
                print(manager._process.pid, flush=True)
                while True:
                    table["a"] = 1
    """
    forkserver = context.get_start_method() == "forkserver"
    for wait in 0, 0.05, None, None:
        process = run(tmp_path, program, context.get_start_method(), start_new_session=True)
        process.stdout.readline()
        pid = None
        # A forkserver's child imports the program before anything of the package runs there.
        if wait is None or forkserver:
            pid = int(process.stdout.readline())
        else:
            time.sleep(wait)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate()
        if pid is not None:
            until(lambda: gone(pid))
        assert errors.count("Traceback") == 1, errors
        assert errors.rstrip().endswith("KeyboardInterrupt"), errors
        # The tracker of resources ends a moment later.
        until(lambda: not members(process.pid))
