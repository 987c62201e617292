"""Locks, semaphores, conditions, events and barriers in one process and in several."""

import gc
import inspect
import multiprocessing
import pickle
import threading
import time
import weakref

import pytest
from processes import METHODS, finish, started, until
from procession import synchronize
from procession.synchronize import (
    Barrier,
    BoundedSemaphore,
    Condition,
    Event,
    Lock,
    RLock,
    Semaphore,
)


def in_thread(call):
    """What the call returns or raises in another thread."""
    results = []

    def target():
        try:
            results.append(call())
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
    return results[0]


# One process


def test_lock():
    lock = Lock(ctx=multiprocessing.get_context())
    assert repr(lock) == "<Lock(owner=None)>"
    assert lock.acquire() is True
    assert repr(lock) == "<Lock(owner=MainProcess)>"
    assert lock.locked()
    assert lock.acquire(0) is False
    assert lock.acquire(False, None) is False
    assert lock.acquire(True, 0.01) is False
    assert lock.acquire(timeout=-1) is False
    assert in_thread(lambda: repr(lock)) == "<Lock(owner=SomeOtherThread)>"
    assert in_thread(lock.release) is None
    assert not lock.locked()
    with pytest.raises(ValueError, match="semaphore or lock released too many times"):
        lock.release()
    with lock as entered:
        assert entered is True
        assert lock._semlock._is_mine() and lock._semlock._count() == 1
    assert not lock._semlock._is_mine()


def test_rlock():
    lock = RLock()
    assert repr(lock) == "<RLock(None, 0)>"
    assert lock.acquire() and lock.acquire(block=False)
    with lock:
        assert repr(lock) == "<RLock(MainProcess, 3)>"
        assert lock._semlock._count() == 3
    assert in_thread(lambda: lock.acquire(False)) is False
    assert in_thread(lambda: repr(lock)) == "<RLock(SomeOtherThread, nonzero)>"
    error = in_thread(lock.release)
    assert isinstance(error, AssertionError)
    assert str(error) == "attempt to release recursive lock not owned by thread"
    lock.release()
    assert lock.locked()
    lock.release()
    assert not lock.locked()
    with pytest.raises(AssertionError):
        lock.release()


def test_semaphores():
    semaphore = Semaphore(2)
    assert repr(semaphore) == "<Semaphore(value=2)>"
    with semaphore:
        assert semaphore.get_value() == 1
        assert semaphore._semlock._count() == 1
        assert semaphore.acquire(False)
        assert semaphore.locked()
        assert not semaphore.acquire(timeout=0.01)
    semaphore.release()
    semaphore.release()
    assert semaphore.get_value() == 3
    assert Semaphore().get_value() == 1

    bounded = BoundedSemaphore(2)
    assert isinstance(bounded, Semaphore)
    assert repr(bounded) == "<BoundedSemaphore(value=2, maxvalue=2)>"
    with pytest.raises(ValueError, match="released too many times"):
        bounded.release()
    full = Semaphore(synchronize.SEM_VALUE_MAX)
    with pytest.raises(ValueError, match="released too many times"):
        full.release()
    with pytest.raises(OSError):
        Semaphore(-1)
    with pytest.raises(OverflowError):
        Semaphore(synchronize.SEM_VALUE_MAX + 1)
    with pytest.raises(TypeError):
        Semaphore("1")


def test_semlock():
    semlock = Lock()._semlock
    assert (semlock.kind, semlock.maxvalue, semlock.name) == (1, 1, None)
    assert semlock._get_value() == 1 and not semlock._is_zero()
    with semlock:
        assert semlock._is_zero() and semlock._is_mine()
    assert RLock()._semlock.kind == 0
    assert BoundedSemaphore(4)._semlock.maxvalue == 4
    assert Semaphore(4)._semlock.maxvalue == semlock.SEM_VALUE_MAX == synchronize.SEM_VALUE_MAX


def test_event():
    event = Event()
    assert not event.is_set()
    assert not event.wait(0) and not event.wait(0.01)
    assert repr(event).endswith("unset>")
    event.set()
    assert event.wait() and event.is_set()
    assert repr(event).startswith("<Event at 0x") and repr(event).endswith(" set>")
    event.clear()
    assert not event.is_set()


def test_condition_without_its_lock():
    for condition in (Condition(), Condition(Lock()), Condition(RLock())):
        with pytest.raises(AssertionError, match=r"must acquire\(\) condition before using wait\(\)"):
            condition.wait()
        with pytest.raises(AssertionError, match="lock is not owned"):
            condition.notify()
        with pytest.raises(AssertionError, match="lock is not owned"):
            condition.notify_all()
        with condition:
            assert isinstance(in_thread(condition.notify), AssertionError)
            assert condition.locked()
            assert condition.wait(0) is False
            assert condition.wait(0.01) is False
            assert condition.wait_for(lambda: [], 0.01) == []
            assert condition.wait_for(lambda: "yes") == "yes"
        assert not condition.locked()
    with pytest.raises(TypeError, match="_thread.RLock"):
        Condition(threading.RLock())


