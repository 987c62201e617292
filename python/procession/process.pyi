from multiprocessing import process as _stdlib
from multiprocessing.process import (
    active_children as active_children,
    current_process as current_process,
    parent_process as parent_process,
)

__all__ = ["BaseProcess", "active_children", "current_process", "parent_process"]

class BaseProcess(_stdlib.BaseProcess):
    def interrupt(self) -> None: ...
