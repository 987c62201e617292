"""A block of shared memory is attached to by its name; a list of plain values lies in one.

Prints:

    b'howdy'
    22
    ['new', 1, -273.154, True, None]
    [0, 1, 2, 30]
    gone: True
"""

from multiprocessing import Process, shared_memory
from multiprocessing.managers import SharedMemoryManager


def attach(name):
    existing_shm = shared_memory.SharedMemory(name=name)
    existing_shm.buf[:5] = b"howdy"
    existing_shm.buf[5] = 22
    existing_shm.close()


def change(values):
    values[0] = "new"
    values.shm.close()


def last(values):
    values[-1] = 30


if __name__ == "__main__":
    shm = shared_memory.SharedMemory(create=True, size=10)
    p = Process(target=attach, args=(shm.name,))
    p.start()
    p.join()
    print(bytes(shm.buf[:5]))
    print(shm.buf[5])

    values = shared_memory.ShareableList(["howdy", 1, -273.154, True, None])
    p = Process(target=change, args=(values,))
    p.start()
    p.join()
    print(list(values))

    with SharedMemoryManager() as smm:
        numbers = smm.ShareableList(range(4))
        p = Process(target=last, args=(numbers,))
        p.start()
        p.join()
        print(list(numbers))

    values.shm.close()
    values.shm.unlink()
    shm.close()
    shm.unlink()
    try:
        shared_memory.SharedMemory(name=shm.name)
    except FileNotFoundError:
        print("gone:", True)
