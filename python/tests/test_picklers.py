"""A pickler by which the program has replaced CPython's: everything goes through it, both ways."""

import contextlib
import hashlib
import hmac
import io
import json
import pickle
import subprocess
import sys
from multiprocessing import connection, context as stdlib_context, reduction

import procession
import pytest
from procession import queues
from procession.queues import JoinableQueue, Queue, SimpleQueue

ORIGINAL = reduction.ForkingPickler
PLAIN = [None, 7, "text", b"bytes", 2.5, (1, [2, {"three": 3}]), "long " * 100_000, b"x" * 1_000_000]


class Counting(ORIGINAL):
    """Says what it has written and read."""

    written, read = [], []

    def dump(self, obj):
        self.written.append(obj)
        super().dump(obj)

    @classmethod
    def loads(cls, data, **options):
        obj = pickle.loads(data, **options)
        cls.read.append(obj)
        return obj


class Json:
    """Objects as JSON."""

    def dumps(self, obj):
        return json.dumps(obj).encode()

    def loads(self, data):
        return json.loads(bytes(data))


class OtherJson(Json):
    pass


class Signed(ORIGINAL):
    """Reads no pickle that is not signed."""

    @classmethod
    def dumps(cls, obj, protocol=None):
        data = bytes(super().dumps(obj, protocol))
        return hmac.digest(b"key", data, hashlib.sha256) + data

    @staticmethod
    def loads(data):
        data = bytes(data)
        if not hmac.compare_digest(data[:32], hmac.digest(b"key", data[32:], hashlib.sha256)):
            raise pickle.UnpicklingError("not signed")
        return pickle.loads(data[32:])


class Bare(pickle.Pickler):
    """Has neither dumps nor loads, as a class of picklers need not."""

    def reducer_override(self, obj):
        return (str, ("bare",)) if isinstance(obj, Thing) else NotImplemented


class Thing:
    calls = []

    def __init__(self, value=0):
        self.value = value


def make(value):
    Thing.calls.append(value)
    return Thing(value)


class Watched(Thing):
    """Notes that it was unpickled."""

    def __reduce__(self):
        return make, (self.value,)


class Array:
    """Hands out a buffer, as arrays do."""

    def __init__(self, buffer):
        self.buffer = buffer

    def __reduce_ex__(self, protocol):
        return Array, (pickle.PickleBuffer(self.buffer) if protocol == 5 else bytes(self.buffer),)


@contextlib.contextmanager
def attribute(owner, name, value):
    missing = object()
    before = vars(owner).get(name, missing)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is missing:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


@contextlib.contextmanager
def reducer(pickler):
    class Reducer(reduction.AbstractReducer):
        ForkingPickler = pickler

    own = procession.get_context("fork")
    before = own.reducer
    own.reducer = Reducer()
    try:
        assert procession.reducer is not None and own.reducer.ForkingPickler is pickler
        yield
    finally:
        own.reducer = before


def place_of_reduction(pickler):
    return attribute(reduction, "ForkingPickler", pickler)


def place_of_queues(pickler):
    return attribute(queues, "_ForkingPickler", pickler)


PLACES = [place_of_reduction, place_of_queues, reducer]


@pytest.fixture(autouse=True)
def clean():
    for said in Counting.written, Counting.read, Thing.calls:
        said.clear()
    yield
    assert reduction.ForkingPickler is queues._ForkingPickler is ORIGINAL
    assert stdlib_context.reduction is reduction


def sent(queue, obj):
    queue.put(obj)
    return queue.get()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("make_queue", [Queue, SimpleQueue, JoinableQueue])
def test_all_objects_go_through_it_and_none_do_afterwards(place, make_queue):
    queue = make_queue()
    with place(Counting):
        for value in PLAIN:
            assert sent(queue, value) == value
        assert sent(queue, Thing(3)).value == 3
        assert len(Counting.written) == len(Counting.read) == len(PLAIN) + 1
    assert sent(queue, 5) == 5 and sent(queue, Thing(3)).value == 3
    assert len(Counting.written) == len(Counting.read) == len(PLAIN) + 1


def test_many_at_a_time_and_what_is_handed_out_again():
    queue = JoinableQueue(redeliver=True)
    with place_of_queues(Json()):
        queue.put_many((1, n) for n in range(5))
        assert queue.get_many(2) == [[1, 0], [1, 1]]
        assert queue.get() == [1, 2]
        plain = Queue()
        plain.put_many([(1, 2), "x" * 1_000_000, (3,)])
        assert plain.get_many(3) == [[1, 2], "x" * 1_000_000, [3]]


