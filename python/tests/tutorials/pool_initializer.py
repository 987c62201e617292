"""Workers of a pool begin with an initializer, are replaced after some tasks, and share a lock and a counter.

Prints:

    [0, 1, 4, 9, 16, 25]
    6
    closed
"""

import multiprocessing


def start_process(shared_lock, shared_counter):
    global lock, counter
    lock, counter = shared_lock, shared_counter


def work(n):
    with lock:
        counter.value += 1
    return n * n


if __name__ == "__main__":
    arguments = (multiprocessing.Lock(), multiprocessing.Value("i", 0))
    pool = multiprocessing.Pool(
        processes=2, initializer=start_process, initargs=arguments, maxtasksperchild=2
    )
    print(pool.map(work, range(6), chunksize=1))
    pool.close()
    pool.join()
    print(arguments[1].value)
    try:
        pool.map(work, [1])
    except ValueError:
        print("closed")
