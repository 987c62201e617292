"""Two consumers for as long as there are tasks: the producer waits until all tasks are done, and the consumers, which are
daemons, end with it."""

import functools
import sys
import time

import procession as multiprocessing

# Each line is written at once, so that those of several processes do not mix.
print = functools.partial(print, flush=True)


def consume(name, tasks):
    while True:
        task = tasks.get()
        time.sleep(0.05)  # work
        print(f"{name}: task {task} is done")
        tasks.task_done()


def main():
    tasks = multiprocessing.JoinableQueue()
    for name in ["consumer 1", "consumer 2"]:
        multiprocessing.Process(target=consume, args=(name, tasks), daemon=True).start()
    for n in range(1, 7):
        tasks.put(n)
    print("main: 6 tasks put")
    tasks.join()
    print("main: all tasks are done")
    try:
        tasks.task_done()
    except ValueError as error:
        print(f"main: {error}")


if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1] if sys.argv[1:] else None)
    main()
