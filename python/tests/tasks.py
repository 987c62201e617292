"""Functions that the tests' pools call."""

import os
import time


def square(x):
    return x * x


def product(x, y=1):
    return x * y


def fail(x):
    raise KeyError(x)


def fail_at_3(x):
    if x == 3:
        raise ValueError(f"not {x}")
    return x


def pid(_=None):
    return os.getpid()


def nap(seconds):
    time.sleep(seconds)
    return seconds


def call(function):
    return function()
