from multiprocessing import reduction as reducer
from multiprocessing.util import SUBDEBUG as SUBDEBUG, SUBWARNING as SUBWARNING

from . import context
from ._errors import (
    PoolBroken as PoolBroken,
    PoolTerminated as PoolTerminated,
    TaskTimeoutError as TaskTimeoutError,
    WorkerDied as WorkerDied,
)
from .context import (
    AuthenticationError as AuthenticationError,
    BufferTooShort as BufferTooShort,
    Process as Process,
    ProcessError as ProcessError,
    TimeoutError as TimeoutError,
)
from .futures import ProcessPoolExecutor as ProcessPoolExecutor
from .process import (
    active_children as active_children,
    current_process as current_process,
    parent_process as parent_process,
)

# At runtime these are functions that make such queues. As classes they let a program say `Queue[int]`.
from .queues import (
    Abandoned as Abandoned,
    JoinableQueue as JoinableQueue,
    Queue as Queue,
    SimpleQueue as SimpleQueue,
)
from .synchronize import OwnerDied as OwnerDied, OwnerDiedWarning as OwnerDiedWarning

__all__ = [
    "Abandoned",
    "Array",
    "AuthenticationError",
    "Barrier",
    "BoundedSemaphore",
    "BufferTooShort",
    "Condition",
    "Event",
    "JoinableQueue",
    "Lock",
    "Manager",
    "OwnerDied",
    "OwnerDiedWarning",
    "Pipe",
    "Pool",
    "PoolBroken",
    "PoolTerminated",
    "Process",
    "ProcessError",
    "ProcessPoolExecutor",
    "Queue",
    "RLock",
    "RawArray",
    "RawValue",
    "Semaphore",
    "SimpleQueue",
    "TaskTimeoutError",
    "TimeoutError",
    "Value",
    "WorkerDied",
    "active_children",
    "allow_connection_pickling",
    "cpu_count",
    "current_process",
    "freeze_support",
    "get_all_start_methods",
    "get_context",
    "get_logger",
    "get_start_method",
    "install",
    "log_to_stderr",
    "parent_process",
    "reducer",
    "set_executable",
    "set_forkserver_preload",
    "set_start_method",
]

Array = context._default_context.Array
Barrier = context._default_context.Barrier
BoundedSemaphore = context._default_context.BoundedSemaphore
Condition = context._default_context.Condition
Event = context._default_context.Event
Lock = context._default_context.Lock
Manager = context._default_context.Manager
Pipe = context._default_context.Pipe
Pool = context._default_context.Pool
RLock = context._default_context.RLock
RawArray = context._default_context.RawArray
RawValue = context._default_context.RawValue
Semaphore = context._default_context.Semaphore
Value = context._default_context.Value
allow_connection_pickling = context._default_context.allow_connection_pickling
cpu_count = context._default_context.cpu_count
freeze_support = context._default_context.freeze_support
get_all_start_methods = context._default_context.get_all_start_methods
get_context = context._default_context.get_context
get_logger = context._default_context.get_logger
get_start_method = context._default_context.get_start_method
log_to_stderr = context._default_context.log_to_stderr
set_executable = context._default_context.set_executable
set_forkserver_preload = context._default_context.set_forkserver_preload
set_start_method = context._default_context.set_start_method

def install() -> None: ...
