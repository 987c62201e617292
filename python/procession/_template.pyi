from multiprocessing import popen_fork
from multiprocessing.process import BaseProcess
from typing import Any

from ._popen import Watched

class TemplateError(Exception): ...

class Template:
    is_useless: bool
    def __init__(
        self,
        cls: type[BaseProcess],
        attributes: dict[str, Any],
        starter: tuple[int, int, bool],
        mask: set[int],
    ) -> None: ...
    @property
    def pidfd(self) -> int: ...
    def kill(self) -> None: ...
    def end(self) -> None: ...
    def fork(self, process: BaseProcess) -> tuple[int, int]: ...

class WorkerPopen(Watched, popen_fork.Popen):
    def __init__(self, template: Template, process_obj: BaseProcess) -> None: ...
