"""``multiprocessing.popen_spawn_posix`` under this package's name: the same module."""

import sys
from multiprocessing import popen_spawn_posix

sys.modules[__name__] = popen_spawn_posix
