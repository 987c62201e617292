"""Six processes and a room for three."""

import functools
import sys
import time

import procession as multiprocessing

# Each line is written at once, so that those of several processes do not mix.
print = functools.partial(print, flush=True)


def visit(number, room):
    with room:
        print(f"visitor {number} comes in")
        time.sleep(0.2)
        print(f"visitor {number} leaves")


def main():
    room = multiprocessing.BoundedSemaphore(3)
    print(f"{room.get_value()} seats are free")
    visitors = [multiprocessing.Process(target=visit, args=(number, room)) for number in range(1, 7)]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join()
    print(f"{room.get_value()} seats are free")
    try:
        room.release()
    except ValueError as error:
        print(f"one too many: {error}")


if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1] if sys.argv[1:] else None)
    main()
