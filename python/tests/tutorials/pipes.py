"""Each process writes to a pipe of one direction; wait() tells which can be read, until all are at their end.

Prints in any order:

    (0, 'a')
    (1, 'a')
    (2, 'a')
    (0, 'b')
    (1, 'b')
    (2, 'b')
    b'raw bytes' True
"""

from multiprocessing import Pipe, Process, current_process
from multiprocessing.connection import wait


def count(w):
    for i in range(3):
        w.send((i, current_process().name))
    w.close()


if __name__ == "__main__":
    readers = []
    for name in "ab":
        r, w = Pipe(duplex=False)
        readers.append(r)
        p = Process(target=count, args=(w,), name=name)
        p.start()
        w.close()
    while readers:
        for r in wait(readers):
            try:
                msg = r.recv()
            except EOFError:
                readers.remove(r)
            else:
                print(msg, flush=True)
    left, right = Pipe()
    left.send_bytes(b"raw bytes")
    print(right.recv_bytes(), not right.poll(0.01), flush=True)
