"""Exceptions of a manager's process: where they were raised, and those that do not travel."""

import gc
import os
import pickle
import sys
import traceback

import pytest
from processes import finish, start
from procession.managers import ManagerDied, RemoteError, SyncManager


class Awkward(Exception):
    """Cannot be unpickled: it takes two arguments and says that it took one."""

    def __init__(self, code, text):
        super().__init__(f"{code}: {text}")


class Unpicklable(Exception):
    def __init__(self):
        super().__init__("with a function")
        self.function = lambda: None


class Foreign(Exception):
    """Cannot be unpickled where it is not known."""

    def __reduce__(self):
        return only_in, (self.args[0],)


def only_in(pid):
    if os.getpid() != pid:
        raise ImportError("there is no such thing here")
    return Foreign(pid)


class Raiser:
    def fail(self, kind="value"):
        if kind == "value":
            raise ValueError("from afar")
        if kind == "chain":
            try:
                {}["missing"]
            except KeyError as error:
                raise OSError(2, "no such thing") from error
        if kind == "awkward":
            raise Awkward(1, "text")
        if kind == "unpicklable":
            raise Unpicklable
        if kind == "foreign":
            raise Foreign(os.getpid())
        if kind == "exit":
            sys.exit("the server's")
        if kind == "interrupt":
            raise KeyboardInterrupt

    def result(self, kind):
        return {
            "function": lambda: None,
            "file": sys.stderr,
            "broken": Broken(),
            "exits": ExitsInPickling(),
            "fine": 1,
        }[kind]

    def keep(self, value):
        self.kept = value

    def fail_with_kept(self):
        kept, self.kept = self.kept, None
        raise LookupError(kept)

    def attribute(self):
        return self.nothing_of_the_kind


class ExitsInPickling:
    def __getstate__(self):
        sys.exit("a state's")


class Broken:
    def __reduce__(self):
        return refuse, ()


def refuse():
    raise EOFError("not the connection's end")


class Exits:
    """Raises what would end a process, where it is made or unpickled."""

    def __init__(self):
        sys.exit("a constructor's")

    def __reduce__(self):
        return sys.exit, ("a pickle's",)


class Manager(SyncManager):
    pass


Manager.register("Raiser", Raiser)
Manager.register("Exits", Exits)


@pytest.fixture(scope="module")
def manager():
    with Manager() as manager:
        yield manager


@pytest.fixture
def raiser(manager):
    raiser = manager.Raiser()
    yield raiser
    # Whatever there was, replies are still those of their calls.
    assert raiser.result("fine") == 1
    gc.collect()
    assert manager._number_of_objects() <= 1


def text_of(error):
    return "".join(traceback.format_exception(error))


def test_the_cause_is_the_remote_traceback(raiser):
    with pytest.raises(ValueError, match="^from afar$") as caught:
        raiser.fail()
    text = text_of(caught.value)
    assert "in fail\n" in text and 'raise ValueError("from afar")' in text
    assert text.count("direct cause") == 1


def test_the_remote_causes_are_there_too(raiser):
    with pytest.raises(FileNotFoundError) as caught:
        raiser.fail("chain")
    assert caught.value.errno == 2
    assert "KeyError: 'missing'" in text_of(caught.value)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert copy.args == caught.value.args


def raise_there(raiser, results):
    try:
        raiser.fail()
    except ValueError as error:
        results.put("in fail\n" in text_of(error))


def test_in_other_processes(context, raiser):
    results = context.Queue()
    finish(start(context, raise_there, raiser, results))
    assert results.get() is True


@pytest.mark.parametrize("kind", ["awkward", "unpicklable", "foreign"])
def test_exceptions_that_do_not_travel(raiser, kind):
    with pytest.raises(RemoteError) as caught:
        raiser.fail(kind)
    assert "in fail\n" in str(caught.value)
    assert kind.capitalize() in str(caught.value)
    assert "pickled" in str(caught.value)


@pytest.mark.parametrize("kind", ["exit", "interrupt"])
def test_exceptions_that_end_processes_end_none(raiser, kind):
    with pytest.raises(RemoteError, match="SystemExit|KeyboardInterrupt"):
        raiser.fail(kind)


@pytest.mark.parametrize("kind", ["function", "file"])
def test_results_that_cannot_be_pickled(raiser, kind):
    with pytest.raises(RemoteError, match="Unserializable message"):
        raiser.result(kind)


def test_results_that_cannot_be_unpickled(raiser):
    with pytest.raises(EOFError, match="not the connection's end"):
        raiser.result("broken")


def test_arguments_that_cannot_be_pickled(raiser):
    with pytest.raises((pickle.PicklingError, AttributeError)):
        raiser.fail(lambda: None)


def test_arguments_that_cannot_be_unpickled(raiser):
    with pytest.raises(RemoteError, match="not the connection's end"):
        raiser.fail(Broken())


def test_missing_methods(manager, raiser):
    with pytest.raises(RemoteError, match="not in exposed"):
        raiser._callmethod("_private")
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        raiser.attribute()
    with pytest.raises(RemoteError, match="unrecognized"):
        manager._ask("no_such_thing")
    with pytest.raises(RemoteError, match="KeyError"):
        manager._create("no such type")


def test_errors_in_proxies_of_containers(manager):
    with pytest.raises(KeyError) as caught:
        manager.dict()["missing"]
    assert caught.value.args == ("missing",)
    assert "Traceback" in text_of(caught.value.__cause__)
    with pytest.raises(StopIteration):
        next(iter(manager.dict()))


def test_exits_of_constructors_and_pickles(manager, raiser):
    """They end neither the manager nor the client's connections with it."""
    pid = manager._process.pid
    with pytest.raises(RemoteError, match="a constructor's"):
        manager.Exits()
    assert raiser.result("fine") == 1
    for value in Exits.__new__(Exits), [raiser, Exits.__new__(Exits)]:
        with pytest.raises(RemoteError, match="a pickle's"):
            raiser.keep(value)
    raiser.keep(raiser)
    raiser.keep(None)
    assert manager._process.pid == pid and manager._process.is_alive()


def test_an_exit_in_a_result(raiser):
    with pytest.raises(RemoteError, match="a state's"):
        raiser.result("exits")


def test_an_exception_that_alone_has_a_proxy(manager, raiser):
    raiser.keep(manager.list([7]))
    with pytest.raises(LookupError) as caught:
        raiser.fail_with_kept()
    assert caught.value.args[0][:] == [7]
    del caught


def test_another_managers_end(manager):
    table, items = manager.dict(), manager.list()
    with SyncManager() as other:
        table["theirs"] = other.list([1])
        items.append(table["theirs"])
        assert table["theirs"][0] == 1
        address = other.address
    for attempt in lambda: table["theirs"], lambda: items[0], lambda: table.copy():
        with pytest.raises(ManagerDied) as caught:
            attempt()
        assert caught.value.address == address
    table["theirs"] = 1
    assert table["theirs"] == 1
