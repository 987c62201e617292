"""A semaphore lets three of the processes in at a time; a manager's list says which.

Prints:

    never more than 3: True
    6 were active, [] are now
"""

import time
from multiprocessing import Lock, Manager, Process, Semaphore


class ActivePool:
    def __init__(self, manager):
        self.active = manager.list()
        self.seen = manager.list()
        self.lock = Lock()

    def make_active(self, name):
        with self.lock:
            self.active.append(name)
            self.seen.append(len(self.active))

    def make_inactive(self, name):
        with self.lock:
            self.active.remove(name)


def worker(s, pool, name):
    with s:
        pool.make_active(name)
        time.sleep(0.05)
        pool.make_inactive(name)


if __name__ == "__main__":
    with Manager() as manager:
        pool = ActivePool(manager)
        s = Semaphore(3)
        jobs = [Process(target=worker, name=str(i), args=(s, pool, str(i))) for i in range(6)]
        for j in jobs:
            j.start()
        for j in jobs:
            j.join()
        print("never more than 3:", max(pool.seen) <= 3)
        print(len(pool.seen), "were active,", pool.active, "are now")
