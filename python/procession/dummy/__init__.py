"""``multiprocessing.dummy`` under this package's name: the same module."""

import sys
from multiprocessing import dummy

sys.modules[__name__] = dummy
