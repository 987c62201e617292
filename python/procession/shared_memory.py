"""``multiprocessing.shared_memory`` under this package's name: the same module."""

import sys
from multiprocessing import shared_memory

sys.modules[__name__] = shared_memory
