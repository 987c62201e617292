import array
import ctypes
import gc
import mmap
import multiprocessing
import os
import pickle
import threading
from multiprocessing.reduction import ForkingPickler

import pytest
from processes import METHODS, finish, kill, started
from procession import sharedctypes
from procession.sharedctypes import Array, RawArray, RawValue, Value, copy, synchronized
from procession.synchronize import Lock, OwnerDiedWarning, RLock


class Point(ctypes.Structure):
    _fields_ = [("x", ctypes.c_double), ("n", ctypes.c_int)]


class Point3(Point):
    _fields_ = [("z", ctypes.c_double)]


class Row(ctypes.c_int * 3):
    pass


class Table(ctypes.Structure):
    _fields_ = [("rows", Row * 2), ("points", Point * 2)]


CONVERSIONS = [
    0,
    1,
    -1,
    127,
    128,
    255,
    256,
    2**15,
    2**16 + 3,
    2**31,
    2**32 + 5,
    -(2**31) - 1,
    2**63,
    2**64 + 7,
    -(2**70),
]
CONVERSIONS += [
    True,
    False,
    1.5,
    -0.0,
    1e300,
    float("inf"),
    "x",
    "ab",
    b"x",
    b"ab",
    bytearray(b"q"),
    None,
    [],
    2 + 3j,
]


def outcome(set_value):
    try:
        set_value()
    except Exception as error:
        return type(error), str(error)


@pytest.mark.parametrize(
    "type_", [*sharedctypes.typecode_to_type, ctypes.c_bool, ctypes.c_size_t, ctypes.c_longdouble]
)
@pytest.mark.parametrize("lock", [None, "lock", False])
def test_values_convert_as_in_ctypes(type_, lock):
    if lock == "lock":
        lock = Lock()
    value = Value(type_, lock=lock)
    plain = sharedctypes.typecode_to_type.get(type_, type_)()
    assert value.value == plain.value
    for new in CONVERSIONS:
        expected = outcome(lambda new=new: setattr(plain, "value", new))
        assert outcome(lambda new=new: setattr(value, "value", new)) == expected
        assert repr(value.value) == repr(plain.value)
        if lock is not False:
            assert value.get_obj().value == plain.value
            assert not value.get_lock().locked()
            if type_ is not ctypes.c_longdouble:  # its padding is undefined
                assert bytes(value.get_obj()) == bytes(plain)


def test_not_a_number_stays_one():
    value = Value("d", float("nan"))
    assert value.value != value.value


def test_other_byte_order_and_subclasses():
    swapped = Value(ctypes.c_int.__ctype_be__, 258)
    assert swapped.value == 258
    assert bytes(swapped.get_obj()) == b"\0\0\1\2"

    class Special(ctypes.c_int):
        pass

    value = Value(Special, 3)
    value.value += 1
    assert value.value == 4 and type(value.get_obj()) is Special


def test_value():
    value = Value("i", 5)
    assert isinstance(value, sharedctypes.Synchronized) and isinstance(value, sharedctypes.SynchronizedBase)
    assert type(value.get_lock()) is RLock and type(value.get_obj()) is ctypes.c_int
    assert repr(value) == "<Synchronized wrapper for c_int(5)>"
    value.get_obj().value = 6
    assert value.value == 6
    with value as entered:
        assert entered is True
        assert value.get_lock()._semlock._count() == 1
        with value.get_lock():
            value.value += 1
    assert value.acquire(timeout=1) is True
    value.release()
    with pytest.raises(AssertionError):
        value.release()
    assert Value("i", lock=None).get_lock() is not None
    lock = Lock()
    assert Value("i", 5, lock=lock).get_lock() is lock
    for raw in (Value("i", 5, lock=False), RawValue("i", 5)):
        assert type(raw) is ctypes.c_int and raw.value == 5
        assert not hasattr(raw, "get_lock")


