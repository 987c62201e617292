"""``multiprocessing.heap`` under this package's name: the same module."""

import sys
from multiprocessing import heap

sys.modules[__name__] = heap
