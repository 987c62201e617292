"""Tasks are functions with arguments; workers iterate until they get "STOP".

Prints in any order:

    mul(0, 7) = 0
    mul(1, 7) = 7
    mul(2, 7) = 14
    plus(3, 8) = 11
    plus(4, 8) = 12
    first batch done
"""

from multiprocessing import Process, Queue, freeze_support


def worker(tasks, done):
    for func, args in iter(tasks.get, "STOP"):
        done.put(f"{func.__name__}{args} = {func(*args)}")


def mul(a, b):
    return a * b


def plus(a, b):
    return a + b


def main():
    tasks, done = Queue(), Queue()
    for i in range(3):
        tasks.put((mul, (i, 7)))
    workers = [Process(target=worker, args=(tasks, done)) for _ in range(3)]
    for p in workers:
        p.start()
    for _ in range(3):
        print(done.get(), flush=True)
    print("first batch done", flush=True)
    for i in range(3, 5):
        tasks.put((plus, (i, 8)))
    for _ in range(2):
        print(done.get(), flush=True)
    for _ in workers:
        tasks.put("STOP")


if __name__ == "__main__":
    freeze_support()
    main()
