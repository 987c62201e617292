from multiprocessing.reduction import *
from multiprocessing.reduction import HAVE_SEND_HANDLE as HAVE_SEND_HANDLE
from multiprocessing.reduction import AbstractReducer as AbstractReducer
from multiprocessing.reduction import __all__ as __all__
