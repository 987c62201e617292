"""The main process starts processes with a lock that only it holds, and ends without a join.

Prints in any order:

    hello 0
    hello 1
    hello 2
    hello 3
    hello 4
"""

from multiprocessing import Lock, Process


def say(lock, i):
    with lock:
        print("hello", i, flush=True)


if __name__ == "__main__":
    # Under spawn, CPython unlinks the lock when main ends, and children that start late fail.
    lock = Lock()
    for num in range(5):
        Process(target=say, args=(lock, num)).start()
