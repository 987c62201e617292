"""``multiprocessing.popen_forkserver`` under this package's name: the same module."""

import sys
from multiprocessing import popen_forkserver

sys.modules[__name__] = popen_forkserver
