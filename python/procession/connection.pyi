from multiprocessing.connection import *
from multiprocessing.connection import (
    Connection as Connection,
    __all__ as __all__,
    answer_challenge as answer_challenge,
    deliver_challenge as deliver_challenge,
)
