"""Subclasses, replaced methods, attributes: what CPython's objects do with them, these do."""

import asyncio
import contextlib
import gc
import multiprocessing
import multiprocessing.managers
import multiprocessing.pool
import multiprocessing.sharedctypes
import multiprocessing.synchronize
import pickle
import queue
import subprocess
import sys
import textwrap
import threading
import weakref
from unittest import mock

import procession
import pytest
from processes import METHODS
from procession import pool, queues, sharedctypes, synchronize

FORK = procession.get_context("fork")
MAKE = {
    "Lock": FORK.Lock,
    "RLock": FORK.RLock,
    "Semaphore": FORK.Semaphore,
    "BoundedSemaphore": FORK.BoundedSemaphore,
    "Condition": FORK.Condition,
    "Event": FORK.Event,
    "Barrier": lambda: FORK.Barrier(1),
    "Queue": FORK.Queue,
    "JoinableQueue": FORK.JoinableQueue,
    "SimpleQueue": FORK.SimpleQueue,
    "Synchronized": lambda: FORK.Value("i"),
    "SynchronizedArray": lambda: FORK.Array("i", 1),
    "SynchronizedString": lambda: FORK.Array("c", 1),
}
MODULES = multiprocessing.synchronize, multiprocessing.queues, multiprocessing.sharedctypes
METHOD_OF = {
    "Queue": "qsize",
    "JoinableQueue": "qsize",
    "SimpleQueue": "empty",
    "Event": "is_set",
    "Barrier": "wait",
}


@pytest.fixture(params=["subclass", "object", "class"])
def replacing(request):
    """A function that makes an object with a replaced method, whose calls it returns too."""
    with contextlib.ExitStack() as stack:

        def replace(cls, name):
            calls = []
            original = getattr(cls, name)

            def method(self, *args, **kwargs):
                calls.append((*args, *kwargs.items()))
                return original(self, *args, **kwargs)

            if request.param == "subclass":
                return type(cls.__name__, (cls,), {name: method})(), calls
            thing = cls()
            if request.param == "class":
                stack.enter_context(mock.patch.object(cls, name, method))
            else:
                setattr(thing, name, method.__get__(thing))
            return thing, calls

        yield replace


@pytest.mark.parametrize("cls", [queues.Queue, queues.JoinableQueue])
def test_a_queues_methods_use_put_and_get(replacing, cls):
    thing, puts = replacing(cls, "put")
    thing.put_nowait(1)
    assert thing.put_many([2, 3]) == 2
    asyncio.run(thing.aput(4))
    assert puts == [(1, False), (2,), (3,), (4, False)]
    thing, gets = replacing(cls, "get")
    thing.put_many(range(8))
    assert thing.get_nowait() == 0 and thing.get_many(2) == [1, 2] and asyncio.run(thing.aget()) == 3
    assert thing.get_many(9, timeout=5) == [4, 5, 6, 7]
    assert len(gets) == 9 and gets[:3] == [(False,), (), (False,)]
    with pytest.raises(queue.Empty):
        thing.get_many(1, block=False)
    thing.put("last")
    thing.shutdown()
    assert list(thing) == ["last"]
    assert len(gets) == 12


def test_objects_that_cannot_be_put_or_got_are_told_of():
    class Strict(queues.Queue):
        def put(self, obj, *args):
            if obj == "bad":
                raise KeyError(obj)
            super().put(obj, *args)

        def get(self, *args):
            obj = super().get(*args)
            if obj == "odd":
                raise LookupError(obj)
            return obj

    strict = Strict()
    with pytest.raises(KeyError) as raised:
        strict.put_many([1, "odd", "bad", 3])
    assert raised.value.put_count == 2
    strict.put(4)
    with pytest.raises(LookupError) as raised:
        strict.get_many(10)
    assert raised.value.objects == [1, 4]


