"""What arrives is what was put: every kind of object, and nothing for what cannot be sent."""

import array
import collections
import copyreg
import dataclasses
import enum
import gc
import math
import os
import pickle
import struct
import threading
from multiprocessing.reduction import ForkingPickler

import pytest
from procession.queues import Queue


@pytest.fixture
def queue():
    return Queue()


def sent(queue, value):
    queue.put(value)
    return queue.get(block=False)


class Text(str):
    pass


class Number(int):
    pass


class Dictionary(dict):
    pass


class Colour(enum.IntEnum):
    RED = 1


Point = collections.namedtuple("Point", "x y")


@dataclasses.dataclass
class Record:
    number: int
    name: str


def nested(depth):
    value = 0
    for _ in range(depth):
        value = [value]
    return value


PLAIN = [
    None,
    True,
    False,
    0,
    1,
    -1,
    255,
    2**31,
    -(2**31),
    2**63 - 1,
    -(2**63),
    2**63,
    -(2**63) - 1,
    2**200,
    0.0,
    -0.0,
    1.5,
    math.inf,
    "",
    "a",
    "ascii " * 100,
    "ä",
    "ﬀ",
    "😀" * 5000,
    "\0",
    "\ud800",
    "x\udfff",
    "large " * 50_000,
    "lärge " * 50_000,
    b"",
    b"\0",
    bytes(range(256)),
    b"x" * 16383,
    b"x" * 16384,
    b"x" * 16385,
    b"x" * 65536,
    b"x" * 3_000_000,
    (),
    (1,),
    (1, "two", 3.0, None, True, b"six"),
    [],
    [1],
    [[]],
    [[], []],
    {},
    {"a": 1},
    {1: 2, "k": "v", None: None, 1.5: b""},
    {(1, 2): [3, 4]},
    [{"a": [1, (2, {"b": None})]}],
    list(range(1000)),
    list(range(100_000)),
    ["s" * 1000] * 500,
    {str(i): i for i in range(1000)},
    nested(15),
    nested(16),
    nested(17),
    nested(300),
    [(i, str(i)) for i in range(100)],
    [2**64],
    {"big": -(2**70)},
    ["\ud800"],
    ["x" * 300_000],
    (b"x" * 300_000, 1),
    {"b": b"x" * 3_000_000},
]

OTHER = [
    {1, 2},
    frozenset([1, 2]),
    1 + 2j,
    range(5),
    slice(1, 2),
    Text("t"),
    Number(7),
    Dictionary(a=1),
    Colour.RED,
    Point(1, 2),
    Record(1, "x"),
    [Record(i, str(i)) for i in range(3000)],
    bytearray(b"abc"),
    bytearray(b"x" * 500_000),
    array.array("d", [1.0, 2.0]),
    len,
    int,
    os.getcwd,
    collections.OrderedDict(b=1, a=2),
    collections.deque([1], 5),
    Ellipsis,
    NotImplemented,
    struct.Struct,
]


@pytest.mark.parametrize("value", PLAIN + OTHER, ids=lambda value: repr(value)[:30])
def test_arrives_equal_and_of_the_same_type(queue, value):
    got = sent(queue, value)
    assert got == value
    assert type(got) is type(value)
    assert queue.empty()


def test_nan_and_the_sign_of_zero_arrive(queue):
    assert math.isnan(sent(queue, math.nan))
    assert math.copysign(1, sent(queue, -0.0)) == -1
    assert [type(item) for item in sent(queue, [1, True, 1.0])] == [int, bool, float]


def test_subclasses_within_collections_stay_subclasses(queue):
    got = sent(queue, [Text("a"), {Number(1): Dictionary(x=2)}, Colour.RED, Point(1, 2)])
    assert [type(item) for item in got] == [Text, dict, Colour, Point]
    ((key, value),) = got[1].items()
    assert (type(key), type(value)) == (Number, Dictionary)


def test_the_order_of_a_dict_is_kept(queue):
    value = {key: None for key in (5, "a", 3, None, "b")}
    assert list(sent(queue, value)) == list(value)


@pytest.mark.parametrize("make", [list, dict, lambda: [1], lambda: {"a": 1}, lambda: [[2]]])
def test_what_is_shared_arrives_shared(queue, make):
    shared = make()
    first, second = sent(queue, (shared, shared))
    assert first is second
    first, [second] = sent(queue, [shared, [shared]])
    assert first is second
    got = sent(queue, {"a": shared, "b": {"c": shared}})
    assert got["a"] is got["b"]["c"]
    # Equal, but not the same.
    first, second = sent(queue, [make(), make()])
    assert first is not second