def test_each_access_takes_the_lock():
    for lock in (RLock(), Lock()):
        value, array_ = Value("d", 1.5, lock=lock), Array("i", 3, lock=lock)
        for access in (
            lambda: value.value,
            lambda: setattr(value, "value", 2.5),
            lambda: array_[0],
            lambda: array_.__setitem__(0, 1),
            lambda: array_[:],
        ):
            lock.acquire()
            done = threading.Event()
            thread = threading.Thread(target=lambda: (access(), done.set()))
            thread.start()
            assert not done.wait(0.02)
            lock.release()
            thread.join()
        assert not lock.locked()
    assert value.value == 2.5


class Counting:
    """A lock of another kind."""

    def __init__(self):
        self.calls = []

    def acquire(self):
        self.calls.append("acquire")

    def release(self):
        self.calls.append("release")

    def __enter__(self):
        self.calls.append("enter")
        return "entered"

    def __exit__(self, *args):
        self.calls.append("exit")


def test_the_attribute_value():
    number = Value("i", 3)
    with pytest.raises(AttributeError):
        del number.value
    with pytest.raises(TypeError):
        type(number).value.__get__(Array("i", 1))
    with pytest.raises(RuntimeError, match="__init__"):
        type(number).__new__(type(number)).value
    with pytest.raises(RuntimeError, match="__init__"):
        type(number).__new__(type(number)).get_lock()
    with pytest.raises(RuntimeError, match="__init__"):
        type(number).__new__(type(number)).value = 1
    assert number.value == 3
    assert "lock" in type(number).value.__doc__
    # Nothing that fails keeps the lock.
    with pytest.raises(TypeError):
        number.value = "x"
    assert not number.get_lock().locked()
    assert number.get_lock() is number.get_lock() is number._lock


def test_other_locks():
    lock = Counting()
    value = Value("i", 1, lock=lock)
    value.value = value.value + 1
    assert lock.calls == ["acquire", "release"] * 2
    with value as entered:
        assert entered == "entered"
    assert lock.calls[4:] == ["enter", "exit"]
    assert value.get_lock() is lock


def test_array():
    values = [680, 626, 934, 821, 150]
    for array_ in (Array("i", values), Array("i", values, lock=Lock()), RawArray("i", values)):
        assert len(array_) == 5 and list(array_) == values and array_[3] == 821 and array_[-1] == 150
        assert array_[1:3] == [626, 934]
        array_[1:3] = array.array("i", [1, 2])
        array_[0] += 1
        assert array_[:] == [681, 1, 2, 821, 150]
        with pytest.raises(IndexError):
            array_[5]
        with pytest.raises(ValueError):
            array_[1:3] = [1]
        with pytest.raises(TypeError):
            array_[0] = "x"
    assert isinstance(Array("i", 3), sharedctypes.SynchronizedArray)
    assert list(Array(Point, 2)[1:])[0].x == 0.0
    assert Array("d", 10)[:] == [0.0] * 10
    assert len(RawArray("i", 0)) == 0
    assert list(RawArray("i", range(3))) == [0, 1, 2]


def test_string():
    string = Array("c", b"hello")
    assert isinstance(string, sharedctypes.SynchronizedString)
    assert string.value == string.raw == b"hello"
    string.value = b"abc"
    assert (string.value, string.raw, string[1:4]) == (b"abc", b"abc\0o", b"bc\0")
    string.raw = b"12345"
    assert string.value == b"12345"
    with pytest.raises(ValueError):
        string.value = b"too long"
    with pytest.raises(TypeError):
        string.value = "text"
    assert Array("u", "text")[:] == "text"


def test_structure():
    point = Value(Point, 1.5, 2)
    assert type(point).__name__ == "SynchronizedPoint"
    with point:
        point.x += 1
        point.n += 1
    assert (point.x, point.n) == (2.5, 3)
    assert (point.get_obj().x, point.get_obj().n) == (2.5, 3)
    assert type(Value(Point)) is type(point)
    derived = Value(Point3, 1, 2, 3)
    assert (derived.x, derived.n, derived.z) == (1, 2, 3)


