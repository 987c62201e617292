"""An array that processes share: one changes elements, the other sees the changes."""

import functools
import sys

import procession as multiprocessing

# Each line is written at once, so that those of several processes do not mix.
print = functools.partial(print, flush=True)


def square(numbers):
    with numbers.get_lock():
        for index, number in enumerate(numbers):
            numbers[index] = number * number
        numbers[0] = -1


def main():
    numbers = multiprocessing.Array("i", [1, 2, 3, 4, 5])
    print(f"before: {list(numbers)}")
    process = multiprocessing.Process(target=square, args=(numbers,))
    process.start()
    process.join()
    print(f"after: {numbers[:]}")
    for index in range(len(numbers)):
        print(f"element {index} of {len(numbers)}: {numbers[index]}")
    numbers[-1] = 0
    print(f"the last one set: {numbers[4]}")
    name = multiprocessing.Array("c", b"a name")
    name.value = b"none"
    print(f"text: {name.value!r}, {len(name)} bytes")


if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1] if sys.argv[1:] else None)
    main()