def test_a_tuple_that_is_shared_arrives_shared(queue):
    shared = tuple([1, "x"])
    first, second = sent(queue, [shared, shared])
    assert first is second


def test_cycles_arrive(queue):
    ring = []
    ring.append(ring)
    got = sent(queue, ring)
    assert got[0] is got
    table = {}
    table["list"] = [table]
    got = sent(queue, table)
    assert got["list"][0] is got
    pair = ([],)
    pair[0].append(pair)
    got = sent(queue, pair)
    assert got[0][0] is got


def test_many_lists_that_are_referred_to_elsewhere(queue):
    lists = [[i] for i in range(50)]
    got = sent(queue, list(lists))
    assert got == lists
    got = sent(queue, lists + lists[:1])
    assert got[0] is got[50]


def test_more_keys_than_are_kept(queue):
    for length in range(40):
        value = {f"{number:0{length}}": number for number in range(700)}
        value |= {"x" * count: count for count in range(40)}
        assert sent(queue, value) == value
    for value in ({"": 1, "\0": 2, "\0\0": 3}, {"é" * 12: 1, "é" * 11 + "e": 2}):
        assert sent(queue, value) == value
        assert sent(queue, value) == value


def test_a_list_within_is_not_the_sender_s(queue):
    inner = [1]
    queue.put([inner])
    inner.append(2)
    assert queue.get() == [[1]]


class Unpicklable:
    def __reduce__(self):
        raise ZeroDivisionError("not to be pickled")


@pytest.mark.parametrize("value", [Unpicklable(), [1, Unpicklable()], {"a": [Unpicklable()]}])
def test_put_raises_what_pickling_raises_and_queues_nothing(queue, value):
    with pytest.raises(ZeroDivisionError):
        queue.put(value)
    assert queue.empty()
    assert sent(queue, Record(1, "next")) == Record(1, "next")


def test_a_lambda_and_a_lock_cannot_be_put(queue):
    for value in (lambda: None, threading.Lock(), [object, lambda: None]):
        with pytest.raises((pickle.PicklingError, TypeError, AttributeError)):
            queue.put(value)
    assert queue.qsize() == 0


def refuse():
    raise ZeroDivisionError("not to be unpickled")


class Unreadable:
    def __reduce__(self):
        return refuse, ()


def test_get_raises_what_unpickling_raises_and_the_next_get_works(queue):
    queue.put(Unreadable())
    queue.put([bytearray(100_000), Unreadable()])
    queue.put("next")
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            queue.get()
    assert queue.get() == "next"


class UsesTheQueue:
    """Puts and gets on the queue while it is pickled and while it is unpickled."""

    queue = None

    def __init__(self, depth):
        self.depth = depth

    def __getstate__(self):
        if self.depth:
            assert sent(Queue(), [UsesTheQueue(self.depth - 1), "inner", b"x" * 1000])[1] == "inner"
        self.queue.put(("pickled", self.depth))
        return {"depth": self.depth}

    def __setstate__(self, state):
        self.queue.put(("unpickled", Record(state["depth"], "x")))
        self.__dict__.update(state)


def test_objects_that_use_the_queue_while_they_are_pickled(queue):
    UsesTheQueue.queue = Queue()
    got = sent(queue, ["before", UsesTheQueue(3), "after"])
    assert (got[0], got[1].depth, got[2]) == ("before", 3, "after")
    assert queue.empty()
    said = UsesTheQueue.queue.get_many(100)
    assert said.count(("pickled", 0)) == 1 and said.count(("unpickled", Record(3, "x"))) == 1


class Registered:
    pass


def rebuild(how):
    registered = Registered()
    registered.how = how
    return registered


def test_reducers_are_those_registered_now(queue):
    assert type(sent(queue, Registered())) is Registered
    try:
        copyreg.pickle(Registered, lambda _: (rebuild, ("copyreg",)))
        assert sent(queue, Registered()).how == "copyreg"
        ForkingPickler.register(Registered, lambda _: (rebuild, ("first",)))
        assert sent(queue, Registered()).how == "first"
        ForkingPickler.register(Registered, lambda _: (rebuild, ("second",)))
        assert sent(queue, [Registered()])[0].how == "second"
        del ForkingPickler._extra_reducers[Registered]
        assert sent(queue, Registered()).how == "copyreg"
    finally:
        copyreg.dispatch_table.pop(Registered, None)
        ForkingPickler._extra_reducers.pop(Registered, None)
    assert not hasattr(sent(queue, Registered()), "how")


