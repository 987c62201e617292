"""Requests and a handler, which ends when none has come for two seconds."""

import functools
import queue
import sys

import procession as multiprocessing

# Each line is written at once, so that those of several processes do not mix.
print = functools.partial(print, flush=True)


class Request:
    """An object of one's own may be a message, as long as it can be pickled."""

    def __init__(self, a, b):
        self.a, self.b = a, b

    def answer(self):
        return f"{self.a} + {self.b} = {self.a + self.b}"


def handle(requests):
    while True:
        try:
            request = requests.get(timeout=2)
        except queue.Empty:
            print("handler: no request for 2 s")
            return
        print(f"handler: {request.answer()}")


def main():
    requests = multiprocessing.Queue()
    handler = multiprocessing.Process(target=handle, args=(requests,))
    handler.start()
    for n in range(1, 4):
        print(f"main: request {n}")
        requests.put(Request(n, 10 * n))
    handler.join()
    print("main: the handler has ended")


if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1] if sys.argv[1:] else None)
    main()
