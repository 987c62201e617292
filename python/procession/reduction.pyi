from multiprocessing.reduction import *
from multiprocessing.reduction import (
    HAVE_SEND_HANDLE as HAVE_SEND_HANDLE,
    AbstractReducer as AbstractReducer,
    __all__ as __all__,
)
