"""A number that two processes change: each change happens under the number's lock, so that none is lost."""

import functools
import sys

import procession as multiprocessing

# Each line is written at once, so that those of several processes do not mix.
print = functools.partial(print, flush=True)

TIMES = 1000


def change(balance, amount):
    for _ in range(TIMES):
        with balance.get_lock():
            balance.value += amount
    print(f"{TIMES} times {amount:+}: done")


def main():
    balance = multiprocessing.Value("i", 500)
    print(f"before: {balance.value}")
    processes = [multiprocessing.Process(target=change, args=(balance, amount)) for amount in (3, -2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    print(f"after: {balance.value}")


if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1] if sys.argv[1:] else None)
    main()
