"""Starting a pool's workers and threads."""

import signal
import threading
from contextlib import contextmanager
from functools import partial
from multiprocessing import popen_fork, util

from . import _worker
from ._popen import Popen
from .process import _starter


class Start:
    """Makes workers and starts them."""

    def __init__(self, ctx, process, arguments, daemon):
        self._ctx = ctx
        self._process = process
        # One tuple for all: a template need not be sent what it has.
        self._args = (*arguments, _starter())
        self._daemon = daemon
        self._is_forked = False
        # What forks later workers, if they are forked.
        self.template = None
        # What servers and workers are to have that are started for the pool, whichever thread starts them.
        self._mask = _mask()

    def make(self):
        """Return a worker that is yet to be started."""
        worker = self._process(self._ctx, target=_worker.main, args=self._args)
        worker.name = worker.name.replace("Process", "PoolWorker")
        worker.daemon = self._daemon
        self._prototype = type(worker), dict(vars(worker))
        return worker

    def start(self, worker):
        """Start what `make` has returned, within `signals_blocked`."""
        if self.template is not None and not self.template.is_useless and self._start_from_template(worker):
            return
        worker._bootstrap = partial(_worker.bootstrap, self._mask, _starter(), worker)
        try:
            worker.start()
        finally:
            del worker._bootstrap
        self._is_forked = type(getattr(worker, "_popen", None)) in (Popen, popen_fork.Popen)

    def _start_from_template(self, worker):
        """Start a worker from any thread; False if that cannot be done."""
        from ._template import TemplateError, WorkerPopen

        worker._Popen = partial(WorkerPopen, self.template)
        try:
            worker.start()
        except TemplateError as error:
            util.debug(f"a pool's thread forks a worker itself: {error}")
            return False
        finally:
            del worker._Popen
        return True

    def open_template(self):
        """Fork the template of later workers, if workers are forked.

        Within `signals_blocked`, in a thread of the program, once a worker was started.
        """
        from ._procession import _can_fork_siblings

        if self._is_forked and _can_fork_siblings():
            from ._template import Template

            self.template = Template(*self._prototype, _starter(), self._mask)

    @contextmanager
    def signals_blocked(self):
        """Have no signal handler of the program raise at what can be neither undone nor gone on with.

        Workers that are started meanwhile get Ctrl-C only when they are ready for it.
        """
        before = _mask()
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
            self._ensure_servers()
            # Handlers run in the main thread. In another, a forkserver whose death comes only now is replaced by one that passes
            # on no signal as blocked.
            if self._is_of_a_forkserver() and threading.current_thread() is not threading.main_thread():
                yield
                return
            signal.pthread_sigmask(signal.SIG_BLOCK, _handled() | {signal.SIGINT})
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _ensure_servers(self):
        if self._ctx.get_start_method() != "fork":
            # Whoever starts it unblocks the signal afterwards.
            from multiprocessing.resource_tracker import ensure_running as ensure_tracker

            ensure_tracker()
        if self._is_of_a_forkserver():
            # It would pass a blocked signal on to all its children.
            from multiprocessing.forkserver import ensure_running

            ensure_running()

    def _is_of_a_forkserver(self):
        return self._ctx.get_start_method() == "forkserver"


def start_thread(name, target, *args):
    """Start a daemon, and return it.

    Signals are blocked meanwhile: if a handler of the program raised then, the thread might never begin, nor end.
    """
    before = _mask()
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, _handled())
        thread = threading.Thread(target=_run, args=(before, target, args), name=name, daemon=True)
        thread.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return thread


def _run(mask, target, args):
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    target(*args)


def _mask():
    """The signals that are blocked. To be asked for before others are: what does that may raise when it is done."""
    return signal.pthread_sigmask(signal.SIG_BLOCK, ())


def _handled():
    """The signals that the program has handlers for."""
    return {number for number in range(1, signal.NSIG) if callable(signal.getsignal(number))}
