"""A queue with room for three messages: what each way to put does when it is full, and each way to get when it is empty."""

import functools
import queue
import sys

import procession as multiprocessing

# Each line is written at once, so that those of several processes do not mix.
print = functools.partial(print, flush=True)

PATIENCE = 0.5


def main():
    numbers = multiprocessing.Queue(maxsize=3)
    for n in range(1, 4):
        numbers.put(n)
        print(f"put {n}: {numbers.qsize()} of 3 in the queue, full: {numbers.full()}")
    try:
        numbers.put(4, timeout=PATIENCE)  # put(4) would wait here until somebody gets.
    except queue.Full:
        print(f"put 4: still full after {PATIENCE} s")
    try:
        numbers.put_nowait(4)
    except queue.Full:
        print("put_nowait 4: full")
    for _ in range(3):
        n = numbers.get()
        print(f"get {n}: {numbers.qsize()} of 3 in the queue, empty: {numbers.empty()}")
    try:
        numbers.get(timeout=PATIENCE)
    except queue.Empty:
        print(f"get: still empty after {PATIENCE} s")
    try:
        numbers.get_nowait()
    except queue.Empty:
        print("get_nowait: empty")
    numbers.close()
    numbers.join_thread()
    try:
        numbers.put(5)
    except ValueError as error:
        print(f"put after close: {error}".split("<")[0].strip())


if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1] if sys.argv[1:] else None)
    main()
