"""Each method of a manager's objects, called as programs may call it, with CPython's manager and
this package's.

Results, exceptions and their texts are the same. A call is an expression over `o`, the object, and
`m`, its manager.
"""

import array
import multiprocessing
import multiprocessing.managers
import pickle
import threading

import procession
import pytest

QUEUE = [
    "o.put(1)",
    "o.put(item=2, block=True, timeout=1)",
    "o.full()",
    "o.put(3, False)",
    "o.put(3, block=False, timeout=-1)",
    "o.put(3, True, -1)",
    "o.put(3, timeout=-0.5)",
    "o.put(3, timeout='1')",
    "o.put(3, True, 0)",
    "o.put(3, 1, 0.01)",
    "o.put_nowait(3)",
    "o.put_nowait(item=3)",
    "o.put(obj=3)",
    "o.put()",
    "o.qsize()",
    "o.get(timeout=-1)",
    "o.get(True, -0.1)",
    "o.get(block=False, timeout=-1)",
    "o.get(block='yes', timeout=1)",
    "o.get_nowait()",
    "o.get(False)",
    "o.get(0)",
    "o.get(True, 0.01)",
    "o.get(timeout=0)",
    "o.get(None)",
    "o.empty()",
    "o.task_done()",
    "o.task_done()",
    "o.join()",
    "o.task_done()",
    "o._callmethod('put', (5,))",
    "o._callmethod('get', (), {'timeout': 1})",
    "type(o).__mro__[-2].__name__",
]
UNBOUNDED = ["o.put(1, timeout=-1)", "o.full()", "o.get(timeout=-1)", "o.get()"]
LOCK = [
    "o.acquire()",
    "o.acquire(False)",
    "o.acquire(0)",
    "o.acquire(blocking=False)",
    "o.acquire(True, 0)",
    "o.acquire(True, 0.01)",
    "o.acquire(timeout=0.01)",
    "o.acquire(False, 1)",
    "o.acquire(False, -1)",
    "o.acquire(False, None)",
    "o.acquire(True, -2)",
    "o.acquire(True, 1e300)",
    "o.acquire(True, '1')",
    "o.acquire(block=False)",
    "o.release()",
    "o.release()",
    "o.release(1)",
    "o.acquire(True, -1)",
    "o.release()",
    "o.__enter__()",
    # A second time, a lock in shared memory raises its own ValueError there.
    "o.__exit__(None, None, None)",
    "o._callmethod('acquire', (False,))",
    "o._callmethod('release')",
]
OWNED = [
    "o.acquire()",
    "o.acquire(False)",
    "o.release()",
    "o.release()",
    "o.release()",
    *LOCK[7:14],
    "o.release()",
]
SEMAPHORE = [
    "o.acquire()",
    "o.acquire(blocking=False)",
    "o.acquire(False)",
    "o.acquire(True, -1)",
    "o.acquire(True, 0)",
    "o.acquire(timeout=0.01)",
    "o.acquire(False, 1)",
    "o.acquire(False, -1)",
    "o.release(2)",
    "o.release()",
    "o.release()",
    "o.__enter__()",
    "o.__exit__(None, None, None)",
]
CONDITION = [
    "o.wait()",
    "o.wait(0.01)",
    "o.notify()",
    "o.notify_all()",
    "o.release()",
    "o.acquire(False, 1)",
    "o.acquire()",
    "o.wait(0.01)",
    "o.wait(-1)",
    "o.wait(timeout=0)",
    "o.notify()",
    "o.notify(2)",
    "o.notify(n=0)",
    "o.notify_all()",
    "o.wait_for(lambda: 7)",
    "o.wait_for(lambda: 0, 0.01)",
    "o.wait_for(predicate=lambda: [], timeout=0)",
    "o.wait_for(lambda: 1 / 0)",
    "o.wait_for(lambda: [].remove(1))",
    "o.release()",
    "o.wait_for(lambda: 0, 0.01)",
    "o.__enter__()",
    "o.__exit__(None, None, None)",
]
EVENT = [
    "o.is_set()",
    "o.wait(0.01)",
    "o.wait(timeout=-1)",
    "o.set()",
    "o.is_set()",
    "o.wait()",
    "o.wait(None)",
    "o.clear()",
    "o.wait(0)",
    "o.set(1)",
    "o.isSet()",
    "o._callmethod('is_set')",
]
BARRIER = [
    "(o.parties, o.n_waiting, o.broken)",
    "o.wait()",
    "o.wait(1)",
    "o.reset()",
    "o.abort()",
    "o.broken",
    "o.wait(timeout=1)",
    "o.reset()",
    "o.broken",
    "o.wait()",
]
VALUE = [
    "o.value",
    "o.get()",
    "str(o)",
    "o.set(0.5)",
    "o.value",
    "o.set(None)",
    "o.get()",
    "o.set(value='text')",
    "o.value",
    "str(o)",
    "o.set('long' * 100)",
    "o.value",
    "o.set({'a': [1, (2, b'3')]})",
    "o.value",
    "o.set(2**70)",
    "o.value",
    "o.set(-(2**2000))",
    "o.value",
    "o.set(float('inf'))",
    "o.value",
    "o.set(-0.0)",
    "str(o)",
    "o.set(True)",
    "o.value",
    "o.set(b'\\0')",
    "o.value",
    "o.set('\\ud800\\0')",
    "o.value",
    "o.set(lambda: 0)",
    "o.value",
    "o.set()",
    "o._callmethod('set', (3,))",
    "o._callmethod('get')",
    "str(o._getvalue())",
    "o._getvalue().value",
    "isinstance(o, managers.ValueProxy)",
]
ARRAY = [
    "len(o)",
    "o[0]",
    "o[-1]",
    "o[9]",
    "o[-9]",
    "o['a']",
    "o[0.5]",
    "o[1:3]",
    "o[::2]",
    "o[5:]",
    "o.__setitem__(0, 7)",
    "o.__setitem__(0, 2**40)",
    "o.__setitem__(0, 'x')",
    "o.__setitem__(0, 0.5)",
    "o.__setitem__(0, None)",
    "o.__setitem__(9, 1)",
    "o.__setitem__(slice(0, 2), array('i', [8, 9]))",
    "o.__setitem__(slice(0, 2), [8, 9])",
    "o.__setitem__(slice(0, 2), array('d', [8, 9]))",
    "o.__setitem__(slice(0, 4, 2), array('i', [1, 2, 3]))",
    "o.__setitem__(slice(0, 4, 2), array('i', [1, 2]))",
    "list(o)",
    "3 in o",
    "str(o)",
    "o._getvalue()",
    "o._callmethod('__len__')",
    # Its length changes.
    "o.__setitem__(slice(0, 1), array('i', [5, 6, 7]))",
    "list(o)",
    "o.__setitem__(0, 1)",
    "o.__setitem__(0, 'x')",
    "o[0:2]",
    "o[9]",
    "o.__setitem__(slice(None), array('i'))",
    "(len(o), list(o), str(o))",
    "isinstance(o, managers.ArrayProxy)",
]
COMMON = [
    "isinstance(o, managers.BaseProxy)",
    "repr(o).partition(' at ')[0]",
    "(o._token.typeid, o._token.address == m.address, o._token.id == o._id)",
    "o._callmethod('no_such_method')",
    "o._manager is m",
]
# With what each is made, and what is called.
OBJECTS = {
    "Queue": ((2,), QUEUE),
    "Queue unbounded": ((), UNBOUNDED),
    "JoinableQueue": ((2,), QUEUE),
    "Lock": ((), LOCK),
    "RLock": ((), OWNED),
    "Semaphore": ((2,), SEMAPHORE),
    "BoundedSemaphore": ((2,), [*SEMAPHORE, "o.release()"]),
    "Condition": ((), CONDITION),
    "Event": ((), EVENT),
    "Barrier": ((1,), BARRIER),
    "Value": (("i", 0), VALUE),
    "Value of a text": ((str, "x"), VALUE),
    "Value of an object": ((list, [1]), VALUE),
    "Array": (("i", [1, 2, 3, 4]), ARRAY),
    "Array of doubles": (("d", [0.5, 2]), ["o[:]", "o.__setitem__(0, 1)", "o.__setitem__(1, 'x')", "o[0]"]),
}
# Their texts may differ.
OTHER_TEXT = (
    *(multiprocessing.managers.RemoteError, TypeError, AttributeError, IndexError, OverflowError),
    *(pickle.PicklingError, threading.BrokenBarrierError),
)


@pytest.fixture(scope="module")
def both():
    with (
        multiprocessing.get_context("fork").Manager() as theirs,
        procession.get_context("fork").Manager() as ours,
    ):
        yield theirs, ours


def outcome(call, names):
    try:
        return repr(eval(call, names))
    except Exception as error:
        return type(error).__name__ if isinstance(error, OTHER_TEXT) else f"{type(error).__name__}: {error}"


def outcomes(manager, managers, typeid, args, calls):
    made = getattr(manager, typeid)(*args)
    names = {"m": manager, "o": made, "managers": managers, "array": array.array}
    return [f"{call} -> {outcome(call, names)}" for call in calls]


@pytest.mark.parametrize("name", OBJECTS)
def test_calls_end_as_cpythons(both, name):
    args, calls = OBJECTS[name]
    theirs, ours = both
    arguments = name.split()[0], args, [*COMMON, *calls]
    expected = outcomes(theirs, multiprocessing.managers, *arguments)
    assert outcomes(ours, procession.managers, *arguments) == expected
