"""Calls that a pool makes in the background: callbacks, an initializer, lazy results, and waiting no longer than one wants to."""

import functools
import os
import sys
import time

import procession as multiprocessing

# Each line is written at once, so that those of several processes do not mix.
print = functools.partial(print, flush=True)


def begin(factor):
    multiply.factor = factor


def multiply(n):
    return n * multiply.factor


def invert(n):
    return 1 / n


def numbers(limit):
    for n in range(limit):
        yield n
    raise RuntimeError(f"no number {limit}")


def main():
    with multiprocessing.Pool(2, initializer=begin, initargs=(10,), maxtasksperchild=2) as pool:
        collected = []
        results = [pool.apply_async(multiply, (n,), callback=collected.append) for n in range(5)]
        for result in results:
            result.wait()
        print(f"callbacks got: {sorted(collected)}")

        errors = []
        result = pool.apply_async(invert, (0,), error_callback=errors.append)
        result.wait()
        print(f"successful: {result.successful()}, error callback got: {errors[0]!r}")

        result = pool.map_async(multiply, range(10), chunksize=3)
        print(f"map_async: {result.get(timeout=60)}")
        print(f"starmap_async: {pool.starmap_async(pow, [(2, 3), (3, 2)]).get(timeout=60)}")

        lazy = pool.imap(multiply, numbers(3))
        print(f"imap: {next(lazy)}, {next(lazy)}, {lazy.next(timeout=60)}")
        try:
            next(lazy)
        except RuntimeError as error:
            print(f"the iterable failed: {error}")

        try:
            pool.apply_async(time.sleep, (60,)).get(timeout=0.2)
        except multiprocessing.TimeoutError:
            print("still asleep after 0.2 s")

    pool = multiprocessing.Pool(2)
    pids = set(pool.starmap(os.getpid, [()] * 20))
    pool.close()
    try:
        pool.apply(abs, (1,))
    except ValueError as error:
        print(f"closed: {error}")
    pool.join()
    print(f"other processes worked: {os.getpid() not in pids}")


if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1] if sys.argv[1:] else None)
    main()
