"""Odd arguments have the same outcome as with CPython's own classes."""

import multiprocessing
import sys

import procession
import pytest

ODD = [None, 0, 1, True, False, -1, -0.5, "", "a", b"x", [], [1], object(), 1j]
LOCKS = ["Lock", "RLock", "Semaphore", "BoundedSemaphore"]


def full(context):
    queue = context.Queue(1)
    queue.put(1)
    return queue


def held(context, name):
    lock = getattr(context, name)()
    lock.acquire()
    return lock


def event(context):
    made = context.Event()
    made.set()
    return made


def notify(context, count):
    condition = context.Condition()
    with condition:
        return condition.notify(count)


CALLS = {
    "get(block, 0)": lambda context, odd: context.Queue().get(odd, 0),
    "get(False, timeout)": lambda context, odd: context.Queue().get(False, odd),
    "get(block=, timeout=0)": lambda context, odd: context.Queue().get(timeout=0, block=odd),
    "put(1, block, 0)": lambda context, odd: full(context).put(1, odd, 0),
    "put(1, False, timeout)": lambda context, odd: full(context).put(1, False, odd),
    "JoinableQueue.get(block, 0)": lambda context, odd: context.JoinableQueue().get(odd, 0),
    "Semaphore": lambda context, odd: context.Semaphore(odd) and None,
    "BoundedSemaphore": lambda context, odd: context.BoundedSemaphore(odd) and None,
    "Condition": lambda context, odd: context.Condition(odd) and None,
    "Queue": lambda context, odd: context.Queue(odd) and None,
    "Barrier(1, action)": lambda context, odd: context.Barrier(1, odd).wait(),
    "Condition.notify": lambda context, odd: notify(context, odd),
    "Event.wait": lambda context, odd: event(context).wait(odd),
    "get(1, 2, 3)": lambda context, odd: context.Queue().get(False, 0, odd),
    "get(nonsense=)": lambda context, odd: context.Queue().get(False, nonsense=odd),
    "put()": lambda context, odd: context.Queue().put(),
    "release(1)": lambda context, odd: held(context, "Lock").release(odd),
}
for _name in LOCKS:
    CALLS[f"{_name}.acquire(block, 0)"] = lambda context, odd, name=_name: held(context, name).acquire(odd, 0)
    CALLS[f"{_name}.acquire(False, timeout)"] = lambda context, odd, name=_name: getattr(
        context, name
    )().acquire(False, odd)
    CALLS[f"{_name}.acquire(True, timeout)"] = lambda context, odd, name=_name: getattr(
        context, name
    )().acquire(True, odd)


def outcome(call, package, odd):
    try:
        return call(package.get_context("fork"), odd)
    except Exception as error:
        return type(error)


def may_differ(name, odd):
    """Whether CPython's outcome depends on its version, or on whether it looks at the argument."""
    if "block" in name and sys.version_info < (3, 12):
        # CPython refuses all but integers there, and takes any truth value since. So do locks here.
        return not isinstance(odd, int) and (odd is not None or name.startswith(tuple(LOCKS)))
    return name == "Event.wait" and not isinstance(odd, (int, float, type(None)))


@pytest.mark.parametrize("name", CALLS)
def test_outcomes_are_cpythons(name):
    call = CALLS[name]
    for odd in ODD:
        if not may_differ(name, odd):
            assert (odd, outcome(call, procession, odd)) == (odd, outcome(call, multiprocessing, odd))
