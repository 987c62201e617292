"""An orphan on purpose, by a double fork: its parent ends at once, so that init (or the nearest subreaper) adopts it, and
nobody here has to wait for it."""

import functools
import os
import time

import procession as multiprocessing

# Each line is written at once, so that those of several processes do not mix.
print = functools.partial(print, flush=True)


def main():
    starter, news = os.getpid(), multiprocessing.Queue()
    print(f"main: process {starter}")
    child = os.fork()
    if child == 0:
        middle = os.getpid()
        if os.fork() == 0:
            while os.getppid() == middle:
                time.sleep(0.001)
            news.put(f"orphan: process {os.getpid()}, has another parent: {os.getppid() != starter}")
        os._exit(0)
    os.waitpid(child, 0)
    print("main: the process in the middle has ended")
    print(news.get(timeout=60))


if __name__ == "__main__":
    main()
