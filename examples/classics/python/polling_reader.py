"""A process writes to a queue now and then; another looks for messages and does something else meanwhile."""

import functools
import queue
import sys
import time

import procession as multiprocessing

# Each line is written at once, so that those of several processes do not mix.
print = functools.partial(print, flush=True)


def write(words):
    for word in ["alpha", "beta", "gamma", None]:
        if word is not None:
            print(f"writer: put {word}")
        words.put(word)
        time.sleep(0.2)


def read(words):
    messages = 0
    while True:
        try:
            word = words.get(block=False)
        except queue.Empty:
            time.sleep(0.02)  # something else
            continue
        if word is None:
            break
        print(f"reader: got {word}")
        messages += 1
    print(f"reader: {messages} messages")


def main():
    words = multiprocessing.Queue()
    writer = multiprocessing.Process(target=write, args=(words,))
    reader = multiprocessing.Process(target=read, args=(words,))
    writer.start()
    reader.start()
    writer.join()
    reader.join()


if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1] if sys.argv[1:] else None)
    main()
