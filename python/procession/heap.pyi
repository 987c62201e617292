from multiprocessing.heap import *
from multiprocessing.heap import (
    Arena as Arena,
)
from multiprocessing.heap import (
    Heap as Heap,
)
from multiprocessing.heap import __all__ as __all__
from multiprocessing.heap import (
    rebuild_arena as rebuild_arena,
)
from multiprocessing.heap import (
    reduce_arena as reduce_arena,
)