class Buffers:
    """Hands its buffers out as protocol 5 has it."""

    def __init__(self, *buffers):
        self.buffers = buffers

    def __reduce_ex__(self, protocol):
        assert protocol == 5
        return Buffers, tuple(pickle.PickleBuffer(buffer) for buffer in self.buffers)


@pytest.mark.parametrize("size", [0, 1, 100, 8191, 8192, 10_000, 100_000, 262_144, 1_000_000])
def test_buffers_arrive_and_can_be_written_to(queue, size):
    got = sent(queue, Buffers(bytearray(b"x" * size), bytearray(b"y" * 9000), b"z" * size))
    first, second, third = (memoryview(buffer) for buffer in got.buffers)
    assert (bytes(first), bytes(second), bytes(third)) == (b"x" * size, b"y" * 9000, b"z" * size)
    assert not first.readonly and not second.readonly and third.readonly
    if size:
        first[0] = 1
    second[-1] = 2
    assert bytes(third) == b"z" * size
    assert bytes(second[:-1]) == b"y" * 8999


def test_a_buffer_that_does_not_lie_together_cannot_be_put(queue):
    with pytest.raises((BufferError, pickle.PicklingError)):
        queue.put(Buffers(memoryview(bytes(100_000))[::2]))
    assert queue.empty()


def test_large_buffers_keep_their_content_while_the_queue_goes_on(queue):
    kept = []
    for number in range(20):
        got = sent(queue, Buffers(bytearray([number]) * 300_000))
        kept.append(got.buffers[0])
    assert all(
        bytes(memoryview(buffer)[::1000]) == bytes([number]) * 300 for number, buffer in enumerate(kept)
    )
    used = queue.memory_used()
    del kept, got
    gc.collect()
    queue.put(1)
    queue.get()
    assert queue.memory_used() <= used


def test_large_buffers_outlive_the_queue():
    queue = Queue()
    view = memoryview(sent(queue, Buffers(bytearray(b"x" * 1_000_000))).buffers[0])
    del queue
    gc.collect()
    view[0] = 1
    assert bytes(view[1:]) == b"x" * 999_999


def test_a_forked_child_and_its_parent_have_their_own_buffers(queue):
    view = memoryview(sent(queue, Buffers(bytearray(b"x" * 1_000_000))).buffers[0])
    child_reads, parent_writes = os.pipe()
    pid = os.fork()
    if not pid:
        os.read(child_reads, 1)
        same = bytes(view) == b"x" * 1_000_000
        view[:] = b"c" * 1_000_000
        os._exit(0 if same else 1)
    view[:] = b"p" * 1_000_000
    os.write(parent_writes, b".")
    assert os.waitpid(pid, 0)[1] == 0
    assert bytes(view) == b"p" * 1_000_000


def hostile(seed):
    """Messages that no encoder writes."""
    yield b""
    for tag in range(256):
        yield bytes([tag])
        yield bytes([tag]) + b"\xff" * 8
        yield bytes([tag]) + b"\x00" * 24
        yield bytes([tag]) + struct.pack("<I", 3) + b"\x00\x01\x02"
    # Deeper than any encoder goes.
    yield (b"\x08" + struct.pack("<I", 1)) * 5000 + b"\x00"
    # A list as a key.
    yield b"\x09" + struct.pack("<I", 1) + b"\x08\0\0\0\0" + b"\x00"
    # Trailing bytes, text that is no UTF-8, more items than there are bytes.
    yield b"\x00\x00"
    yield b"\x05\xff\xfe"
    yield b"\x08" + struct.pack("<I", 2**32 - 1)
    # A pickle whose buffers are not there, of a length that wraps around, or not handed over.
    yield b"\x41\0\0\0" + struct.pack("<IQQ", 1, 4, 2**64 - 1) + b"N."
    yield b"\x41\0\0\0" + struct.pack("<IQ", 2**32 - 1, 2**64 - 1)
    yield b"\x41\0\0\0" + struct.pack("<IQ", 0, 2) + b"\x97."
    yield b"\x40"
    yield b"\x40" + pickle.dumps([1, 2, 3])[:-3]


def test_bytes_that_are_no_message_raise_and_the_queue_goes_on(queue):
    refused = 0
    for message in hostile(0):
        queue._put_encoded(message)
        try:
            queue.get()
        except (pickle.UnpicklingError, EOFError, TypeError, UnicodeDecodeError, ValueError):
            refused += 1
    assert refused > 1000
    assert sent(queue, [1, "two"]) == [1, "two"]


