"""Pools of procession beside those of others: ratios, with the contenders taking turns.

    python benches/python/pool.py [--rounds 5] [--only WORKLOAD ...] [--scale 1.0] [--workers 2]

Each figure is the median of several rounds. A round runs every contender once on the same work, so that what else the machine
does meets all alike; a ratio is the median of those of the rounds, with the lowest and the highest. `best peer` is the ratio to
whoever else has the best median. Takes billiard, loky and mpire along where they are installed; needs numpy for the arrays.
Workers are forked (loky's are not, which it does not offer), and have done a task before the time begins, but in `open, 2 items, close`.
"""

import argparse
import concurrent.futures
import contextlib
import gc
import importlib
import multiprocessing
import statistics
import time

import procession


def succ(n):
    return n + 1


def same(thing):
    return thing


class Pools:
    """`multiprocessing`'s pool, and what has its interface."""

    def __init__(self, name):
        self.context = importlib.import_module(name).get_context("fork")

    def open(self, workers):
        return self.context.Pool(workers)

    @staticmethod
    def map(pool, function, items, chunk):
        return pool.map(function, items, chunksize=chunk)

    @staticmethod
    def unordered(pool, function, items):
        return pool.imap_unordered(function, items)

    @staticmethod
    def submit(pool, function, item):
        return pool.apply_async(function, (item,)).get

    @staticmethod
    def close(pool):
        pool.close()
        pool.join()


class Executors:
    """`concurrent.futures`, and what has its interface."""

    def __init__(self, open):
        self.open = open

    @staticmethod
    def map(executor, function, items, chunk):
        return list(executor.map(function, items, chunksize=chunk))

    @staticmethod
    def unordered(executor, function, items):
        futures = [executor.submit(function, item) for item in items]
        return (future.result() for future in concurrent.futures.as_completed(futures))

    @staticmethod
    def submit(executor, function, item):
        return executor.submit(function, item).result

    @staticmethod
    def close(executor):
        executor.shutdown()


class Mpire:
    def __init__(self, module):
        self.module = module

    def open(self, workers):
        return self.module.WorkerPool(workers, start_method="fork", keep_alive=True)

    @staticmethod
    def map(pool, function, items, chunk):
        return pool.map(function, items, chunk_size=chunk, concatenate_numpy_output=False)

    @staticmethod
    def unordered(pool, function, items):
        return pool.imap_unordered(function, items, chunk_size=1)

    @staticmethod
    def submit(pool, function, item):
        return pool.apply_async(function, (item,)).get

    @staticmethod
    def close(pool):
        pool.stop_and_join()


def stdlib_executor(workers):
    context = multiprocessing.get_context("fork")
    return concurrent.futures.ProcessPoolExecutor(workers, mp_context=context)


def our_executor(workers):
    return procession.ProcessPoolExecutor(workers, mp_context=procession.get_context("fork"))


def contenders():
    found = {
        "mp.Pool": Pools("multiprocessing"),
        "Pool": Pools("procession"),
        "futures": Executors(stdlib_executor),
        "our futures": Executors(our_executor),
    }
    for name, make in [
        ("billiard", lambda module: Pools("billiard")),
        ("loky", lambda module: Executors(module.ProcessPoolExecutor)),
        ("mpire", Mpire),
    ]:
        with contextlib.suppress(ImportError):
            found[name] = make(importlib.import_module(name))
    return found


OURS = {"Pool", "our futures"}


@contextlib.contextmanager
def opened(contender, workers, use):
    """A pool whose workers have all done something: of the same kind, for mpire's do not go from one kind to another."""
    pool = contender.open(workers)
    try:
        use(pool, range(100 * workers))
        yield pool
    finally:
        contender.close(pool)


def items_a_second(contender, workers, count, run):
    with opened(contender, workers, run) as pool:
        start = time.perf_counter()
        if run(pool, range(count)) != count:
            raise AssertionError("results are missing")
        return count / (time.perf_counter() - start)


def mapped(contender, workers, count, chunk):
    def run(pool, items):
        return len(contender.map(pool, succ, items, chunk))

    return items_a_second(contender, workers, count, run)


