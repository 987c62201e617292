from multiprocessing.connection import *
from multiprocessing.connection import (
    Connection as Connection,
)
from multiprocessing.connection import __all__ as __all__
from multiprocessing.connection import (
    answer_challenge as answer_challenge,
)
from multiprocessing.connection import (
    deliver_challenge as deliver_challenge,
)
