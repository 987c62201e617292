"""A SimpleQueue carries results back, one for each process.

Prints:

    [0, 1, 8, 27, 64]
    True
"""

import multiprocessing as mp


def cube(n, results):
    results.put((n, n**3))


if __name__ == "__main__":
    results = mp.SimpleQueue()
    processes = [mp.Process(target=cube, args=(n, results)) for n in range(5)]
    [p.start() for p in processes]
    [p.join() for p in processes]
    print([value for _, value in sorted(results.get() for _ in processes)])
    print(results.empty())
    results.close()
