"""Private attributes of CPython's queues, pools and results that public programs read.

Those that have a meaning here give the right answer. The others raise AttributeError, which says
what to use instead. A subclass that uses one works as CPython's class: see `_private_parts`.
"""

import functools
import types


class Answer:
    """An attribute that is computed when it is asked for. An instance may have one of its own."""

    def __init__(self, answer):
        self._answer = answer

    def __get__(self, obj, cls=None):
        return self if obj is None else self._answer(obj)


def without(names, reason):
    """Attributes that an object does not have, by name; the reason says what to use instead."""

    def missing(name):
        def answer(obj):
            raise AttributeError(
                f"{type(obj).__name__!r} object of procession has no attribute {name!r}: {reason}"
            )

        return Answer(answer)

    return {name: missing(name) for name in names.split()}


class Count:
    """Stands where CPython has a semaphore that counts."""

    def __init__(self, value):
        self._value = value

    @property
    def _semlock(self):
        return self

    def get_value(self):
        """Return the count at this instant."""
        return self._value()

    _get_value = get_value

    def _is_zero(self):
        return self._value() == 0


class AllDone:
    """Stands where a `JoinableQueue` of CPython has the condition that all tasks are done."""

    def __init__(self, queue):
        self._queue = queue

    def __enter__(self):
        return True

    def __exit__(self, *exc_info):
        pass

    def wait(self, timeout=None):
        """Wait until all tasks are done, for `timeout` seconds at most; return whether they are."""
        return self._queue._join(timeout)

    def notify_all(self):
        """Do nothing: those that wait are told."""


class Done:
    """Stands where a result of CPython's pool has an event."""

    def __init__(self, result):
        self._result = result

    def is_set(self):
        """Return whether the result is there."""
        return self._result.ready()

    def wait(self, timeout=None):
        """Wait for the result, for `timeout` seconds at most; return whether it is there."""
        self._result.wait(timeout)
        return self._result.ready()


class Tasks:
    """Stands where CPython's pool has the queue of calls that no worker has begun."""

    def __init__(self, pool):
        self._pool = pool

    def qsize(self):
        """Return the number of tasks that wait for a worker."""
        return self._pool._work.waiting

    def empty(self):
        """Return whether no task waits for a worker."""
        return self.qsize() == 0

    def put(self, call):
        """Hand out the calls that CPython's methods of a pool generate for an iterator."""
        tasks, set_length = call
        results = getattr(set_length, "__self__", None)
        if hasattr(results, "_hand_out"):
            results._hand_out(call_task, (task[2:] for task in tasks))
        else:
            from ._spawn import start_thread

            start_thread("PoolFeeder", _feed, self._pool, tasks, set_length, results)


def _feed(pool, tasks, set_length, results):
    count = 0
    for _, index, function, args, kwds in tasks:
        pool.apply_async(
            function,
            args,
            kwds,
            functools.partial(_arrive, results, index, True),
            functools.partial(_arrive, results, index, False),
        )
        count += 1
    set_length(count)


def _arrive(results, index, succeeded, value):
    results._set(index, (succeeded, value))


def call_task(task):
    """Make a call that CPython's methods of a pool have generated."""
    function, args, kwds = task
    return function(*args, **kwds)


def unfinished(pool):
    """The jobs of a pool that are not done, by number."""
    if pool._work.is_mine:
        pool._work.collect_reports()
    return {job._job: job for job in sorted(pool._work.open_jobs(), key=lambda job: job._job)}


def value(job):
    """What a job has brought, so far if it is a map."""
    if not job.ready() and not hasattr(job, "_number_left"):
        raise AttributeError("the result has no attribute '_value' before it is ready: use get()")
    return job._outcome()[1]


def success(job):
    """Whether a job has ended well; a map, whether none of its calls has raised so far."""
    if not job.ready() and not hasattr(job, "_number_left"):
        raise AttributeError("the result has no attribute '_success' before it is ready: use successful()")
    return job._outcome()[0]


