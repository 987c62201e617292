"""Each classic program prints what it promises, under every start method."""

import pathlib
import re

import pytest
from processes import METHODS, lines_of_program

PROGRAMS = pathlib.Path(__file__).parents[2] / "examples" / "classics" / "python"


def lines(program, *arguments):
    """The lines of a program, and of what it left behind."""
    return lines_of_program(PROGRAMS / f"{program}.py", *arguments)


def scan(patterns, found):
    """The numbers at the ``#`` of the patterns, all lines being otherwise the same."""
    assert len(found) == len(patterns), found
    numbers = []
    for pattern, line in zip(patterns, found):
        match = re.fullmatch(re.escape(pattern).replace(r"\#", r"(\d+)"), line)
        assert match, f"{line!r} is not {pattern!r}"
        numbers.extend(int(number) for number in match.groups())
    return numbers


def of(speaker, found):
    return [line for line in found if line.startswith(speaker)]


@pytest.mark.parametrize("method", METHODS)
def test_process(method):
    found = lines("process", method)
    main = scan(["MainProcess: process #"], found[:1])[0]
    greeter, parent = scan(["greeter: process #, parent #"], of("greeter: ", found))
    pids = scan(
        [
            "main: started greeter, process #, daemon: False",
            "main: greeter is alive: False, exit code 3",
            "main: sleeper is alive: True, exit code None, daemon: True",
            "main: sleeper is alive: False, exit code -15",
        ],
        of("main", found),
    )
    assert pids == [greeter]
    # The fork server is the parent of what it forks.
    assert (parent == main) == (method != "forkserver")
    assert of("hello", found) == ["hello hello hello"]
    assert of("greeter of Ada", found) == ["greeter of Ada: hello Ada"]
    assert len(found) == 8


@pytest.mark.parametrize("method", METHODS)
def test_bounded_queue(method):
    assert lines("bounded_queue", method) == [
        "put 1: 1 of 3 in the queue, full: False",
        "put 2: 2 of 3 in the queue, full: False",
        "put 3: 3 of 3 in the queue, full: True",
        "put 4: still full after 0.5 s",
        "put_nowait 4: full",
        "get 1: 2 of 3 in the queue, empty: False",
        "get 2: 1 of 3 in the queue, empty: False",
        "get 3: 0 of 3 in the queue, empty: True",
        "get: still empty after 0.5 s",
        "get_nowait: empty",
        "put after close: Queue",
    ]


@pytest.mark.parametrize("method", METHODS)
def test_polling_reader(method):
    found = lines("polling_reader", method)
    assert of("writer", found) == ["writer: put alpha", "writer: put beta", "writer: put gamma"]
    read = ["reader: got alpha", "reader: got beta", "reader: got gamma", "reader: 3 messages"]
    assert of("reader", found) == read
    assert len(found) == 7


@pytest.mark.parametrize("method", METHODS)
def test_joinable_queue(method):
    found = lines("joinable_queue", method)
    assert of("main", found) == [
        "main: 6 tasks put",
        "main: all tasks are done",
        "main: task_done() called too many times",
    ]
    assert found[-2] == "main: all tasks are done"
    done = of("consumer", found)
    tasks = scan(["consumer #: task # is done"] * 6, done)[1::2]
    assert sorted(tasks) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("method", METHODS)
def test_sentinels(method):
    found = lines("sentinels", method)
    numbers = []
    for consumer in range(1, 4):
        *got, last = of(f"consumer {consumer}", found)
        assert last == f"consumer {consumer}: got the sentinel"
        numbers += scan([f"consumer {consumer}: got #"] * len(got), got)
    assert sorted(numbers) == list(range(1, 10))
    assert found[-1] == "main: all consumers together: 45; left in the queue: 0"


@pytest.mark.parametrize("method", METHODS)
def test_requests(method):
    found = lines("requests", method)
    assert of("handler", found) == [
        "handler: 1 + 10 = 11",
        "handler: 2 + 20 = 22",
        "handler: 3 + 30 = 33",
        "handler: no request for 2 s",
    ]
    assert found[-1] == "main: the handler has ended"


