"""``multiprocessing.resource_sharer`` under this package's name: the same module."""

import sys
from multiprocessing import resource_sharer

sys.modules[__name__] = resource_sharer
