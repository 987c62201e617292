"""Signals' handlers that raise in the middle of whatever a manager's client does, or use the manager."""

import gc
import os
import pickle
import random
import signal
import threading
import time

import procession
import pytest
from processes import alarms, until
from procession.managers import SyncManager


class Interrupt(Exception):
    pass


class Sleeper:
    def sleep(self, seconds):
        time.sleep(seconds)
        return "slept"

    def echo(self, value):
        return value


class Manager(SyncManager):
    pass


Manager.register("Sleeper", Sleeper)


@pytest.fixture
def manager():
    with Manager(ctx=procession.get_context("fork")) as manager:
        yield manager


# What is raised where an object is deleted goes nowhere.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_interrupts_anywhere(manager):
    """Whatever is interrupted, nothing is locked afterwards and nothing is kept."""
    table = manager.dict(inner=manager.list([1]))
    armed = False

    def interrupt(*_):
        nonlocal armed
        if armed:
            armed = False
            raise Interrupt

    with alarms(interrupt):
        for _ in range(400):
            try:
                armed = True
                signal.setitimer(signal.ITIMER_REAL, random.random() * 0.0015 + 1e-6)
                while armed:
                    made = manager.list()
                    table["inner"].append(made)
                    table["inner"].pop()
                    pickle.loads(pickle.dumps(table["inner"]))
                    del made
            except Interrupt:
                pass
            armed = False
    made = None
    gc.collect()
    inner = table["inner"]
    while len(inner) > 1:
        inner.pop()
    assert inner[:] == [1]
    # Pickles that were thrown away are promises.
    until(lambda: manager._number_of_objects() == 2)


def test_a_handler_that_calls(manager):
    sleeper, done = manager.Sleeper(), []
    with alarms(lambda *_: done.append(sleeper.echo("handled"))):
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        assert sleeper.sleep(0.6) == "slept"
    assert done == ["handled"]
    assert sleeper.echo("later") == "later"


def test_a_handler_in_the_middle_of_requests(manager):
    """It receives and sends proxies while the thread does."""
    table = manager.dict(inner=manager.list([1]))
    done = 0

    def handle(*_):
        nonlocal done
        assert pickle.loads(pickle.dumps(table))["inner"][0] == 1
        done += 1
        signal.setitimer(signal.ITIMER_REAL, 0.002)

    with alarms(handle):
        signal.setitimer(signal.ITIMER_REAL, 0.002)
        while done < 200:
            assert pickle.loads(pickle.dumps(table))["inner"][0] == 1
    until(lambda: manager._number_of_objects() == 2)


def test_a_handler_while_the_manager_is_stopped(manager):
    """What the thread has asked comes first, and so does what another thread is at."""
    table, done = manager.dict(a=1), []
    with alarms(lambda *_: done.append(table["a"])):
        os.kill(manager._process.pid, signal.SIGSTOP)
        threading.Timer(0.3, os.kill, (manager._process.pid, signal.SIGCONT)).start()
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        assert pickle.loads(pickle.dumps(table))["a"] == 1
        until(lambda: done == [1])