QUEUE = {
    "_maxsize": Answer(lambda queue: queue._bound or 2**31 - 1),
    "_sem": Answer(lambda queue: Count(lambda: max(queue._maxsize - queue.qsize(), 0))),
    "_buffer": Answer(lambda queue: ()),
    "_thread": Answer(lambda queue: None),
    "_jointhread": Answer(lambda queue: None),
    "_joincancelled": Answer(lambda queue: False),
    "_recv_bytes": Answer(lambda queue: queue._reader.recv_bytes),
    "_send_bytes": Answer(lambda queue: queue._writer.send_bytes),
    **without(
        "_notempty _rlock _wlock",
        "put stores at once, and no lock is held between calls; use get(timeout=...), _reader.poll() or"
        " describe()",
    ),
}
JOINABLE_QUEUE = {
    "_unfinished_tasks": Answer(lambda queue: Count(queue._unfinished)),
    "_cond": Answer(AllDone),
}
RESULT = {
    "_event": Answer(Done),
    "_value": Answer(value),
    "_success": Answer(success),
    "_callback": Answer(lambda job: (job._callbacks or (None, None))[0]),
    "_error_callback": Answer(lambda job: (job._callbacks or (None, None))[1]),
    "_cache": Answer(lambda job: {} if job._pool is None else job._pool._cache),
}
MAP_RESULT = {
    # To ask whether it is ready collects what has come back.
    "_number_left": Answer(lambda job: 0 if job.ready() else job._tasks_left),
    "_chunksize": Answer(lambda job: job._chunk),
}
POOL = {
    "_cache": Answer(unfinished),
    "_taskqueue": Answer(Tasks),
    **dict.fromkeys(
        ("_worker_handler", "_task_handler", "_result_handler"),
        Answer(lambda pool: pool._supervisor._thread),
    ),
    **without(
        "_inqueue _outqueue _quick_put _quick_get _change_notifier",
        "its tasks and results are in shared memory; use the methods of the pool, _taskqueue.qsize() or"
        " describe()",
    ),
}


def work_items(executor):
    """The calls of an executor that are not done, by number, each with its `future`."""
    pool = executor._pool
    if pool is None:
        return {}
    items = {}
    for number, job in unfinished(pool).items():
        callbacks = job._callbacks
        if callbacks is not None:
            items[number] = types.SimpleNamespace(future=callbacks[0].args[0])
    return items


EXECUTOR = {
    "_pending_work_items": Answer(work_items),
    "_shutdown_thread": Answer(lambda executor: executor._is_shut_down),
    "_shutdown_lock": Answer(lambda executor: executor._making),
    "_initializer": Answer(lambda executor: executor._arguments[0]),
    "_initargs": Answer(lambda executor: executor._arguments[1]),
    "_max_tasks_per_child": Answer(lambda executor: executor._arguments[2]),
    "_broken": Answer(
        lambda executor: executor._pool is not None and executor._pool._supervisor.state == "BROKEN"
    ),
    "_executor_manager_thread": Answer(
        lambda executor: None if executor._pool is None else executor._pool._supervisor._thread
    ),
    **without(
        "_work_ids _call_queue _result_queue _executor_manager_thread_wakeup _idle_worker_semaphore",
        "its calls are in shared memory; use _pending_work_items or the futures",
    ),
}
EVENT = {
    "_flag": Answer(lambda event: Count(lambda: int(event.is_set()))),
    **without("_cond", "use wait(), set(), clear() and is_set()"),
}
BARRIER = {
    "_count": Answer(lambda barrier: barrier.n_waiting),
    "_parties": Answer(lambda barrier: barrier.parties),
    "_state": Answer(lambda barrier: -2 if barrier.broken else 0),
    **without("_cond _wrapper _array _action _timeout", "use parties, n_waiting, broken and wait(timeout)"),
}


def add(cls, names):
    """Give a class these attributes. `dir` does not list them, for some raise AttributeError."""
    for name, answer in names.items():
        setattr(cls, name, answer)
    cls.__dir__ = _dir


def _dir(obj):
    names = {}
    for cls in reversed(type(obj).__mro__):
        names.update(vars(cls))
    names.update(vars(obj))
    return [name for name in object.__dir__(obj) if not isinstance(names.get(name), Answer)]
