"""``multiprocessing.reduction`` under this package's name: the same module."""

import sys
from multiprocessing import reduction

sys.modules[__name__] = reduction