def test_the_ends_of_a_queue_speak_its_language():
    queue = SimpleQueue()
    with place_of_queues(Json()):
        queue.put((1, "a"))
        assert queue._reader.recv_bytes() == b'[1, "a"]'
        queue._writer.send_bytes(b"[2]")
        assert queue.get() == [2]
    queue.put(Thing(4))
    assert pickle.loads(queue._reader.recv_bytes()).value == 4
    queue.put({"plain": 1})
    assert pickle.loads(queue._reader.recv_bytes()) == {"plain": 1}
    queue._writer.send_bytes(pickle.dumps(6))
    assert queue.get() == 6


def test_what_cannot_be_written_is_not_put():
    queue = Queue()
    with place_of_queues(Json()):
        with pytest.raises(TypeError, match="not JSON serializable"):
            queue.put(Thing())
        with pytest.raises(TypeError):
            queue.put_many([1, Thing()])
        assert queue.get_many(5) == [1] and queue.empty()
    with attribute(Json, "dumps", lambda self, obj: "text"), place_of_queues(Json()):
        with pytest.raises(TypeError, match="bytes-like"):
            queue.put(1)
    assert queue.empty()


def test_a_message_that_is_no_pickle_is_read_by_its_own_pickler_only():
    queue = Queue()
    with place_of_queues(Json()):
        queue.put([1])
        queue.put([2])
        queue.put([3])
    with pytest.raises(
        pickle.UnpicklingError, match=r"test_picklers\.Json, and this process reads with multiprocessing's"
    ):
        queue.get()
    with place_of_queues(OtherJson()), pytest.raises(pickle.UnpicklingError, match="OtherJson"):
        queue.get()
    with place_of_queues(Json()):
        assert queue.get() == [3]


@pytest.mark.parametrize("size", [10, 1_000_000])
def test_a_pickle_is_never_read_past_the_pickler_that_checks_it(size):
    queue = Queue()
    queue.put([Watched(1), "x" * size])
    queue.put(Array(bytearray(size)))
    queue.put("plain")
    with place_of_reduction(Signed):
        with pytest.raises(pickle.UnpicklingError, match="not signed") as raised:
            queue.get()
        assert "written by multiprocessing's ForkingPickler" in raised.value.__notes__[0]
        with pytest.raises(pickle.UnpicklingError):
            queue.get()
        with pytest.raises(pickle.UnpicklingError, match="not signed"):
            queue.get()
        assert not Thing.calls
        assert sent(queue, [Watched(2), "x" * size])[0].value == 2
        queue.put(Watched(3))
    # What reads it can be imported, and checks it here too.
    assert queue.get().value == 3


@pytest.mark.parametrize("place", PLACES)
def test_pickles_of_another_pickler_are_read_by_any(place):
    queue = Queue()
    with place(Counting):
        queue.put(Thing(1))
        queue.put(Array(bytearray(b"x" * 300_000)))
    assert queue.get().value == 1 and bytes(queue.get().buffer) == b"x" * 300_000
    for value in (Thing(2), 3, Array(bytearray(b"x" * 20_000)), Array(bytearray(b"x" * 300_000))):
        queue.put(value)
    with place(Counting):
        assert queue.get().value == 2 and queue.get() == 3
        assert bytes(queue.get().buffer) == b"x" * 20_000 and bytes(queue.get().buffer) == b"x" * 300_000
        assert len(Counting.read) == 4


def test_a_class_without_dumps_and_loads():
    queue = Queue()
    with place_of_reduction(Bare):
        assert sent(queue, [Thing(), 1]) == ["bare", 1]


@pytest.mark.parametrize("name", ["dumps", "loads"])
def test_the_class_itself_is_changed(name):
    said = []

    def dumps(obj, protocol=None):
        said.append(obj)
        buffer = io.BytesIO()
        ORIGINAL(buffer, protocol).dump(obj)
        return buffer.getbuffer()

    def loads(data):
        said.append(pickle.loads(data))
        return said[-1]

    queue = Queue()
    with attribute(ORIGINAL, name, staticmethod({"dumps": dumps, "loads": loads}[name])):
        assert sent(queue, Thing(1)).value == 1
        assert sent(queue, 2) == 2
        assert len(said) == 2
    assert sent(queue, Thing(3)).value == 3 and sent(queue, 4) == 4
    assert len(said) == 2


