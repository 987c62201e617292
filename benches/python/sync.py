"""Locks and shared values against multiprocessing's: the contenders take turns in many short rounds; medians, ratios.

Run it with a release build of the package installed.
"""

import argparse
import multiprocessing
import statistics
import time

import procession.sharedctypes
import procession.synchronize

CTX = multiprocessing.get_context("fork")


def acquire_release(lock, count):
    acquire, release = lock.acquire, lock.release
    for _ in range(count):
        acquire()
        release()


def with_lock(lock, count):
    for _ in range(count):
        with lock:
            pass


def increment(value, count):
    for _ in range(count):
        with value.get_lock():
            value.value += 1


def increment_with(value, count):
    for _ in range(count):
        with value:
            value.value += 1


def read(value, count):
    for _ in range(count):
        value.value


def alone(work, subject, count):
    start = time.perf_counter()
    work(subject, count)
    return (time.perf_counter() - start) / count


def run_beside(work, subject, count, barrier):
    barrier.wait()
    work(subject, count)
    barrier.wait()


def two_processes(work, subject, count):
    barrier = CTX.Barrier(3)
    workers = [CTX.Process(target=run_beside, args=(work, subject, count, barrier)) for _ in range(2)]
    for worker in workers:
        worker.start()
    barrier.wait()
    start = time.perf_counter()
    barrier.wait()
    took = time.perf_counter() - start
    for worker in workers:
        worker.join()
    return took / (2 * count)


def cases(ours):
    sync = procession.synchronize if ours else CTX
    arguments = {"ctx": CTX} if ours else {}
    value = procession.sharedctypes.Value if ours else CTX.Value
    for name in ("Lock", "RLock", "Semaphore"):
        make = getattr(sync, name)
        for work in (acquire_release, with_lock):
            yield f"{name}: {work.__name__}", work, make(**arguments)
    for code in "id":
        yield f"Value({code!r}): with get_lock(): value += 1", increment, value(code, 0)
        yield f"Value({code!r}): with v: value += 1", increment_with, value(code, 0)
        yield f"Value({code!r}): read", read, value(code, 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=51)
    parser.add_argument(
        "--count",
        type=int,
        default=5_000,
        help="operations in each round; eight times as many by two processes",
    )
    options = parser.parse_args()
    for label, run, count in (
        ("alone", alone, options.count),
        ("two processes", two_processes, 8 * options.count),
    ):
        print(f"{label:46}   mp ns  ours ns    ratio  half of the rounds")
        for (name, work, theirs), (_, _, ours) in zip(cases(False), cases(True), strict=True):
            times = [(run(work, theirs, count), run(work, ours, count)) for _ in range(options.rounds)]
            theirs_ns, ours_ns = (statistics.median(column) * 1e9 for column in zip(*times, strict=True))
            low, ratio, high = statistics.quantiles(a / b for a, b in times)
            print(
                f"{name:46} {theirs_ns:7.1f} {ours_ns:8.1f} {ratio:6.2f} x  {low:.2f} to {high:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
