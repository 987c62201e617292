"""``multiprocessing.connection`` under this package's name: the same module."""

import sys
from multiprocessing import connection

sys.modules[__name__] = connection