@pytest.mark.parametrize("method", METHODS)
def test_pipe(method):
    assert lines("pipe", method) == [
        "child: received 'to'",
        "parent: 'to' has 2 letters",
        "child: received 'and'",
        "parent: 'and' has 3 letters",
        "child: received 'fro again'",
        "parent: 'fro again' has 9 letters",
        "child: the other end is closed",
    ]


@pytest.mark.parametrize("method", METHODS)
def test_shared_value(method):
    found = lines("shared_value", method)
    assert found[0] == "before: 500" and found[-1] == "after: 1500"
    assert sorted(found[1:-1]) == ["1000 times +3: done", "1000 times -2: done"]


@pytest.mark.parametrize("method", METHODS)
def test_shared_array(method):
    assert lines("shared_array", method) == [
        "before: [1, 2, 3, 4, 5]",
        "after: [-1, 4, 9, 16, 25]",
        "element 0 of 5: -1",
        "element 1 of 5: 4",
        "element 2 of 5: 9",
        "element 3 of 5: 16",
        "element 4 of 5: 25",
        "the last one set: 0",
        "text: b'none', 6 bytes",
    ]


@pytest.mark.parametrize("method", METHODS)
def test_semaphore(method):
    found = lines("semaphore", method)
    assert found[0] == found[-2] == "3 seats are free"
    assert found[-1].startswith("one too many: ")
    inside, visits = set(), []
    for line in found[1:-2]:
        number = int(line.split()[1])
        if line.endswith("comes in"):
            inside.add(number)
            visits.append(number)
        else:
            inside.remove(number)
        assert len(inside) <= 3
    assert sorted(visits) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("method", METHODS)
def test_pool(method):
    assert lines("pool", method) == [
        "map: [0, 1, 4, 9, 16, 25, 36, 49, 64, 81]",
        "apply: 49",
        "apply_async: 64, ready: True, successful: True",
        "imap_unordered: [0, 1, 4, 9, 16]",
        "starmap: [8, 9]",
        "a task failed: division by zero",
    ]


@pytest.mark.parametrize("method", METHODS)
def test_pool_async(method):
    assert lines("pool_async", method) == [
        "callbacks got: [0, 10, 20, 30, 40]",
        "successful: False, error callback got: ZeroDivisionError('division by zero')",
        "map_async: [0, 10, 20, 30, 40, 50, 60, 70, 80, 90]",
        "starmap_async: [8, 9]",
        "imap: 0, 10, 20",
        "the iterable failed: no number 3",
        "still asleep after 0.2 s",
        "closed: Pool not running",
        "other processes worked: True",
    ]


@pytest.mark.parametrize("method", METHODS)
def test_pool_queue(method):
    said = "[(3, 1), (3, 2), (3, 3), (4, 1), (4, 2), (4, 3), (4, 4)]"
    assert lines("pool_queue", method) == [
        f"manager's: said {said}, sums [6, 10]",
        f"plain: said {said}, sums [6, 10]",
        "through a queue in a queue: 7",
    ]


@pytest.mark.parametrize("method", METHODS)
def test_manager_queue(method):
    assert lines("manager_queue", method) == ["managed: [1, 2, 3, 4, 5]", "plain: [-5, -4, -3, -2, -1]"]


def test_fork():
    parent, child, _, _, _, _ = pids = scan(
        [
            "before: process #, money 100",
            "child: process #, parent #, money 150",
            "parent: process #, child #, exit status 7, money 70",
            "parent: shared money #",
        ],
        lines("fork"),
    )
    assert pids == [parent, child, parent, parent, child, 150]


def test_orphan():
    found = lines("orphan")
    main, orphan = scan(
        [
            "main: process #",
            "main: the process in the middle has ended",
            "orphan: process #, has another parent: True",
        ],
        found,
    )
    assert main != orphan


def test_ignored_sigchld():
    child, waited, _ = scan(
        [
            "SIGCHLD as usual",
            "child # ended and is a zombie",
            "child # was waited for: exit code 0",
            "SIGCHLD ignored",
            "child # ended and is forgotten",
            "wait: there is no child process to wait for",
        ],
        lines("ignored_sigchld"),
    )
    assert child == waited


def test_every_program_has_a_test():
    programs = {path.stem for path in PROGRAMS.glob("*.py")}
    assert programs == {name.removeprefix("test_") for name in globals() if name.startswith("test_")} - {
        "every_program_has_a_test"
    }
