"""A producer and a consumer share a queue with room for a few items, and wait for each other.

Prints in any order:

    Producer: done
    Consumer: got 0, 1, 4, 9, 16, 25
    Queue: empty True
"""

from multiprocessing import Process, Queue
from queue import Empty, Full
from time import sleep


def producer(queue):
    for i in range(6):
        while True:
            try:
                queue.put(i * i, timeout=0.05)
                break
            except Full:
                pass
    queue.put(None)
    print("Producer: done", flush=True)


def consumer(queue):
    items = []
    while True:
        try:
            item = queue.get(block=False)
        except Empty:
            sleep(0.01)
            continue
        if item is None:
            break
        items.append(str(item))
        sleep(0.02)
    print("Consumer: got", ", ".join(items), flush=True)


if __name__ == "__main__":
    queue = Queue(maxsize=2)
    consumer_process = Process(target=consumer, args=(queue,))
    consumer_process.start()
    producer_process = Process(target=producer, args=(queue,))
    producer_process.start()
    producer_process.join()
    consumer_process.join()
    print("Queue: empty", queue.empty(), flush=True)
