"""Queues in a pool's arguments: workers report as they go, on a manager's queue as the tutorials show it, and on a plain one."""

import functools
import sys

import procession as multiprocessing

# Each line is written at once, so that those of several processes do not mix.
print = functools.partial(print, flush=True)


def count(limit, reports):
    """Says each number as soon as it is known, and the sum in the end."""
    total = 0
    for n in range(1, limit + 1):
        total += n
        reports.put((limit, n))
    return total


def put_back(queue, n):
    # What comes out of a queue may be a queue.
    queue.get().put(n)


def main():
    with multiprocessing.Manager() as manager, multiprocessing.Pool(2) as pool:
        for kind, reports in [("manager's", manager.Queue()), ("plain", multiprocessing.Queue())]:
            sums = pool.starmap_async(count, [(3, reports), (4, reports)])
            said = [reports.get(timeout=60) for _ in range(7)]
            print(f"{kind}: said {sorted(said)}, sums {sums.get(timeout=60)}")

        outer, inner = multiprocessing.Queue(), multiprocessing.Queue()
        outer.put(inner)
        pool.apply(put_back, (outer, 7))
        print(f"through a queue in a queue: {inner.get(timeout=60)}")


if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1] if sys.argv[1:] else None)
    main()