def unordered(contender, workers, count):
    def run(pool, items):
        return sum(1 for _ in contender.unordered(pool, succ, items))

    return items_a_second(contender, workers, count, run)


def submitted(contender, workers, count):
    def run(pool, items):
        return len([get() for get in [contender.submit(pool, succ, item) for item in items]])

    return items_a_second(contender, workers, count, run)


def latency(contender, workers, count, pause, of=statistics.median):
    """Calls a second, one after the other, by the median time of one, or another: so moments when something else has a processor
    do not count."""
    times = []

    def run(pool, items):
        for n in items:
            if pause:
                time.sleep(pause)
            start = time.perf_counter()
            contender.submit(pool, succ, n)()
            times.append(time.perf_counter() - start)

    with opened(contender, workers, run) as pool:
        times.clear()
        run(pool, range(count))
    return 1 / of(times)


def p99(times):
    return statistics.quantiles(times, n=100)[98]


def opened_and_closed(contender, workers, count):
    start = time.perf_counter()
    for _ in range(count):
        pool = contender.open(workers)
        contender.map(pool, succ, [1, 2], 1)
        contender.close(pool)
    return count / (time.perf_counter() - start)


def arrays(contender, workers, count):
    import numpy

    things = [numpy.full(2 << 20, n, dtype=float) for n in range(8)]

    def run(pool, items):
        return contender.map(pool, same, list(items), 1)

    with opened(contender, workers, run) as pool:
        start = time.perf_counter()
        for _ in range(count):
            # Dropped before the next ones are made, as a program does that looks at one after the other.
            for n, thing in enumerate(contender.map(pool, same, things, 1)):
                if thing[-1] != n:
                    raise AssertionError("another array")
            del thing
        return count * len(things) / (time.perf_counter() - start)


# Name, the goal (times multiprocessing's), items, and what is run. Calls and items a second.
WORKLOADS = [
    # The chunks that multiprocessing makes by default.
    ("map", 1.1, 100_000, lambda c, w, n: mapped(c, w, n, -(-n // (4 * w)))),
    ("map, chunksize 1", 8, 100_000, lambda c, w, n: mapped(c, w, n, 1)),
    ("imap_unordered", 8, 30_000, unordered),
    ("submit, then collect", 6, 10_000, submitted),
    ("submit one, wait", 10, 3_000, lambda c, w, n: latency(c, w, n, 0)),
    ("same, p99", 10, 3_000, lambda c, w, n: latency(c, w, n, 0, p99)),
    ("same, asleep", 2, 200, lambda c, w, n: latency(c, w, n, 0.01)),
    ("open, 2 items, close", 1.5, 20, opened_and_closed),
    ("map, numpy 16 MiB", 15, 4, arrays),
]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the numbers of items")
    parser.add_argument("--only", nargs="*", help="workloads whose names contain one of these")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    all_contenders = contenders()
    names = "".join(f"{name:>13}" for name in all_contenders)
    print(f"{'a second':21}{names}{'ratio':>9}  {'range':17}{'goal':>5}{'best peer':>12}")
    for name, goal, count, run in WORKLOADS:
        if options.only and not any(part in name for part in options.only):
            continue
        rates = {contender: [] for contender in all_contenders}
        for _ in range(options.rounds):
            for contender, adapter in all_contenders.items():
                gc.collect()
                rates[contender].append(run(adapter, options.workers, max(2, int(count * options.scale))))
        medians = {contender: statistics.median(found) for contender, found in rates.items()}
        shown = "".join(f"{rate:>13,.0f}" for rate in medians.values())
        ratios = sorted(ours / theirs for ours, theirs in zip(rates["Pool"], rates["mp.Pool"], strict=True))
        spread = f"{ratios[0]:.1f}x - {ratios[-1]:.1f}x"
        peer = max((rate, contender) for contender, rate in medians.items() if contender not in OURS)
        print(
            f"{name:21}{shown}{statistics.median(ratios):>8.1f}x  {spread:17}{goal:>4}x"
            f"{medians['Pool'] / peer[0]:>8.1f}x {peer[1]}",
            flush=True,
        )


if __name__ == "__main__":
    main()
