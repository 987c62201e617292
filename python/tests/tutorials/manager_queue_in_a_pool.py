"""The tutorials' way to give a queue to a pool's workers: a queue of a manager that no variable holds.

Prints in any order:

    got 0
    got 1
    got 4
    results [0, 1, 4]
"""

import multiprocessing


def square(q, n):
    q.put(f"got {n * n}")
    return n * n


if __name__ == "__main__":
    q = multiprocessing.Manager().Queue()
    pool = multiprocessing.Pool(processes=2)
    results = [pool.apply_async(square, (q, n)) for n in range(3)]
    print("results", [r.get() for r in results], flush=True)
    pool.close()
    pool.join()
    while not q.empty():
        print(q.get(), flush=True)
