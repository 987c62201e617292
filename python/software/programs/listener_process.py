"""The logging cookbook's pattern: workers log through a queue to one process that writes."""

import logging
import logging.handlers
import multiprocessing
import sys


def listen(queue, written):
    count = 0
    while (record := queue.get()) is not None:
        assert record.getMessage().startswith("message")
        count += 1
    written.put(count)


def work(queue, number):
    logger = logging.getLogger(f"worker-{number}")
    logger.addHandler(logging.handlers.QueueHandler(queue))
    logger.setLevel(logging.DEBUG)
    for n in range(100):
        logger.info("message %d of %d", n, number)


if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    queue, written = multiprocessing.Queue(-1), multiprocessing.SimpleQueue()
    listener = multiprocessing.Process(target=listen, args=(queue, written))
    listener.start()
    workers = [multiprocessing.Process(target=work, args=(queue, number)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    queue.put_nowait(None)
    listener.join()
    assert written.get() == 400
    print("as expected")
