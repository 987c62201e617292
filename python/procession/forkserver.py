"""``multiprocessing.forkserver`` under this package's name: the same module."""

import sys
from multiprocessing import forkserver

sys.modules[__name__] = forkserver