def test_a_conditions_methods_use_wait_and_notify(replacing):
    condition, calls = replacing(synchronize.Condition, "notify")
    with condition:
        condition.notify_all()
    assert calls == [(("n", sys.maxsize),)]
    condition, calls = replacing(synchronize.Condition, "wait")
    answers = iter([False, True])
    with condition:
        assert condition.wait_for(lambda: next(answers), 0.01)
        assert not condition.wait_for(lambda: False, 0)
        assert condition.wait_for(lambda: True)
    assert len(calls) == 1 and 0 < calls[0][0] <= 0.01


@pytest.mark.parametrize("base", [synchronize.Lock, synchronize.RLock])
def test_a_condition_uses_the_methods_of_its_lock(base):
    calls = []

    class Logged(base):
        def acquire(self, *args):
            calls.append("acquire")
            return super().acquire(*args)

        def release(self):
            calls.append("release")
            super().release()

        def __enter__(self):
            calls.append("enter")
            return super().__enter__()

        def __exit__(self, *args):
            calls.append("exit")
            super().__exit__(*args)

    condition = synchronize.Condition(Logged())
    assert condition.acquire(timeout=1) is True
    condition.notify_all()
    condition.release()
    with condition:
        condition.wait(0.001)
    value = FORK.Value("i", 3, lock=Logged())
    assert value.value == 3
    assert calls == ["acquire", "release", "enter", "exit", "acquire", "release"]


def test_a_value_uses_its_own_methods():
    calls = []

    class Logged(sharedctypes.Synchronized):
        def acquire(self, *args):
            calls.append("acquire")
            return super().acquire(*args)

    value = Logged(FORK.RawValue("i", 1))
    value.value += 1
    assert value.value == 2 and calls == ["acquire"] * 3


class RecordingPool(pool.Pool):
    calls = 0

    def apply_async(self, func, args=(), kwds={}, callback=None, error_callback=None):
        self.calls += 1
        return super().apply_async(func, args, kwds, callback, error_callback)


class RecordingExecutor(procession.ProcessPoolExecutor):
    calls = 0

    def submit(self, fn, /, *args, **kwargs):
        self.calls += 1
        return super().submit(fn, *args, **kwargs)


def test_pools_and_executors_use_their_own_methods():
    with RecordingPool(1, context=FORK) as recording:
        assert recording.apply(abs, (-1,)) == 1 and recording.calls == 1
        assert asyncio.run(recording.aapply(abs, (-2,))) == 2 and recording.calls == 2
        with pytest.raises(TypeError, match="retries"):
            recording.apply(abs, (-1,), retries=1)
    with RecordingExecutor(1, FORK) as executor:
        assert list(executor.map(divmod, [7, 8], [2, 3])) == [(3, 1), (2, 2)] and executor.calls == 2
        assert list(executor.map(abs, range(-5, 0), chunksize=2)) == [5, 4, 3, 2, 1] and executor.calls == 5
        some = executor.map(abs, iter(range(9)), buffersize=3)
        assert executor.calls == 8 and next(some) == 0 and executor.calls == 9
        with pytest.raises(ZeroDivisionError):
            list(executor.map(divmod, [1], [0]))
    executor = procession.ProcessPoolExecutor(1, FORK)
    with mock.patch.object(executor, "submit", wraps=executor.submit) as submit, executor:
        assert list(executor.map(abs, [-1])) == [1] and submit.call_count == 1


class Named(FORK.Process):
    def run(self):
        self.name = "own"
        super().run()


class NamedContext(type(FORK)):
    Process = Named


def name_of_process():
    return multiprocessing.current_process().name


def test_a_contexts_process_is_that_of_its_pools():
    assert FORK.Pool(1).apply(name_of_process) != "own"
    with NamedContext().Pool(1) as workers, procession.ProcessPoolExecutor(1, NamedContext()) as executor:
        assert workers.apply(name_of_process) == executor.submit(name_of_process).result() == "own"


