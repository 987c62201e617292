"""What a pool's worker process does."""

import signal
from functools import partial
from multiprocessing.pool import ExceptionWithTraceback, MaybeEncodingError

from ._pickler import original as ForkingPickler
from .process import _end_with_starter

# What `main` needs to end with the pool's process, as known by the thread that started this worker.
_starter = None


def bootstrap(mask, starter, process, *args, **kwargs):
    """Do what a process does once it has begun, with these signals blocked.

    Without a word about a Ctrl-C that comes before `main` is ready for it.
    """
    global _starter
    _starter = starter
    try:
        # Of a forkserver Ctrl-C has not been blocked before.
        signal.pthread_sigmask(signal.SIG_SETMASK, mask | {signal.SIGINT})
        return type(process)._bootstrap(process, *args, **kwargs)
    except KeyboardInterrupt:
        return 1


def main(work, initializer, initargs, most_tasks, most_memory, reports_exits, starter):
    """Do the tasks of `work` until there are no more, or this worker has done its share."""
    global _starter
    # Ctrl-C in a terminal interrupts all processes there. It is the pool's process that decides what it means; here it
    # ends the task that runs.
    signal.signal(signal.SIGINT, partial(_interrupt, work))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    starter, _starter = _starter or starter, None
    _end_with_starter(starter)
    if initializer is not None:
        try:
            initializer(*initargs)
        except BaseException as error:
            work.begun(_describe(error))
            raise
    work.begun()
    work.serve(most_tasks, most_memory, _describe, reports_exits)


def _interrupt(work, number, frame):
    if work.is_busy:
        raise KeyboardInterrupt


def _describe(error, value=None):
    """What is sent of an exception: with its traceback as text, and so that it can be read.

    `value` is what could not be sent because of it.
    """
    # Its class may have attributes looked up in its own way, and raise.
    traceback = BaseException.__getattribute__(error, "__traceback__")
    if value is not None:
        error = _unsendable(error, value)
    try:
        described = ExceptionWithTraceback(error, traceback)
        ForkingPickler.loads(ForkingPickler.dumps(described))
    except BaseException as problem:
        # An exception whose class takes other arguments than it keeps, for one.
        described = ExceptionWithTraceback(_unsendable(problem, error), traceback)
    return described


def _unsendable(problem, value):
    return MaybeEncodingError(_describable(problem), _describable(value))


def _describable(thing):
    try:
        repr(thing)
    except BaseException:
        return object.__repr__(thing)
    return thing
