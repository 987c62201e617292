"""Bars on standard error that show how far a pool has come."""

import sys
import time
from multiprocessing.context import TimeoutError


class ShownIterator:
    """An iterator of a pool's results, with a bar. One that raises in its place is one of them."""

    def __init__(self, results, total):
        self._results = results
        self._bar = _bar(total)

    def __iter__(self):
        return self

    def next(self, timeout=None):
        """Return the next result, as `IMapIterator.next`."""
        try:
            result = self._results.next(timeout)
        except StopIteration:
            self._bar.close()
            raise
        except Exception as error:
            if timeout is None or type(error) is not TimeoutError:
                self._bar.update(1)
            raise
        self._bar.update(1)
        return result

    __next__ = next


def _bar(total):
    """A bar on standard error: tqdm's, where that is installed."""
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return _PlainBar(total)
    return tqdm(total=total)


class _PlainBar:
    def __init__(self, total):
        self._total = total
        self._done = 0
        self._shown = 0

    def update(self, more):
        self._done += more
        if time.monotonic() - self._shown > 0.1:
            self._show()

    def _show(self):
        self._shown = time.monotonic()
        total = "" if self._total is None else f" of {self._total}"
        print(f"\r{self._done}{total}", end="", file=sys.stderr, flush=True)

    def close(self):
        self._show()
        print(file=sys.stderr)


def shown(result):
    """The value of a map, with a bar meanwhile, of tasks."""
    succeeded, values = result._outcome()
    total = len(values) if succeeded else 0
    chunk = result._chunk or 1
    bar = _bar(total)
    seen = 0
    ended = False
    while not ended:
        ended = result._wait(0.1)
        done = min(result._progress[0] * chunk, total)
        bar.update(done - seen)
        seen = done
    bar.close()
    return result.get()
