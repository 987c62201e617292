"""A manager holds what processes share: dictionaries, lists in lists, a namespace, and all kinds of locks.

Prints:

    {1: '1', '2': 2, 0.25: None, 'count': 3}
    [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]
    Namespace(status='done', x=10)
    [{'a': 1}, {'b': [2]}]
    6 array('i', [1, 2, 9]) True 5
"""

from multiprocessing import Manager, Process


def change(d, numbers, ns, nested):
    d[1] = "1"
    d["2"] = 2
    d[0.25] = None
    numbers.reverse()
    ns.status = "done"
    nested[0]["a"] = 1
    nested[1]["b"] = [2]


def count(d, lock, value, array, event, queue, barrier):
    barrier.wait()
    with lock:
        d["count"] = d.get("count", 0) + 1
        value.value += 2
    array[2] = 9
    event.set()
    queue.put(5)


if __name__ == "__main__":
    with Manager() as manager:
        d = manager.dict()
        numbers = manager.list(range(10))
        ns = manager.Namespace(x=10)
        nested = manager.list([manager.dict(), manager.dict()])
        p = Process(target=change, args=(d, numbers, ns, nested))
        p.start()
        p.join()

        lock, event, queue, barrier = manager.Lock(), manager.Event(), manager.Queue(), manager.Barrier(3)
        value, array = manager.Value("i", 0), manager.Array("i", [1, 2, 3])
        jobs = [Process(target=count, args=(d, lock, value, array, event, queue, barrier)) for _ in range(3)]
        for j in jobs:
            j.start()
        for j in jobs:
            j.join()

        print(d)
        print(numbers)
        print(ns)
        print([dict(each) for each in nested])
        print(value.value, array, event.is_set(), queue.get())
