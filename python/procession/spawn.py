"""``multiprocessing.spawn`` under this package's name: the same module."""

import sys
from multiprocessing import spawn

sys.modules[__name__] = spawn
