"""multiprocessing.dummy and ThreadPool: the same interface, with threads.

Prints:

    [1, 4, 9]
    [1, 4, 9]
    hello from a thread
"""

import os
from multiprocessing import dummy
from multiprocessing.pool import ThreadPool


def square(n):
    return n * n, os.getpid()


def hello(q):
    q.put("hello from a thread")


if __name__ == "__main__":
    for pool in (ThreadPool(2), dummy.Pool(2)):
        with pool:
            found = pool.map(square, [1, 2, 3])
        assert {pid for _, pid in found} == {os.getpid()}
        print([square for square, _ in found])
    q = dummy.Queue()
    p = dummy.Process(target=hello, args=(q,))
    p.start()
    p.join()
    print(q.get())
