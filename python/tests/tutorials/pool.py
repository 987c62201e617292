"""A pool of workers: its ways to call, results later, and a patience that ends.

Prints:

    [0, 1, 4, 9, 16, 25, 36, 49, 64, 81]
    [0, 1, 4, 9, 16, 25, 36, 49, 64, 81]
    400
    True
    0 1 4
    We lacked patience and got a multiprocessing.TimeoutError
    [2, 12]
    For the moment, the pool remains available for more work
    Now the pool is closed and no longer available
"""

import os
import time
from multiprocessing import Pool, TimeoutError


def f(x):
    return x * x


if __name__ == "__main__":
    with Pool(processes=4) as pool:
        print(pool.map(f, range(10)))
        print(sorted(pool.imap_unordered(f, range(10))))
        res = pool.apply_async(f, (20,))
        print(res.get(timeout=60))
        multiple_results = [pool.apply_async(os.getpid, ()) for i in range(4)]
        print(os.getpid() not in [res.get(timeout=60) for res in multiple_results])
        it = pool.imap(f, range(10))
        print(next(it), next(it), it.next(timeout=60))
        res = pool.apply_async(time.sleep, (10,))
        try:
            print(res.get(timeout=0.1))
        except TimeoutError:
            print("We lacked patience and got a multiprocessing.TimeoutError")
        print(pool.starmap(int.__mul__, [(1, 2), (3, 4)]))
        print("For the moment, the pool remains available for more work")
    try:
        pool.apply(f, (1,))
    except ValueError:
        print("Now the pool is closed and no longer available")