def test_a_method_that_the_class_did_not_have():
    queue = Queue()
    with attribute(ORIGINAL, "reducer_override", Bare.reducer_override):
        assert sent(queue, Thing()) == "bare"
    assert type(sent(queue, Thing())) is Thing


def double(thing):
    return Thing(thing.value * 2)


def test_pools_and_executors():
    with place_of_queues(Counting), procession.get_context("fork").Pool(1) as pool:
        assert pool.apply(double, (Thing(2),)).value == 4
        assert [thing.value for thing in pool.map(double, [Thing(1), Thing(2)])] == [2, 4]
        assert pool.apply(abs, (-1,)) == 1
        assert double in Counting.written and any(type(obj) is Thing for obj in Counting.read)
        with pytest.raises(TypeError, match="positional"):
            pool.apply(double, (Thing("x"), 1))
    Counting.written.clear()
    with (
        place_of_queues(Counting),
        procession.ProcessPoolExecutor(1, mp_context=procession.get_context("fork")) as executor,
    ):
        assert executor.submit(double, Thing(4)).result().value == 8
        assert double in Counting.written


def test_functions_by_value():
    cloudpickle = pytest.importorskip("cloudpickle")
    with place_of_reduction(cloudpickle), procession.get_context("fork").Pool(1) as pool:
        assert pool.apply(lambda x: x + 1, (1,)) == 2
        queue = Queue()
        assert sent(queue, lambda: 7)() == 7


def test_managers():
    with (
        attribute(connection, "_ForkingPickler", Counting),
        procession.get_context("fork").Manager() as manager,
    ):
        items = manager.list([Thing(1)])
        assert items[0].value == 1
        assert any("Thing" in repr(obj) for obj in Counting.written)


def test_ctypes_objects_are_registered_with_it():
    class Registering(ORIGINAL):
        _extra_reducers = {}

    queue = Queue()
    with place_of_queues(Registering):
        value = procession.RawValue("i", 1)
        sent(queue, value).value = 5
        assert value.value == 5


def in_child(how, queue, results):
    with place_of_queues(Json()) if how == "json" else contextlib.nullcontext():
        try:
            results.put(queue.get())
        except pickle.UnpicklingError as error:
            results.put(str(error))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_child_needs_the_same_one(method):
    context = procession.get_context(method)
    queue, results = context.Queue(), context.Queue(codec="msgpack")
    with place_of_queues(Json()):
        queue.put([1])
        queue.put([2])
    for how, expected in [("json", [1]), ("nothing", None)]:
        process = context.Process(target=in_child, args=(how, queue, results))
        process.start()
        process.join()
        got = results.get(block=False)
        assert got == expected or expected is None and "written by" in got


PROGRAM = """
import json, multiprocessing.queues, procession
procession.install()

class Json:
    def dumps(self, obj):
        return json.dumps(obj).encode()
    def loads(self, data):
        return json.loads(bytes(data))

class Reducer(multiprocessing.reduction.AbstractReducer):
    ForkingPickler = Json()

queue = multiprocessing.Queue()
queue.put((1,))
assert queue.get() == (1,)
before, multiprocessing.queues._ForkingPickler = multiprocessing.queues._ForkingPickler, Json()
queue.put((1,))
assert queue.get() == [1]
multiprocessing.queues._ForkingPickler = before
queue.put((1,))
assert queue.get() == (1,)
multiprocessing.get_context("spawn").reducer = Reducer()
queue.put((1,))
assert queue.get() == [1]
"""


def test_after_install():
    subprocess.run([sys.executable, "-c", PROGRAM], check=True)


def test_one_that_is_there_before_the_package():
    program = """
from multiprocessing import reduction
class Counting(reduction.ForkingPickler):
    count = 0
    def dump(self, obj):
        Counting.count += 1
        super().dump(obj)
reduction.ForkingPickler = Counting
import procession
queue = procession.Queue()
queue.put(1)
assert queue.get() == 1 and Counting.count == 1
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_watched_modules_are_modules():
    import inspect

    assert inspect.ismodule(reduction) and inspect.ismodule(queues)
    assert pickle.loads(pickle.dumps(reduction)) is reduction
