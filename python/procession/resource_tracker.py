"""``multiprocessing.resource_tracker`` under this package's name: the same module."""

import sys
from multiprocessing import resource_tracker

sys.modules[__name__] = resource_tracker