@pytest.mark.parametrize("name", MAKE)
def test_objects_are_recognised_and_take_attributes(name):
    thing = MAKE[name]()
    theirs = next(getattr(module, name) for module in MODULES if hasattr(module, name))
    assert isinstance(thing, theirs) and type(thing).__module__.startswith("procession.")
    thing.note = [thing]
    assert thing.note == [thing] and vars(thing) == {"note": [thing]}
    method = METHOD_OF.get(name, "acquire")
    with mock.patch.object(thing, method, return_value="mocked") as mocked:
        assert getattr(thing, method)() == "mocked"
    assert mocked.call_count == 1 and getattr(thing, method)() != "mocked"
    with mock.patch.object(type(thing), method, return_value="mocked"):
        assert getattr(MAKE[name](), method)() == "mocked"
    assert getattr(mock.create_autospec(thing, instance=True), method)
    thing = MAKE[name]()
    thing.note = [thing]
    reference = weakref.ref(thing)
    del thing
    gc.collect()
    assert reference() is None


def lock_with_its_condition():
    lock = FORK.RLock()
    lock.note = FORK.Condition(lock)
    return lock


def lock_with_its_value():
    value = FORK.Value("i")
    value.get_lock().note = value
    return value


def queue_with_an_iterator():
    objects = FORK.Queue()
    objects.note = iter(objects)
    return objects


@pytest.mark.parametrize("make", [lock_with_its_condition, lock_with_its_value, queue_with_an_iterator])
def test_objects_that_refer_to_each_other_are_collected(make):
    reference = weakref.ref(make())
    gc.collect()
    assert reference() is None


def test_other_objects_are_recognised():
    with FORK.Pool(1) as workers:
        for thing, cls in {
            workers: multiprocessing.pool.Pool,
            workers.apply_async(abs, (1,)): multiprocessing.pool.AsyncResult,
            workers.map_async(abs, [1]): multiprocessing.pool.MapResult,
            workers.imap(abs, [1]): multiprocessing.pool.IMapIterator,
            workers.imap_unordered(abs, [1]): multiprocessing.pool.IMapUnorderedIterator,
            FORK.Process(): multiprocessing.process.BaseProcess,
            FORK.Barrier(1): threading.Barrier,
            FORK: multiprocessing.context.BaseContext,
        }.items():
            assert isinstance(thing, cls)


class NamedEvent(synchronize.Event):
    def __init__(self, name):
        super().__init__()
        self.name = name


def test_attributes_in_pickles_are_those_of_cpython():
    """The attributes of its instances go with an event, and with nothing else but a process."""
    event = pickle.loads(pickle.dumps(NamedEvent("e")))
    event.set()
    assert event.name == "e" and pickle.loads(pickle.dumps(event)).is_set()
    for name, make in MAKE.items():
        thing = make()
        thing.note = 1
        copy = pickle.loads(pickle.dumps(thing))
        assert hasattr(copy, "note") == (name == "Event"), name


TOOL = """
    import functools, multiprocessing.process, sys
    import procession

    context = procession.get_context(sys.argv[1])

    def wrap(name):
        original = getattr(multiprocessing.process.BaseProcess, name)
        @functools.wraps(original)
        def wrapped(self, *args, **kwargs):
            self.wrapped = {*vars(self).get("wrapped", ()), name}
            return original(self, *args, **kwargs)
        setattr(multiprocessing.process.BaseProcess, name, wrapped)

    # The classes are there already.
    procession.Process, procession.Pool
    for name in "_bootstrap", "run", "start":
        wrap(name)

    def wrapped(queue=None):
        found = sorted(multiprocessing.process.current_process().wrapped)
        if queue is not None:
            queue.put(found)
        return found

    if __name__ == "__main__":
        queue = context.SimpleQueue()
        for daemon in True, False:
            process = context.Process(target=wrapped, args=(queue,), daemon=daemon)
            process.start()
            print(*queue.get())
            process.join()
        with context.Pool(1, maxtasksperchild=1) as pool:
            for _ in range(3):
                print(*pool.apply(wrapped))
        with procession.ProcessPoolExecutor(1, context) as executor:
            print(*executor.submit(wrapped).result())
"""


@pytest.mark.parametrize("installs", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_tools_that_wrap_processes_are_in_every_child(method, installs, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(TOOL))
    command = [sys.executable, *(["-m", "procession"] if installs else []), program, method]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("_bootstrap run start\n" * 6, "")
