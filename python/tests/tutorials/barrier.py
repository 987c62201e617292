"""Processes meet at a barrier; one of them runs its action; a barrier that is aborted is broken for all.

Prints in any order:

    all are here
    places [0, 1, 2]
    all are here
    places [0, 1, 2]
    broken: True
    mended: True
"""

from multiprocessing import Barrier, Process, SimpleQueue
from threading import BrokenBarrierError


def announce():
    print("all are here", flush=True)


def work(barrier, places):
    for _ in range(2):
        places.put(barrier.wait())


def wait_too_long(barrier):
    try:
        barrier.wait(timeout=0.05)
    except BrokenBarrierError:
        print("broken:", barrier.broken, flush=True)


if __name__ == "__main__":
    barrier, places = Barrier(3, action=announce), SimpleQueue()
    processes = [Process(target=work, args=(barrier, places)) for _ in range(3)]
    for p in processes:
        p.start()
    for p in processes:
        p.join()
    found = sorted(places.get() for _ in range(6))
    for places_of_a_round in (found[::2], found[1::2]):
        print("places", places_of_a_round, flush=True)
    p = Process(target=wait_too_long, args=(barrier,))
    p.start()
    p.join()
    barrier.reset()
    print("mended:", not barrier.broken, flush=True)
