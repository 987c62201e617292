from multiprocessing.forkserver import *
from multiprocessing.forkserver import (
    MAXFDS_TO_SEND as MAXFDS_TO_SEND,
)
from multiprocessing.forkserver import (
    SIGNED_STRUCT as SIGNED_STRUCT,
)
from multiprocessing.forkserver import (
    ForkServer as ForkServer,
)
from multiprocessing.forkserver import __all__ as __all__
from multiprocessing.forkserver import (
    main as main,
)
from multiprocessing.forkserver import (
    read_signed as read_signed,
)
from multiprocessing.forkserver import (
    write_signed as write_signed,
)
