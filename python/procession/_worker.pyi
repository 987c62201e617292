from collections.abc import Callable, Iterable
from multiprocessing.process import BaseProcess
from typing import Any

from ._procession import WorkQueue

def bootstrap(
    mask: set[int], starter: tuple[int, int, bool], process: BaseProcess, *args: Any, **kwargs: Any
) -> int: ...
def main(
    work: WorkQueue,
    initializer: Callable[..., object] | None,
    initargs: Iterable[Any],
    most_tasks: int | None,
    most_memory: int | None,
    reports_exits: bool,
    starter: tuple[int, int, bool],
) -> None: ...
