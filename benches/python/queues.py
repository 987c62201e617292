"""Queues of procession beside those of multiprocessing: ratios, with the contenders taking turns.

    python benches/python/queues.py [--rounds 5] [--only WORKLOAD ...] [--scale 1.0]

Each figure is the median of several rounds. A round runs every contender once on the same work, so that
what else the machine does meets all alike; a ratio is the median of those of the rounds, with the lowest and
the highest. Needs numpy for the workloads with arrays, and takes faster-fifo along where it is installed.
"""

import argparse
import dataclasses
import gc
import multiprocessing
import statistics
import time

import procession.queues

FORK = multiprocessing.get_context("fork")


@dataclasses.dataclass
class Record:
    number: int
    name: str
    weight: float
    tags: list


def mp_queue(maxsize=0):
    return FORK.Queue(maxsize)


def our_queue(maxsize=0):
    return procession.queues.Queue(maxsize)


def faster_fifo(maxsize=0):
    import faster_fifo

    if maxsize:
        return None
    return faster_fifo.Queue(max_size_bytes=64 << 20)


CONTENDERS = {"multiprocessing": mp_queue, "procession": our_queue}
try:
    import faster_fifo as _  # noqa: F401

    CONTENDERS["faster-fifo"] = faster_fifo
except ImportError:
    pass


def produce(queue, message, count, ready, go):
    ready.release()
    go.acquire()
    put = queue.put
    for _ in range(count):
        put(message)


def consume(queue, count, ready, go, done):
    ready.release()
    go.acquire()
    get = queue.get
    for _ in range(count):
        get()
    done.put(time.perf_counter())


def stream(make, message, count, producers=1, consumers=1, maxsize=0):
    """Messages a second from producers to consumers."""
    queue = make(maxsize)
    if queue is None:
        return None
    ready, go, done = FORK.Semaphore(0), FORK.Semaphore(0), FORK.SimpleQueue()
    workers = [
        FORK.Process(target=produce, args=(queue, message, count // producers, ready, go))
        for _ in range(producers)
    ]
    workers += [
        FORK.Process(target=consume, args=(queue, count // consumers, ready, go, done))
        for _ in range(consumers)
    ]
    for worker in workers:
        worker.start()
    for _ in workers:
        ready.acquire()
    start = time.perf_counter()
    for _ in workers:
        go.release()
    end = max(done.get() for _ in range(consumers))
    for worker in workers:
        worker.join()
    return count / (end - start)


def echo(there, back, count):
    for _ in range(count):
        back.put(there.get())


def ping_pong(make, count):
    """Round trips a second of a small int, through one queue each way: by the median, so that moments
    when something else has a processor do not count."""
    there, back = make(), make()
    worker = FORK.Process(target=echo, args=(there, back, count + 10))
    worker.start()
    for number in range(10):
        there.put(number)
        back.get()
    times = []
    for number in range(count):
        start = time.perf_counter()
        there.put(number)
        back.get()
        times.append(time.perf_counter() - start)
    worker.join()
    return 1 / statistics.median(times)


def produce_many(queue, batches, ready, go):
    ready.release()
    go.acquire()
    items = list(range(100))
    put = getattr(queue, "put_many", queue.put)
    for _ in range(batches):
        put(items)


def consume_many(queue, batches, ready, go, done):
    ready.release()
    go.acquire()
    if hasattr(queue, "get_many"):
        left = batches * 100
        while left:
            left -= len(queue.get_many(100))
    else:
        for _ in range(batches):
            queue.get()
    done.put(time.perf_counter())


def many(make, batches):
    """Ints a second, a hundred at a time: as a list where a queue has no put_many."""
    queue = make()
    ready, go, done = FORK.Semaphore(0), FORK.Semaphore(0), FORK.SimpleQueue()
    workers = [
        FORK.Process(target=produce_many, args=(queue, batches, ready, go)),
        FORK.Process(target=consume_many, args=(queue, batches, ready, go, done)),
    ]
    for worker in workers:
        worker.start()
    for _ in workers:
        ready.acquire()
    start = time.perf_counter()
    for _ in workers:
        go.release()
    end = done.get()
    for worker in workers:
        worker.join()
    return batches * 100 / (end - start)


def create(make, count):
    """Queues made a second."""
    start = time.perf_counter()
    for _ in range(count):
        make()
    return count / (time.perf_counter() - start)


def array():
    import numpy

    return numpy.ones(2 << 20)


FIELDS = {"id": 12345, "name": "a name", "weight": 1.5, "ready": True, "tag": "blue"}

# Name, the goal, messages for a contender that is fast and for one that is slow, and what is run.
WORKLOADS = [
    ("small int", 20, 400_000, lambda make, n: stream(make, 7, n)),
    ("bytes of 100 B", 15, 400_000, lambda make, n: stream(make, b"x" * 100, n)),
    ("dict of 5 fields", 8, 300_000, lambda make, n: stream(make, FIELDS, n)),
    ("dataclass", 3, 150_000, lambda make, n: stream(make, Record(1, "a name", 1.5, ["x", "y"]), n)),
    ("bytes of 1 KiB", 12, 300_000, lambda make, n: stream(make, b"x" * 1024, n)),
    ("bytes of 64 KiB", 30, 40_000, lambda make, n: stream(make, b"x" * 65536, n, maxsize=64)),
    ("bytes of 1 MiB", 50, 3_000, lambda make, n: stream(make, b"x" * (1 << 20), n, maxsize=64)),
    ("numpy 16 MiB", 25, 200, lambda make, n: stream(make, array(), n, maxsize=2)),
    ("2 to 2, dict", 5, 200_000, lambda make, n: stream(make, FIELDS, n, 2, 2)),
    ("ping-pong int", 40, 20_000, lambda make, n: ping_pong(make, n)),
    ("maxsize=1", 10, 30_000, lambda make, n: stream(make, 7, n, maxsize=1)),
    ("maxsize=1000", 15, 300_000, lambda make, n: stream(make, 7, n, maxsize=1000)),
    ("many ints", 1.5, 60_000, lambda make, n: many(make, n)),
    ("create", 5, 2_000, lambda make, n: create(make, n)),
]
# multiprocessing's share of the messages: it would take most of the time.
SHARE = {"multiprocessing": 0.1}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the numbers of messages")
    parser.add_argument("--only", nargs="*", help="workloads whose names contain one of these")
    options = parser.parse_args()
    names = "".join(f"{name:>18}" for name in CONTENDERS)
    print(f"{'workload':20}{names}{'ratio':>9}  {'range':15}{'goal':>5}")
    for name, goal, count, run in WORKLOADS:
        if options.only and not any(part in name for part in options.only):
            continue
        rates = {contender: [] for contender in CONTENDERS}
        for _ in range(options.rounds):
            for contender, make in CONTENDERS.items():
                gc.collect()
                messages = max(100, int(count * options.scale * SHARE.get(contender, 1.0))) // 4 * 4
                rate = run(make, messages)
                if rate is not None:
                    rates[contender].append(rate)
        medians = {contender: statistics.median(found) for contender, found in rates.items() if found}
        shown = "".join(f"{medians[c]:>16,.0f}/s" if c in medians else f"{'-':>18}" for c in CONTENDERS)
        pairs = zip(rates["procession"], rates["multiprocessing"], strict=True)
        ratios = sorted(ours / theirs for ours, theirs in pairs)
        spread = f"{ratios[0]:.1f}x - {ratios[-1]:.1f}x"
        print(f"{name:20}{shown}{statistics.median(ratios):>8.1f}x  {spread:15}{goal:>4}x", flush=True)


if __name__ == "__main__":
    main()
