from collections.abc import Callable
from multiprocessing.process import BaseProcess

from ._procession import Job, WorkQueue

RUN: str
CLOSE: str
TERMINATE: str
BROKEN: str

class Supervisor:
    work: WorkQueue
    workers: list[BaseProcess]
    processes: int
    state: str
    failure: BaseException | None
    held: object
    wake: Callable[[], None]
    def __init__(
        self,
        work: WorkQueue,
        start: Callable[[tuple[int, int, bool] | None], BaseProcess],
        processes: int,
        daemon: bool,
    ) -> None: ...
    def start(self) -> None: ...
    def populate(self) -> None: ...
    def resize(self, processes: int) -> None: ...
    def expect_callbacks(self) -> None: ...
    def close(self) -> None: ...
    def terminate(self) -> None: ...
    def join(self) -> None: ...
    def limit(self, job: Job[object], timeout: float) -> None: ...
    def kill_if_running(
        self, pid: int, number: int, index: int | None = None, exception: BaseException | None = None
    ) -> bool: ...
    def broken(self) -> Exception: ...
