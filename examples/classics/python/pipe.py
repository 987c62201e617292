"""A duplex pipe: two processes, each with an end, talk both ways."""

import functools
import sys

import procession as multiprocessing

# Each line is written at once, so that those of several processes do not mix.
print = functools.partial(print, flush=True)


def measure(theirs, ours):
    """Answers each word with its length, until the other end is closed: by everybody, and so here too."""
    theirs.close()
    while True:
        try:
            word = ours.recv()
        except EOFError:
            print("child: the other end is closed")
            return
        print(f"child: received {word!r}")
        ours.send(len(word))


def main():
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.Process(target=measure, args=(ours, theirs))
    child.start()
    theirs.close()
    for word in ["to", "and", "fro again"]:
        ours.send(word)
        print(f"parent: {word!r} has {ours.recv()} letters")
    ours.close()
    child.join()


if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1] if sys.argv[1:] else None)
    main()
