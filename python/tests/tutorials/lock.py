"""A lock keeps lines of output whole, and a counter right.

Prints in any order:

    hello world 0
    hello world 1
    hello world 2
    hello world 3
    400
    the lock is free: True
    taken twice by its owner: True
"""

import sys
from multiprocessing import Lock, Process, RLock, Value


def say(lock, counter, i):
    lock.acquire()
    try:
        for part in ("hello ", "world ", str(i), "\n"):
            sys.stdout.write(part)
            sys.stdout.flush()
    finally:
        lock.release()
    for _ in range(100):
        with lock:
            counter.value += 1


if __name__ == "__main__":
    lock = Lock()
    counter = Value("i", 0, lock=False)
    processes = [Process(target=say, args=(lock, counter, i)) for i in range(4)]
    for p in processes:
        p.start()
    for p in processes:
        p.join()
    print(counter.value, flush=True)
    print("the lock is free:", lock.acquire(block=False), flush=True)
    rlock = RLock()
    with rlock, rlock:
        print("taken twice by its owner:", True, flush=True)