def test_wait_restores_the_depth():
    condition = Condition()
    with condition, condition, condition:
        thread = threading.Thread(
            target=lambda: condition.acquire() and (condition.notify(), condition.release())
        )
        thread.start()
        assert condition.wait()
        assert repr(condition) == "<Condition(<RLock(MainProcess, 3)>, 0)>"
        thread.join()
    with pytest.raises(AssertionError):
        condition.release()


def test_wait_for_sees_the_last_answer():
    condition = Condition()
    answers = iter([0, 0.0, "now"])

    def notify():
        for _ in range(2):
            until(lambda: condition._sleeping_count.get_value() == 1)
            with condition:
                condition.notify_all()

    with condition:
        thread = threading.Thread(target=notify)
        thread.start()
        assert condition.wait_for(lambda: next(answers)) == "now"
    thread.join()


def test_notify_wakes_as_many_as_asked():
    condition, woken = Condition(Lock()), Semaphore(0)

    def wait():
        with condition:
            assert condition.wait()
        woken.release()

    threads = [threading.Thread(target=wait) for _ in range(5)]
    for thread in threads:
        thread.start()
    until(lambda: condition._sleeping_count.get_value() == 5)
    with condition:
        condition.notify(2)
    assert woken.acquire() and woken.acquire()
    assert condition._sleeping_count.get_value() == 3
    assert not woken.acquire(False)
    with condition:
        condition.notify_all()
    for thread in threads:
        thread.join()
    assert woken.get_value() == 3


@pytest.mark.parametrize("count, most", [(1.5, 2), (2**70, 3), (-(2**70), 0), (float("inf"), 3), (True, 1)])
def test_notify_takes_any_number_as_cpython(count, most):
    condition, woken = Condition(Lock()), Semaphore(0)

    def wait():
        with condition:
            condition.wait()
        woken.release()

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    until(lambda: condition._sleeping_count.get_value() == 3)
    with condition:
        condition.notify(count)
        assert condition._sleeping_count.get_value() == 3 - most
        condition.notify_all()
    for thread in threads:
        thread.join()
    assert woken.get_value() == 3


