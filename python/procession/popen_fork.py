"""``multiprocessing.popen_fork`` under this package's name: the same module."""

import sys
from multiprocessing import popen_fork

sys.modules[__name__] = popen_fork
