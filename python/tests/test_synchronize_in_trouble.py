"""Locks and their like when processes are killed or interrupted."""

import multiprocessing
import os
import signal
import threading
import time
import warnings

import pytest
from processes import HUNG, finish, kill, sleeps, started, until
from procession.synchronize import (
    Barrier,
    BoundedSemaphore,
    Condition,
    Event,
    Lock,
    OwnerDied,
    OwnerDiedWarning,
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


def take_and_stay(lock, connection):
    lock.acquire()
    connection.send("taken")
    time.sleep(HUNG)


def owned_by_the_dead(lock, method="fork"):
    """Lets a process take the lock and kills it."""
    ours, theirs = multiprocessing.Pipe()
    with started(take_and_stay, lock, theirs, method=method) as process:
        assert ours.recv() == "taken"
        kill(process)
    return process.pid


def locks(**arguments):
    return [Lock(**arguments), RLock(**arguments), Condition(**arguments), Condition(Lock(**arguments))]


@pytest.mark.parametrize("which", range(4))
def test_a_dead_owner_is_warned_of(which):
    lock = locks()[which]
    pid = owned_by_the_dead(lock)
    with pytest.warns(OwnerDiedWarning, match=f"process {pid}") as record:
        assert lock.acquire()
    assert record[0].filename == __file__
    assert lock.locked()
    lock.release()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with lock:
            pass


@pytest.mark.parametrize("which", range(4))
def test_a_dead_owner_raises(which):
    lock = locks(robust="raise")[which]
    pid = owned_by_the_dead(lock, "spawn" if which == 0 else "fork")
    with pytest.raises(OwnerDied, match=f"process {pid}"):
        lock.acquire()
    # The caller has it.
    lock.release()
    owned_by_the_dead(lock)
    with pytest.raises(OwnerDied), lock:
        pytest.fail("entered")
    # Nobody would have released it.
    assert lock.acquire(False)


@pytest.mark.parametrize("which", range(4))
def test_a_warning_that_is_an_error(which):
    lock = locks()[which]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        owned_by_the_dead(lock)
        with pytest.raises(OwnerDiedWarning):
            lock.acquire()
        lock.release()
        owned_by_the_dead(lock)
        with pytest.raises(OwnerDiedWarning), lock:
            pytest.fail("entered")
        assert lock.acquire(False)


@pytest.mark.parametrize("which", range(4))
def test_a_dead_owner_keeps_what_is_not_robust(which):
    lock = locks(robust=False)[which]
    owned_by_the_dead(lock)
    assert not lock.acquire(timeout=0.5)


def test_robust_semaphore():
    semaphore = Semaphore(2, robust=True)
    with pytest.raises(ValueError, match="permit"):
        semaphore.release()
    owned_by_the_dead(semaphore)
    assert semaphore.acquire() and semaphore.acquire()
    assert not semaphore.acquire(False)
    plain = BoundedSemaphore(2)
    owned_by_the_dead(plain)
    assert plain.acquire() and not plain.acquire(False)
    with pytest.raises(ValueError):
        Semaphore(0, robust=True)


def wait_on(condition):
    with condition:
        condition.wait()


def test_a_notification_reaches_the_living():
    condition = Condition()
    with started(wait_on, condition) as first, started(wait_on, condition) as second:
        until(lambda: condition._sleeping_count.get_value() == 2)
        kill(first)
        kill(second)
        results, acquired = [], threading.Event()

        def wait():
            with condition:
                acquired.set()
                results.append(condition.wait())

        thread = threading.Thread(target=wait)
        thread.start()
        # The thread frees the places of the dead after a while, so that their number says nothing.
        assert acquired.wait()
        with condition:
            condition.notify()
        thread.join()
        assert results == [True]


def stop_notified(condition, connection):
    with condition:
        connection.send("waits")
        condition.wait()


def test_a_notification_of_one_that_dies_passes_on():
    condition = Condition(Lock())
    ours, theirs = multiprocessing.Pipe()
    with started(stop_notified, condition, theirs) as first:
        assert ours.recv() == "waits"
        results = []

        def wait():
            with condition:
                results.append(condition.wait())

        thread = threading.Thread(target=wait)
        # Only once the other waits: it has waited longest.
        with condition:
            thread.start()
        until(lambda: condition._sleeping_count.get_value() == 2)
        with condition:
            condition.notify()
            # It has the notification and cannot have the lock yet.
            kill(first)
        thread.join()
        assert results == [True]


def wait_at(barrier):
    barrier.wait()


def test_a_dead_party_breaks_the_barrier():
    barrier = Barrier(3)
    with started(wait_at, barrier) as process:
        until(lambda: barrier.n_waiting == 1)
        kill(process)
    with pytest.raises(threading.BrokenBarrierError):
        barrier.wait()
    assert barrier.broken
    barrier.abort()
    barrier.reset()
    with started(wait_at, barrier) as one, started(wait_at, barrier) as two:
        assert barrier.wait() in range(3)
        finish(one)
        finish(two)


# Signals


def blocked(call, connection):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    connection.send("ready")
    try:
        call()
    except KeyboardInterrupt:
        connection.send("interrupted")
    else:
        connection.send("not interrupted")


def acquire(lock):
    lock.acquire()


def acquire_in_time(lock):
    lock.acquire(True, 1000)


def enter(lock):
    with lock:
        pass


def wait(waited_for):
    waited_for.wait()


def wait_in_time(waited_for):
    waited_for.wait(1000)


def wait_holding(condition):
    with condition:
        try:
            condition.wait()
        finally:
            # With the lock, whatever happened.
            condition.notify()


def wait_for(condition):
    with condition:
        condition.wait_for(lambda: False, 1000)


def held(lock):
    lock.acquire()
    return lock


BLOCKED = {
    "lock": lambda: (acquire, held(Lock())),
    "lock with timeout": lambda: (acquire_in_time, held(Lock())),
    "with lock": lambda: (enter, held(Lock())),
    "rlock": lambda: (acquire, held(RLock())),
    "with rlock": lambda: (enter, held(RLock())),
    "semaphore": lambda: (acquire, Semaphore(0)),
    "semaphore with timeout": lambda: (acquire_in_time, Semaphore(0)),
    "robust semaphore": lambda: (acquire, held(Semaphore(1, robust=True))),
    "event": lambda: (wait, Event()),
    "event with timeout": lambda: (wait_in_time, Event()),
    "barrier": lambda: (wait, Barrier(2)),
    "barrier with timeout": lambda: (wait_in_time, Barrier(2)),
    "condition": lambda: (wait_holding, Condition()),
    "condition of a lock": lambda: (wait_holding, Condition(Lock())),
    "wait_for": lambda: (wait_for, Condition()),
    "condition's lock": lambda: (enter, held(Condition())),
}


def call_blocked(function, argument, connection):
    blocked(lambda: function(argument), connection)


@pytest.mark.parametrize("name", BLOCKED)
def test_interrupt(name):
    function, argument = BLOCKED[name]()
    ours, theirs = multiprocessing.Pipe()
    with started(call_blocked, function, argument, theirs) as process:
        assert ours.recv() == "ready"
        until(lambda: sleeps(process.pid))
        os.kill(process.pid, signal.SIGINT)
        assert ours.recv() == "interrupted"
        finish(process)
    # It has left nothing behind.
    if isinstance(argument, Barrier):
        assert argument.n_waiting == 0 and not argument.broken
    if isinstance(argument, Condition) and name != "condition's lock":
        assert argument._sleeping_count.get_value() == 0
        assert argument.acquire(False)


def count_signals(event, connection):
    count = 0

    def handler(*_):
        nonlocal count
        count += 1

    signal.signal(signal.SIGUSR1, handler)
    connection.send("ready")
    assert event.wait()
    connection.send(count)


def test_a_handler_that_returns_lets_the_wait_go_on():
    event = Event()
    ours, theirs = multiprocessing.Pipe()
    with started(count_signals, event, theirs) as process:
        assert ours.recv() == "ready"
        until(lambda: sleeps(process.pid))
        for _ in range(3):
            os.kill(process.pid, signal.SIGUSR1)
            time.sleep(0.05)
        assert not ours.poll(0)
        event.set()
        assert ours.recv() > 0
        finish(process)


def waits_then_interrupted(condition, connection):
    with condition:
        try:
            connection.send("waits")
            condition.wait()
        except KeyboardInterrupt:
            connection.send((condition._lock._semlock._is_mine(), condition._lock._semlock._count()))


def test_interrupted_while_the_lock_is_another_s():
    condition = Condition()
    ours, theirs = multiprocessing.Pipe()
    with started(waits_then_interrupted, condition, theirs) as process:
        assert ours.recv() == "waits"
        with condition:
            condition.notify()
            until(lambda: sleeps(process.pid))
            os.kill(process.pid, signal.SIGINT)
            time.sleep(0.1)
            # It wants the lock first.
            assert not ours.poll(0)
        assert ours.recv() == (True, 1)
        finish(process)
