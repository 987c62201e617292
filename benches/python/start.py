"""Imports, and what it takes until a program has its first message, against multiprocessing's: medians of the rounds, ratios.

Run it with a release build of the package installed, and with bytecode written (without PYTHONDONTWRITEBYTECODE).
"""

import argparse
import multiprocessing
import statistics
import subprocess
import sys
import time

import procession.queues

THEIRS = multiprocessing.get_context("fork")
OURS = procession.get_context("fork")

# Making a queue imports synchronize in multiprocessing, too.
QUEUES = "import {0}, {0}.queues, {0}.synchronize"
TIMED = "import time; start = time.perf_counter(); {}; print(time.perf_counter() - start)"


def imported(statement):
    command = [sys.executable, "-c", TIMED.format(statement)]
    return float(subprocess.run(command, check=True, capture_output=True).stdout)


def created(make):
    count = 200
    start = time.perf_counter()
    for _ in range(count):
        make()
    return (time.perf_counter() - start) / count


def put_one(queue):
    queue.put(1)


def started(context):
    start = time.perf_counter()
    queue = context.Queue()
    process = context.Process(target=put_one, args=(queue,))
    process.start()
    queue.get()
    took = time.perf_counter() - start
    process.join()
    return took


CASES = [
    ("import the package", imported, QUEUES.format("multiprocessing"), "import procession"),
    ("import it with its queues", imported, QUEUES.format("multiprocessing"), QUEUES.format("procession")),
    ("create a queue", created, THEIRS.Queue, procession.queues.Queue),
    ("create, start a process, first message", started, THEIRS, OURS),
]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=31)
    options = parser.parse_args()
    print(f"{'':40}    mp us   ours us    ratio  half of the rounds")
    for name, run, theirs, ours in CASES:
        run(theirs), run(ours)
        times = [(run(theirs), run(ours)) for _ in range(options.rounds)]
        theirs_us, ours_us = (statistics.median(column) * 1e6 for column in zip(*times, strict=True))
        low, ratio, high = statistics.quantiles(a / b for a, b in times)
        print(
            f"{name:40} {theirs_us:8.1f} {ours_us:9.1f} {ratio:6.2f} x  {low:.2f} to {high:.2f}", flush=True
        )


if __name__ == "__main__":
    main()