def test_wrong_arguments():
    for call, error in [
        (lambda: Value("?"), TypeError),
        (lambda: Value("i", "x"), TypeError),
        (lambda: Value("i", 1, 2), TypeError),
        (lambda: Value(int), TypeError),
        (lambda: Array("x", 3), TypeError),
        (lambda: Array("i", "abc"), TypeError),
        (lambda: Array("i", 1.5), TypeError),
        (lambda: Array("i", -1), ValueError),
        (lambda: Array("i", None), TypeError),
        (lambda: Value("i", lock="nolock"), AttributeError),
        (lambda: Array("i", 1, lock="nolock"), AttributeError),
        (lambda: synchronized(Value("i")), AssertionError),
    ]:
        with pytest.raises(error):
            call()


def test_copy():
    point = RawValue(Point, 1.5, 2)
    other = copy(point)
    other.x = 9
    assert (point.x, other.x, other.n) == (1.5, 9, 2)
    assert synchronized(other).x == 9
    assert list(copy(RawArray("i", [1, 2]))) == [1, 2]


def test_views_keep_the_memory():
    view = memoryview(RawArray("B", b"abc"))
    number = Value("q", 7).get_obj()
    gc.collect()
    others = [RawArray("B", b"\xff" * 3) for _ in range(100)]
    assert bytes(view) == b"abc" and number.value == 7
    assert len(others) == 100
    assert not view.readonly


def test_large_arrays_are_shared_and_given_back():
    size = 40 << 20
    before = shared_memory()
    large = RawArray("b", size)
    large[size - 1] = 5
    assert shared_memory() >= before + size // mmap.PAGESIZE
    del large
    gc.collect()
    assert shared_memory() < before + size // mmap.PAGESIZE


def shared_memory():
    """Pages of shared memory that this process has mapped and touched or reserved."""
    with open("/proc/self/smaps", encoding="ascii") as file:
        blocks = file.read().split("VmFlags")
    sizes = [int(b.split("Size:")[1].split()[0]) for b in blocks if "procession-arena" in b]
    return sum(sizes) * 1024 // mmap.PAGESIZE


def test_pickles():
    value, array_, point = Value("i", 1), RawArray("d", [1, 2]), Value(Point, 1, 2)
    dumped = bytes(ForkingPickler.dumps([value, array_, point, value.get_lock()]))
    other_value, other_array, other_point, lock = pickle.loads(dumped)
    other_value.value = 5
    other_array[1] = 7
    other_point.x = 9
    assert (value.value, array_[1], point.x) == (5, 7, 9)
    assert other_value.get_lock() is lock
    with lock:
        assert value.get_lock().locked()
    # Without ForkingPickler too.
    copy_of_value = pickle.loads(pickle.dumps(value))
    copy_of_value.value += 1
    assert value.value == 6
    with pytest.raises(AttributeError):
        pickle.dumps(synchronized(ctypes.c_int(1)))


def change(value, raw, array_, string, point, other, expected):
    assert (value.value, raw.value, array_[:], string.value, point.x) == expected
    with value:
        value.value += 1
    raw.value = 2.5
    array_[0:2] = [7, 8]
    string.value = b"xyz"
    with point.get_lock():
        point.x += 1
    other.value = True


@pytest.mark.parametrize("method", METHODS)
def test_start_methods(method):
    lock = Lock()
    value, raw, array_ = Value("i", 41), RawValue("d", 1.5), Array("h", range(4))
    string, point, other = Array("c", b"abcd"), Value(Point, 0.5), Value(ctypes.c_bool, lock=lock)
    expected = (41, 1.5, [0, 1, 2, 3], b"abcd", 0.5)
    with started(change, value, raw, array_, string, point, other, expected, method=method) as process:
        finish(process)
    assert (value.value, raw.value, array_[:], string.value, point.x) == (42, 2.5, [7, 8, 2, 3], b"xyz", 1.5)
    assert other.value is True


class Clash(ctypes.Structure):
    _fields_ = [("acquire", ctypes.c_int), ("release", ctypes.c_int), ("value", ctypes.c_int)]


