"""Contexts and processes."""

import importlib
import multiprocessing
import os
import pkgutil
import signal
import subprocess
import sys
import threading
import time

import procession
import pytest
from processes import METHODS

WATCHDOG = 120

FACTORIES = {
    "Queue": ("queues", ()),
    "JoinableQueue": ("queues", ()),
    "SimpleQueue": ("queues", ()),
    "Lock": ("synchronize", ()),
    "RLock": ("synchronize", ()),
    "Semaphore": ("synchronize", (2,)),
    "BoundedSemaphore": ("synchronize", (2,)),
    "Condition": ("synchronize", ()),
    "Event": ("synchronize", ()),
    "Barrier": ("synchronize", (2,)),
}


def python(code, *arguments):
    """What a program that ended well has printed."""
    command = [sys.executable, *arguments, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WATCHDOG, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    return done.stdout


def wait_until_gone(pids):
    """Wait until the processes have ended; the watchdog says if one does not."""
    while any(is_running(pid) for pid in pids):
        time.sleep(0.01)


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_every_public_name_is_there():
    assert set(multiprocessing.__all__) <= set(procession.__all__)
    for name in procession.__all__:
        assert getattr(procession, name) is not None, name
    assert procession.SUBDEBUG == multiprocessing.SUBDEBUG
    assert procession.SUBWARNING == multiprocessing.SUBWARNING
    assert issubclass(procession.TimeoutError, procession.ProcessError)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        procession.nothing


def test_every_submodule_is_there():
    windows = {"popen_spawn_win32"}
    for module in pkgutil.iter_modules(multiprocessing.__path__):
        if module.name in windows:
            continue
        theirs = importlib.import_module(f"multiprocessing.{module.name}")
        ours = importlib.import_module(f"procession.{module.name}")
        assert getattr(procession, module.name) is ours
        for name in getattr(theirs, "__all__", ()):
            assert hasattr(ours, name), f"{module.name}.{name}"
    assert importlib.import_module("procession.dummy.connection").Pipe
    from procession.pool import RUN, ThreadPool  # noqa: F401


def test_the_import_leaves_what_is_not_used():
    loaded = python("import sys, procession; print(*sys.modules)").split()
    assert "procession.context" in loaded
    for name in ("_procession", "managers", "pool", "queues", "sharedctypes", "synchronize"):
        assert f"procession.{name}" not in loaded


def test_contexts_are_those_of_multiprocessing(context):
    method = context.get_start_method()
    theirs = multiprocessing.get_context(method)
    assert isinstance(context, type(theirs))
    assert issubclass(context.Process, theirs.Process)
    assert context.Process._start_method == method
    assert procession.get_context(method) is context
    assert context.get_context() is context
    with pytest.raises(ValueError):
        context.set_start_method("spawn")
    with pytest.raises(ValueError, match="cannot find context for 'nothing'"):
        context.get_context("nothing")


def test_what_a_context_makes_is_ours(context):
    for name, (module, arguments) in FACTORIES.items():
        made = getattr(context, name)(*arguments)
        assert type(made) is getattr(importlib.import_module(f"procession.{module}"), name)
    value = context.Value("i", 5)
    assert value.value == 5
    assert isinstance(value.get_lock(), procession.synchronize.RLock)
    assert list(context.Array("i", [1, 2])) == [1, 2]
    assert context.RawValue("d", 0.5).value == 0.5
    assert list(context.RawArray("h", 2)) == [0, 0]


def test_the_start_method_is_set_for_both_packages():
    code = """
import multiprocessing, procession
assert procession.get_start_method(allow_none=True) is None
procession.set_start_method("spawn")
assert multiprocessing.get_start_method() == procession.get_start_method() == "spawn"
try:
    procession.set_start_method("fork")
except RuntimeError as error:
    print(error)
multiprocessing.set_start_method("fork", force=True)
assert procession.get_context() is procession.get_context("fork")
procession.set_start_method(None, force=True)
assert multiprocessing.get_start_method(allow_none=True) is None
assert procession.get_all_start_methods() == multiprocessing.get_all_start_methods()
"""
    assert python(code) == "context has already been set\n"


def tell_start_method(queue):
    queue.put((procession.get_start_method(), multiprocessing.get_start_method()))
    child = procession.Process(target=queue.put, args=("grandchild",))
    child.start()
    child.join()
    queue.put((child._popen.method, child.exitcode, procession.parent_process().pid))


def test_a_child_starts_its_own_children_in_the_same_way(context):
    method = context.get_start_method()
    queue = context.Queue()
    process = context.Process(target=tell_start_method, args=(queue,))
    process.start()
    assert queue.get() == (method, method)
    assert queue.get() == "grandchild"
    assert queue.get() == (method, 0, os.getpid())
    process.join()
    assert process.exitcode == 0


def exchange(queue, lock, value):
    with lock:
        value.value += 1
    queue.put(queue.get() + 1)


@pytest.mark.parametrize("made_by", METHODS)
def test_what_one_context_made_goes_with_another(context, made_by):
    maker = procession.get_context(made_by)
    queue, lock, value = maker.Queue(), maker.Lock(), maker.Value("i", 0)
    queue.put(1)
    process = context.Process(target=exchange, args=(queue, lock, value))
    process.start()
    process.join()
    assert (queue.get(), value.value, process.exitcode) == (2, 1, 0)


def test_a_forkserver_has_what_its_children_need():
    code = """
import sys, {0} as multiprocessing
if "{0}" == "multiprocessing":
    import procession
    procession.install()
multiprocessing.set_forkserver_preload(["decimal"])
context = multiprocessing.get_context("forkserver")
queue = context.Queue()
context.Process(target=exec, args=("import sys; sys.stdout.write(str({{'procession.queues', 'decimal'}} <= loaded))",
    {{"loaded": Loaded()}})).start()
"""
    # What is loaded before the child has been told anything.
    probe = """
import sys
class Loaded:
    def __reduce__(self):
        return eval, ("set(__import__('sys').modules)",)
"""
    for package in "procession", "multiprocessing":
        assert python(probe + code.format(package)) == "True"


class Answer(procession.Process):
    def __init__(self, queue, gate):
        super().__init__(name="answer", daemon=False)
        self.queue = queue
        self.gate = gate

    def run(self):
        self.gate.wait()
        self.queue.put((procession.current_process().name, os.getpid()))
        sys.exit(3)


def test_a_subclass_of_process():
    queue, gate = procession.Queue(), procession.Event()
    process = Answer(queue, gate)
    assert "initial" in repr(process)
    process.start()
    assert process in procession.active_children()
    gate.set()
    assert queue.get() == ("answer", process.pid)
    process.join()
    assert process.exitcode == 3
    process.close()
    with pytest.raises(ValueError):
        process.is_alive()


def wait_for_ctrl_c(ready, queue):
    try:
        ready.set()
        while True:
            # A signal that comes just before a sleep ends only the next one.
            time.sleep(0.01)
    except KeyboardInterrupt:
        queue.put("interrupted")


def test_interrupt(context):
    ready, queue = context.Event(), context.Queue()
    process = context.Process(target=wait_for_ctrl_c, args=(ready, queue))
    process.start()
    ready.wait()
    process.interrupt()
    assert queue.get() == "interrupted"
    process.join()
    assert process.exitcode == 0
    process.interrupt()
    process.close()
    with pytest.raises(ValueError):
        process.interrupt()


def sleep_for_ever(queue):
    # It has to be killed: it does not end by itself.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    queue.put((os.getpid(), len(os.listdir("/proc/self/task"))))
    while True:
        time.sleep(60)


def start_children(method, queue, in_thread, daemon):
    context = procession.get_context(method)
    processes = [context.Process(target=sleep_for_ever, args=(queue,), daemon=daemon) for _ in range(2)]

    def start():
        for process in processes:
            process.start()

    if in_thread:
        thread = threading.Thread(target=start)
        thread.start()
        thread.join()
    else:
        start()
    queue.put("started")
    while True:
        time.sleep(60)


@pytest.mark.parametrize("in_thread", [False, True])
def test_daemons_end_with_a_parent_that_is_killed(context, in_thread):
    queue = procession.get_context("spawn").Queue()
    parent = procession.get_context("spawn").Process(
        target=start_children, args=(context.get_start_method(), queue, in_thread, True)
    )
    parent.start()
    told = [queue.get() for _ in range(3)]
    told.remove("started")
    pids = [pid for pid, _ in told]
    # The thread that started them has ended long ago.
    time.sleep(0.2)
    assert all(is_running(pid) for pid in pids)
    if not in_thread and context.get_start_method() != "forkserver":
        # For the kernel forgets its promise when a process gives root up.
        needed = 2 if os.geteuid() == 0 else 1
        assert [threads for _, threads in told] == [needed, needed]
    parent.kill()
    parent.join()
    wait_until_gone(pids)


def give_up_root(queue=None):
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    if queue is not None:
        queue.put(os.getpid())


def sleep_as_nobody(queue):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    give_up_root(queue)
    while True:
        time.sleep(60)


def start_what_gives_up_root(method, what, queue):
    context = procession.get_context(method)
    if what == "daemon":
        kept = context.Process(target=sleep_as_nobody, args=(queue,), daemon=True)
        kept.start()
    elif what == "pool":
        kept = context.Pool(1, give_up_root, (queue,))
    else:
        kept = procession.managers.SyncManager(ctx=context)
        # Its socket is in a folder of the program's, which may have been made by root before.
        multiprocessing.process.current_process()._config.pop("tempdir", None)
        kept.start(give_up_root, (queue,))
    while True:
        time.sleep(60)


@pytest.mark.skipif(os.geteuid() != 0, reason="SKIPPED: it needs root to give up")
@pytest.mark.parametrize("what", ["daemon", "pool", "manager"])
def test_what_gives_up_root_ends_with_a_parent_that_is_killed(context, what):
    spawn = procession.get_context("spawn")
    queue = spawn.Queue()
    parent = spawn.Process(target=start_what_gives_up_root, args=(context.get_start_method(), what, queue))
    parent.start()
    pid = queue.get()
    assert is_running(pid)
    parent.kill()
    parent.join()
    wait_until_gone([pid])


def test_other_children_live_on(context):
    queue = procession.get_context("spawn").Queue()
    parent = procession.get_context("spawn").Process(
        target=start_children, args=(context.get_start_method(), queue, False, False)
    )
    parent.start()
    told = [queue.get() for _ in range(3)]
    told.remove("started")
    parent.kill()
    parent.join()
    time.sleep(0.5)
    for pid, _ in told:
        assert is_running(pid)
        os.kill(pid, signal.SIGKILL)
    wait_until_gone([pid for pid, _ in told])


def end_at_once(method, writer):
    # Whatever its children have come to, this is the end of their parent.
    context = procession.get_context(method)
    for _ in range(4):
        process = context.Process(target=time.sleep, args=(1000,), daemon=True)
        process.start()
        writer.send(process.pid)
    os.kill(os.getpid(), signal.SIGKILL)


def test_daemons_end_when_their_parent_was_faster(context):
    reader, writer = procession.Pipe(duplex=False)
    parent = procession.get_context("spawn").Process(
        target=end_at_once, args=(context.get_start_method(), writer)
    )
    parent.start()
    pids = [reader.recv() for _ in range(4)]
    parent.join()
    wait_until_gone(pids)


def square(x):
    return x * x


def fill(queue, number):
    queue.put(number)
    return queue.qsize() > 0


def test_pool(context):
    queue = context.Queue()
    with context.Pool(2) as pool:
        assert pool.map(square, range(10)) == [x * x for x in range(10)]
        assert pool.apply(square, (3,)) == 9
        # A plain queue among the arguments.
        assert all(pool.starmap(fill, [(queue, number) for number in range(6)]))
    assert sorted(queue.get() for _ in range(6)) == list(range(6))


def test_thread_pool_and_dummy():
    with procession.pool.ThreadPool(2) as pool:
        assert pool.map(square, range(3)) == [0, 1, 4]
    with procession.dummy.Pool(2) as pool:
        assert pool.map(square, range(3)) == [0, 1, 4]