def test_damaged_messages_never_crash(queue):
    import random

    source = random.Random(7)
    originals = [
        [1, "two", {"three": (4.0, None)}],
        Record(1, "x"),
        "text",
        b"bytes",
        {"k": [1, 2, 3]},
        Buffers(bytearray(9000)),
    ]
    encoded = []
    for original in originals:
        queue.put(original)
        encoded.append(queue._get_encoded())
    for _ in range(3000):
        message = bytearray(source.choice(encoded))
        # Pickles are a program; only what is ours is changed at random.
        limit = len(message) if message[0] < 0x40 else min(24, len(message))
        for _ in range(source.randint(1, 4)):
            message[source.randrange(limit)] = source.randrange(256)
        if message[0] == 0x40:
            continue
        queue._put_encoded(bytes(message[: source.randint(1, len(message))]))
        try:
            queue.get()
        except Exception as error:
            assert not isinstance(error, (SystemError, MemoryError)), message
    assert queue.empty()


def test_threads_that_pickle_at_the_same_time(queue):
    def work(number):
        own = Queue()
        for count in range(300):
            value = [Record(number, str(count)), b"x" * count]
            assert sent(own, value) == value
        queue.put(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(queue.get() for _ in threads) == list(range(6))


def test_nothing_is_kept_alive(queue):
    class Local:
        pass

    import weakref

    value = Record(1, "x")
    value.self = value
    reference = weakref.ref(value)
    queue.put([value])
    queue.get()
    del value
    gc.collect()
    assert reference() is None


def test_arrays_of_numpy():
    numpy = pytest.importorskip("numpy")
    queue = Queue()
    for shape in [(0,), (5,), (100, 100), (300, 300), (2, 400, 400)]:
        for order in "CF":
            value = numpy.asarray(numpy.random.default_rng(1).random(shape), order=order)
            got = sent(queue, {"array": value, "name": "x"})["array"]
            assert (
                numpy.array_equal(got, value)
                and got.flags.writeable
                and got.flags.f_contiguous == value.flags.f_contiguous
            )
            got += 1
            assert numpy.array_equal(got, value + 1)
    strided = numpy.arange(100_000)[::3]
    assert numpy.array_equal(sent(queue, strided), strided)
    got = sent(queue, [strided, strided])
    assert got[0] is got[1]


@pytest.mark.parametrize("size", [1, 100, 8_000, 40_000, 1_000_000])
def test_arrays_of_numpy_that_are_read_only_can_be_written_to(queue, size):
    numpy = pytest.importorskip("numpy")
    fixed = numpy.arange(size)
    fixed.flags.writeable = False
    other = numpy.frombuffer(bytes(size), dtype="u1")
    expected = [fixed, other, fixed, fixed.reshape(-1, 1).T, numpy.arange(size), fixed[:0], fixed[::2]]
    got = sent(queue, expected)
    assert got[0] is got[2]
    assert all(
        numpy.array_equal(one, other) and one.dtype == other.dtype for one, other in zip(got, expected)
    )
    for one in got:
        one[...] = 1
        assert one.sum() == one.size
    assert fixed[0] == 0 and other[0] == 0


def test_a_read_only_array_that_a_class_hands_out_as_a_buffer_is_one(queue):
    numpy = pytest.importorskip("numpy")
    fixed = numpy.arange(100_000, dtype="u1")
    fixed.flags.writeable = False
    (got,) = sent(queue, Buffers(fixed)).buffers
    assert len(got) == 100_000 and got[1] == 1 and bytes(got) == fixed.tobytes() and memoryview(got).readonly


@pytest.mark.parametrize("codec", [None, "bytes"])
@pytest.mark.parametrize("size", [100, 1 << 20])
def test_a_buffer_may_be_written_to_while_it_is_put(codec, size):
    queue = Queue(codec=codec)
    buffer = bytearray(size)
    value = buffer if codec else pickle.PickleBuffer(buffer)
    ended = threading.Event()

    def write():
        fills = (b"\0" * size, b"\xff" * size)
        while not ended.is_set():
            for fill in fills:
                buffer[:] = fill

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(50):
            queue.put(value)
            arrived = bytes(queue.get())
            assert len(arrived) == size
            assert set(arrived) <= {0, 255}
    finally:
        ended.set()
        thread.join()


def test_buffers_without_bytes_are_put():
    queue = Queue(codec="bytes")
    for empty in (b"", bytearray(), memoryview(b""), array.array("i")):
        assert sent(queue, empty) == b""
