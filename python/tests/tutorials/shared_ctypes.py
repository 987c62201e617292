"""A child changes values, arrays and structures in shared memory.

Prints:

    3.1415927
    [0, -1, -2, -3, -4]
    49
    0.0625
    b'HELLO WORLD'
    [(4.0, 0.25), (9.0, 1.0)]
    [0, 10, 20]
"""

from ctypes import Structure, c_double
from multiprocessing import Array, Lock, Process, RawArray, Value


class Point(Structure):
    _fields_ = [("x", c_double), ("y", c_double)]


def modify(num, arr, n, x, s, points, raw):
    num.value = 3.1415927
    for i in range(len(arr)):
        arr[i] = -arr[i]
    with n.get_lock():
        n.value **= 2
    x.value **= 2
    s.value = s.value.upper()
    for p in points:
        p.x **= 2
        p.y **= 2
    for i in range(len(raw)):
        raw[i] *= 10


if __name__ == "__main__":
    lock = Lock()
    num = Value("d", 0.0)
    arr = Array("i", range(5))
    n = Value("i", 7)
    x = Value(c_double, 0.25, lock=False)
    s = Array("c", b"hello world", lock=lock)
    points = Array(Point, [(2.0, 0.5), (3.0, -1.0)], lock=lock)
    raw = RawArray("h", range(3))
    p = Process(target=modify, args=(num, arr, n, x, s, points, raw))
    p.start()
    p.join()
    print(num.value)
    print(arr[:])
    print(n.value)
    print(x.value)
    print(s.value)
    print([(p.x, p.y) for p in points])
    print(list(raw))
