"""One process waits for an event, and one for an event no longer than a while.

Prints:

    wait_for_event: starting
    wait_for_event_timeout: event is set: False
    main: event is set
    wait_for_event: event is set: True
    main: cleared: True
"""

import multiprocessing


def wait_for_event(e, started):
    print("wait_for_event: starting", flush=True)
    started.set()
    e.wait()
    print("wait_for_event: event is set:", e.is_set(), flush=True)


def wait_for_event_timeout(e, t):
    e.wait(t)
    print("wait_for_event_timeout: event is set:", e.is_set(), flush=True)


if __name__ == "__main__":
    e, started = multiprocessing.Event(), multiprocessing.Event()
    w1 = multiprocessing.Process(name="block", target=wait_for_event, args=(e, started))
    w1.start()
    started.wait()
    w2 = multiprocessing.Process(name="nonblock", target=wait_for_event_timeout, args=(e, 0.1))
    w2.start()
    w2.join()
    print("main: event is set", flush=True)
    e.set()
    w1.join()
    e.clear()
    print("main: cleared:", not e.is_set(), flush=True)
