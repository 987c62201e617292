"""A pool of workers: a function over many inputs, results in order and as they come, and one that fails."""

import functools
import sys

import procession as multiprocessing

# Each line is written at once, so that those of several processes do not mix.
print = functools.partial(print, flush=True)


def square(n):
    return n * n


def invert(n):
    return 1 / n


def main():
    with multiprocessing.Pool(processes=2) as pool:
        print(f"map: {pool.map(square, range(10))}")
        print(f"apply: {pool.apply(square, (7,))}")
        result = pool.apply_async(square, (8,))
        print(
            f"apply_async: {result.get(timeout=60)}, ready: {result.ready()}, successful: {result.successful()}"
        )
        print(f"imap_unordered: {sorted(pool.imap_unordered(square, range(5)))}")
        print(f"starmap: {pool.starmap(pow, [(2, 3), (3, 2)])}")
        try:
            pool.map(invert, [2, 1, 0])
        except ZeroDivisionError as error:
            print(f"a task failed: {error}")


if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1] if sys.argv[1:] else None)
    main()
