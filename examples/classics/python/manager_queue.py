"""A queue in a pool's arguments, made by a manager as the tutorials show it, and a plain one."""

import functools
import sys

import procession as multiprocessing

# Each line is written at once, so that those of several processes do not mix.
print = functools.partial(print, flush=True)


def report(managed, plain, n):
    managed.put(n)
    plain.put(-n)


def main():
    plain = multiprocessing.Queue()
    with multiprocessing.Manager() as manager, multiprocessing.Pool(2) as pool:
        managed = manager.Queue()
        results = [pool.apply_async(report, (managed, plain, n)) for n in range(1, 6)]
        for result in results:
            result.get(timeout=60)
        print(f"managed: {sorted(managed.get() for _ in results)}")
        print(f"plain: {sorted(plain.get() for _ in results)}")


if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1] if sys.argv[1:] else None)
    main()
