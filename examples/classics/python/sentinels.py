"""One producer and three consumers. After the last message the producer puts a sentinel for each consumer: the sign that
nothing more comes."""

import functools
import sys

import procession as multiprocessing

# Each line is written at once, so that those of several processes do not mix.
print = functools.partial(print, flush=True)

CONSUMERS = 3


def produce(numbers):
    for n in range(1, 10):
        numbers.put(n)
    for _ in range(CONSUMERS):
        numbers.put(None)


def consume(number, numbers, sums):
    total = 0
    while (n := numbers.get()) is not None:
        print(f"consumer {number}: got {n}")
        total += n
    print(f"consumer {number}: got the sentinel")
    sums.put(total)


def main():
    numbers, sums = multiprocessing.Queue(), multiprocessing.SimpleQueue()
    consumers = [
        multiprocessing.Process(target=consume, args=(number, numbers, sums))
        for number in range(1, CONSUMERS + 1)
    ]
    producer = multiprocessing.Process(target=produce, args=(numbers,))
    for process in [*consumers, producer]:
        process.start()
    # Joined before anything is taken out: with a pipe behind the queue this could wait for ever.
    for process in [producer, *consumers]:
        process.join()
    total = sum(sums.get() for _ in consumers)
    print(f"main: all consumers together: {total}; left in the queue: {numbers.qsize()}")


if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1] if sys.argv[1:] else None)
    main()
