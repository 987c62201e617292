"""A manager serves classes, generators and modules of the program.

Prints:

    7 56
    f True g
    _h False
    0 1 4 9
    68 ['clear', 'n']
"""

import operator
from multiprocessing.managers import BaseManager, BaseProxy, NamespaceProxy


class Maths:
    def add(self, x, y):
        return x + y

    def mul(self, x, y):
        return x * y


class Foo:
    def f(self):
        return "f"

    def g(self):
        return "g"

    def _h(self):
        return "_h"


class Counter:
    def __init__(self):
        self.n = 0

    def clear(self):
        self.n = 0


def squares():
    for i in range(4):
        yield i * i


def get_operator_module():
    return operator


class GeneratorProxy(BaseProxy):
    _exposed_ = ["__next__"]

    def __iter__(self):
        return self

    def __next__(self):
        return self._callmethod("__next__")


class MyManager(BaseManager):
    pass


MyManager.register("Maths", Maths)
MyManager.register("Foo1", Foo)
MyManager.register("Foo2", Foo, exposed=("g", "_h"))
MyManager.register("squares", squares, proxytype=GeneratorProxy)
MyManager.register("operator", get_operator_module)
MyManager.register("Counter", Counter, NamespaceProxy)

if __name__ == "__main__":
    with MyManager() as manager:
        maths = manager.Maths()
        print(maths.add(4, 3), maths.mul(7, 8))
        foo1, foo2 = manager.Foo1(), manager.Foo2()
        print(foo1.f(), not hasattr(foo1, "_h"), foo2.g())
        print(foo2._h(), hasattr(foo2, "f"))
        print(*manager.squares())
        counter = manager.Counter()
        counter.n = 3
        public = [name for name in dir(Counter()) if not name.startswith("_")]
        print(manager.operator().add(23, 45), public)
