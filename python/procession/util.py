"""``multiprocessing.util`` under this package's name: the same module."""

import sys
from multiprocessing import util

sys.modules[__name__] = util
