"""A bar shows how far a pool's work has come, and changes nothing else."""

import os
import re
import signal
import sys

import procession
import pytest
from procession._progress import shown


@pytest.fixture(params=["plain", "tqdm"])
def bar(request, monkeypatch):
    if request.param == "tqdm":
        pytest.importorskip("tqdm")
    else:
        monkeypatch.setitem(sys.modules, "tqdm.auto", None)


@pytest.fixture
def pool(context):
    with context.Pool(2) as pool:
        yield pool


def double(n):
    if n == 3:
        raise ValueError("three")
    if n == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * n


def last_shown(capfd):
    done, total = re.findall(r"(\d+)(?:/| of )(\d+)", capfd.readouterr().err)[-1]
    return int(done), int(total)


@pytest.mark.parametrize("name", ["imap", "imap_unordered"])
def test_results_that_raise_are_counted_and_end_nothing(bar, pool, name, capfd):
    results = getattr(pool, name)(double, range(20), progress=True)
    values, errors = [], []
    while True:
        try:
            values.append(next(results))
        except StopIteration:
            break
        except (ValueError, procession.WorkerDied) as error:
            errors.append(type(error))
    assert sorted(values) == [2 * n for n in range(20) if n not in (3, 5)]
    assert set(errors) == {ValueError, procession.WorkerDied}
    assert last_shown(capfd) == (20, 20)


def test_a_map_is_shown_to_its_end(bar, pool, capfd):
    assert pool.map(abs, range(-100, 0), progress=True) == list(range(100, 0, -1))
    assert last_shown(capfd) == (100, 100)
    assert pool.starmap(pow, [(2, 3), (3, 2)], chunksize=1, progress=True) == [8, 9]
    assert last_shown(capfd) == (2, 2)
    with pytest.raises(ValueError, match="three"):
        pool.map(double, [1, 2, 3], chunksize=1, progress=True)


def test_a_map_that_fails_just_when_it_is_first_looked_at(bar, pool):
    class Late:
        """A result that fails between one look and the next."""

        def __init__(self, result):
            self.result = result
            self.looks = 0

        def _outcome(self):
            self.looks += 1
            if self.looks > 1:
                self.result.wait()
            return (True, [None] * 3) if self.looks == 1 else self.result._outcome()

        def __getattr__(self, name):
            return getattr(self.result, name)

    with pytest.raises(ValueError, match="three"):
        shown(Late(pool.map_async(double, [1, 2, 3])))
