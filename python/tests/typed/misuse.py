"""Mistakes, each of which mypy has to report: in the line that says so, with these codes, and nowhere else.

It is not run.
"""

import procession
from procession.queues import JoinableQueue, Queue, SimpleQueue
from procession.sharedctypes import Synchronized

numbers: Queue[int] = Queue()
numbers.put("x")  # mypy: arg-type
numbers.put_nowait(None)  # mypy: arg-type
numbers.put_many(["x"])  # mypy: list-item
numbers.put(1, "soon")  # mypy: arg-type
numbers.put(1, timeout="1")  # mypy: arg-type
numbers.put(1, wait=True)  # mypy: call-arg
word: str = numbers.get()  # mypy: assignment
numbers.task_done()  # mypy: attr-defined
numbers.join()  # mypy: attr-defined
words: list[str] = numbers.get_many(3)  # mypy: assignment
for number in numbers:
    number.upper()  # mypy: attr-defined
Queue(codec="json")  # mypy: arg-type


async def asynchronous() -> None:
    await numbers.aput("x")  # mypy: arg-type
    received: str = await numbers.aget()  # mypy: assignment


tasks: JoinableQueue[tuple[int, str]] = procession.JoinableQueue()
tasks.put((1, 2))  # mypy: arg-type
JoinableQueue(maxsize="3")  # mypy: arg-type
JoinableQueue(redelivery=True)  # mypy: call-arg
SimpleQueue(3)  # mypy: call-arg, arg-type
simple: SimpleQueue[bytes] = SimpleQueue()
simple.put("text")  # mypy: arg-type
mixed: Queue[str] = numbers  # mypy: assignment

procession.Lock(robust="warn")  # mypy: arg-type
procession.Semaphore(1, robust="raise")  # mypy: arg-type
procession.Lock().acquire(blocking=True)  # mypy: call-arg
procession.Condition(procession.Event())  # mypy: arg-type
procession.Event().wait("1")  # mypy: arg-type
procession.Barrier()  # mypy: call-arg

counter: Synchronized[int] = procession.Value("i", 0)
counter.value = "x"  # mypy: assignment
ratio: Synchronized[int] = procession.Value("d", 0.0)  # mypy: assignment
procession.Array("i", 3)[0] = "x"  # mypy: call-overload
procession.Array("i", 3, True)  # mypy: call-overload
procession.Value("i", 0, lock="x")  # mypy: call-overload

manager = procession.Manager()
manager.Value("i", 0).value = "x"  # mypy: assignment
manager.Lock().acquire(block=True)  # mypy: call-arg
manager.Condition(procession.Event())  # mypy: arg-type

procession.get_context(3)  # mypy: call-overload
procession.Process(target=3)  # mypy: arg-type
procession.Pool("4")  # mypy: arg-type
procession.Pool(1).map(len, [1])  # mypy: arg-type
procession.install(True)  # mypy: call-arg
procession.Stack()  # mypy: attr-defined
