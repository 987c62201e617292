"""``multiprocessing.dummy.connection`` under this package's name: the same module."""

import sys
from multiprocessing.dummy import connection

sys.modules[__name__] = connection