def test_barrier():
    ran = []
    barrier = Barrier(3, lambda: ran.append(threading.get_ident()))
    assert isinstance(barrier, threading.Barrier)
    assert (barrier.parties, barrier.n_waiting, barrier.broken) == (3, 0, False)
    assert repr(barrier).endswith("waiters=0/3>")
    for round_ in range(1, 4):
        indices = []
        threads = [threading.Thread(target=lambda: indices.append(barrier.wait())) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(indices) == [0, 1, 2]
        assert len(ran) == round_


def test_barrier_breaks():
    barrier = Barrier(2)
    with pytest.raises(threading.BrokenBarrierError):
        barrier.wait(0.01)
    assert barrier.broken and repr(barrier).endswith("broken>")
    with pytest.raises(threading.BrokenBarrierError):
        barrier.wait()
    barrier.reset()
    assert not barrier.broken
    thread = threading.Thread(target=lambda: (until(lambda: barrier.n_waiting == 1), barrier.abort()))
    thread.start()
    with pytest.raises(threading.BrokenBarrierError):
        barrier.wait()
    thread.join()
    with pytest.raises(threading.BrokenBarrierError):
        Barrier(2, timeout=0.01).wait()
    with pytest.raises(ZeroDivisionError):
        Barrier(1, lambda: 1 / 0).wait()
    for parties in (0, -1, 40_000):
        with pytest.raises(ValueError):
            Barrier(parties)


def test_bad_arguments():
    with pytest.raises(ValueError, match="robust"):
        Lock(robust="sometimes")
    with pytest.raises(ValueError, match="not a number"):
        Lock().acquire(True, float("nan"))
    with pytest.raises(TypeError):
        Lock().acquire(True, "soon")
    with pytest.raises(TypeError):
        Lock(1)
    with pytest.raises(RuntimeError, match="__init__"):
        Lock.__new__(Lock).acquire()


@pytest.mark.parametrize("made", [Lock, RLock, Semaphore, BoundedSemaphore])
def test_every_way_to_call(made):
    lock = made()
    for arguments, options in [
        ((), {}), ((True,), {}), ((False,), {}), ((0, None), {}), ((True, 0.5), {}), ((), {"block": False, "timeout": 1})
    ]:  # fmt: skip
        assert lock.acquire(*arguments, **options) is True
        assert lock.release() is None
    assert lock.__enter__() is True
    assert lock.__exit__(None, None, None) is None
    assert lock.__enter__() is True
    assert lock.__exit__() is None
    with pytest.raises(ZeroDivisionError):
        with lock as entered:
            assert entered is True
            1 / 0
    for call in [
        lambda: lock.acquire(True, None, None),
        lambda: lock.acquire(wait=True),
        lambda: lock.acquire(True, block=True),
        lambda: lock.release(1),
        lambda: lock.__exit__(None, None, None, None),
        lambda: made.acquire(),
        lambda: made.acquire(1),
        lambda: made.__enter__(object()),
    ]:
        with pytest.raises(TypeError):
            call()
    assert lock.acquire(False)
    lock.release()
    assert str(inspect.signature(lock.acquire)) == "(block=True, timeout=None)"
    assert "timeout" in made.acquire.__doc__


class Named(Lock):
    def __init__(self, name, *, ctx=None):
        super().__init__(ctx=ctx)
        self.name = name


def test_subclasses():
    lock = Named("a")
    assert repr(lock) == "<Named(owner=None)>"
    with lock:
        assert type(pickle.loads(pickle.dumps(lock))) is Named
    with pytest.raises(RuntimeError, match="already"):
        Lock.__init__(lock)


def test_pickles_are_the_same_object():
    lock, semaphore, event, barrier = (
        Lock(robust="raise"),
        BoundedSemaphore(3),
        Event(),
        Barrier(2, timeout=5),
    )
    condition = Condition(lock)
    copies = pickle.loads(pickle.dumps([lock, semaphore, event, barrier, condition]))
    with copies[0]:
        assert lock.locked() and condition.locked() and copies[4].locked()
    assert copies[4]._lock is copies[0]
    semaphore.acquire()
    assert repr(copies[1]) == "<BoundedSemaphore(value=2, maxvalue=3)>"
    event.set()
    assert copies[2].is_set()
    copies[3].abort()
    assert barrier.broken


def test_nothing_keeps_them():
    for make in (Lock, RLock, Semaphore, BoundedSemaphore, Condition, Event, lambda: Barrier(1)):
        seen = weakref.ref(make())
        assert seen() is None

    class Party:
        def __init__(self):
            self.barrier = Barrier(1, self.act)

        def act(self):
            pass

    seen = weakref.ref(Party())
    gc.collect()
    assert seen() is None


def test_threads_on_one_lock():
    lock, total = Lock(), [0]

    def add():
        for _ in range(2000):
            with lock:
                before = total[0]
                if before % 100 == 0:
                    time.sleep(0)
                total[0] = before + 1

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert total == [8000]


# Several processes


def use_all(lock, rlock, semaphore, bounded, condition, other, event, barrier):
    with rlock, rlock:
        pass
    assert not lock.acquire(False)
    semaphore.release()
    assert bounded.acquire()
    event.wait()
    with condition:
        condition.notify()
    with other:
        other.notify_all()
    barrier.wait()
    # Whoever took it.
    lock.release()


@pytest.mark.parametrize("method", METHODS)
def test_start_methods(method):
    lock, rlock, semaphore, bounded = Lock(), RLock(), Semaphore(0), BoundedSemaphore(1)
    condition, event, barrier = Condition(), Event(), Barrier(2)
    other = Condition(rlock)
    lock.acquire()
    args = (lock, rlock, semaphore, bounded, condition, other, event, barrier)
    with started(use_all, *args, method=method) as process:
        semaphore.acquire()
        with condition, other:
            event.set()
            assert condition.wait()
            assert other.wait()
        barrier.wait()
        assert lock.acquire()
        assert bounded.get_value() == 0
        finish(process)


def add_many(locks, total, times):
    for i in range(times):
        with locks[i % 2]:
            before = total[0]
            total[0] = before + 1


@pytest.mark.parametrize("make", [Lock, RLock, BoundedSemaphore])
def test_mutual_exclusion(make):
    from procession.sharedctypes import RawArray

    lock, total = make(), RawArray("q", 1)
    with (
        started(add_many, [lock, lock], total, 20_000) as one,
        started(add_many, [lock, lock], total, 20_000) as two,
    ):
        finish(one)
        finish(two)
    assert total[0] == 40_000


def rlock_of_parent(lock, connection):
    assert not lock.acquire(False)
    assert repr(lock) == "<RLock(SomeOtherProcess, nonzero)>"
    with pytest.raises(AssertionError):
        lock.release()
    connection.send("done")


def test_a_forked_child_does_not_hold_its_parents_lock():
    lock = RLock()
    ours, theirs = multiprocessing.Pipe()
    with lock, started(rlock_of_parent, lock, theirs) as process:
        assert ours.recv() == "done"
        finish(process)
