from collections.abc import Callable
from contextlib import AbstractContextManager
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from threading import Thread
from typing import Any

from ._template import Template

class Start:
    template: Template | None
    def __init__(
        self, ctx: BaseContext, process: Callable[..., BaseProcess], arguments: tuple[Any, ...], daemon: bool
    ) -> None: ...
    def make(self) -> BaseProcess: ...
    def start(self, worker: BaseProcess) -> None: ...
    def open_template(self) -> None: ...
    def signals_blocked(self) -> AbstractContextManager[None]: ...

def start_thread(name: str, target: Callable[..., object], *args: Any) -> Thread: ...