def test_fields_with_the_names_of_methods():
    value = Value(Clash, 1, 2, 3)
    assert (value.acquire, value.release, value.value) == (1, 2, 3)
    with value:
        value.acquire = value.release = 4
    assert (value.get_obj().acquire, value.get_obj().release) == (4, 4)


def change_nested(matrix, cube, rows, row, table, points):
    matrix[1][2] = 5
    cube[1][0][3] = 6
    rows[1][2] = 7
    row[0] = 8
    table.rows[1][0] = 9
    table.points[1].n = 10
    points[0][1].x = 0.5


@pytest.mark.parametrize("make", [Array, RawArray])
@pytest.mark.parametrize("method", METHODS)
def test_arrays_of_arrays(method, make):
    matrix, cube = make(ctypes.c_int * 3, 2), make(ctypes.c_double * 4 * 2, 2)
    rows, points = make(Row, [(1, 2, 3), (4, 5, 6)]), make(Point * 2, 1)
    row, table = RawValue(Row, 1, 2, 3), Value(Table) if make is Array else RawValue(Table)
    with started(change_nested, matrix, cube, rows, row, table, points, method=method) as process:
        finish(process)
    assert [list(values) for values in matrix] == [[0, 0, 0], [0, 0, 5]]
    assert [list(values) for values in cube[1]] == [[0, 0, 0, 6], [0, 0, 0, 0]]
    assert [list(values) for values in rows] == [[1, 2, 3], [4, 5, 7]] and list(row) == [8, 2, 3]
    assert list(table.rows[1]) == [9, 0, 0] and table.points[1].n == 10 and points[0][1].x == 0.5
    got = ForkingPickler.loads(ForkingPickler.dumps([matrix, rows, row]))
    got[0][0][0] = 11
    assert matrix[0][0] == 11 and type(got[1][0]) is Row and type(got[2]) is Row


@pytest.mark.parametrize("make", [RawValue, Value])
@pytest.mark.parametrize("typecode", ["x", "", "ii", "?", 5, None, int, "é"])
def test_a_bad_typecode(make, typecode):
    match = r"bad typecode \(must be a ctypes type or one of c, b, B, u, h, H, i, I, l, L, q, Q, f or d\)"
    with pytest.raises(TypeError, match=match):
        make(typecode)
    if isinstance(typecode, str):
        with pytest.raises(TypeError, match=match):
            {RawValue: RawArray, Value: Array}[make](typecode, 3)


def add(value, times, own_lock):
    for _ in range(times):
        with value.get_lock() if own_lock else value:
            value.value += 1


@pytest.mark.parametrize("make", [RLock, Lock])
def test_nothing_is_lost(make):
    if make is Lock:
        lock, value = Lock(), Value("q", lock=False)
        value = (lock, value)
        target = add_plain
    else:
        value, target = Value("q"), add
    with started(target, value, 10_000, True) as one, started(target, value, 10_000, False) as two:
        finish(one)
        finish(two)
    assert (value[1] if make is Lock else value).value == 20_000


def add_plain(pair, times, _own_lock):
    lock, value = pair
    for _ in range(times):
        with lock:
            value.value += 1


def take_and_send(value, connection):
    value.get_lock().acquire()
    value.value = 1
    connection.send("taken")
    connection.recv()


def test_a_dead_owner():
    value = Value("i")
    ours, theirs = multiprocessing.Pipe()
    with started(take_and_send, value, theirs) as process:
        assert ours.recv() == "taken"
        kill(process)
    with pytest.warns(OwnerDiedWarning):
        assert value.value == 1
    assert not value.get_lock().locked()


def hold_and_check(value, connection):
    connection.send(os.getpid())
    assert connection.recv() == "check"
    assert value[:] == [5] * 1000


def test_memory_that_a_child_uses_is_not_used_again():
    ours, theirs = multiprocessing.Pipe()
    value = RawArray("i", [5] * 1000)
    with started(hold_and_check, value, theirs) as process:
        ours.recv()
        del value
        gc.collect()
        others = [RawArray("i", [9] * 1000) for _ in range(20)]
        ours.send("check")
        finish(process)
        assert len(others) == 20
