"""The managers: who starts a manager's process or connects to it, and asks for objects there."""

import resource
import signal
import sys
from array import array
from contextlib import closing, contextmanager
from multiprocessing import connection, managers as _stdlib, resource_tracker, util
from multiprocessing.context import ProcessError
from multiprocessing.managers import State, convert_to_error, dispatch

from .. import pool, shared_memory
from ..context import _default_context
from ..process import _end_with_starter, _starter
from . import _connection, _proxy_types, _sessions
from ._errors import ManagerDied, Raised
from ._object_table import SharedEntry
from ._proxy import AutoProxy, class_of_ours
from ._server import Server, SharedMemoryServer
from ._shared_objects import (
    ManagedBarrier,
    ManagedBoundedSemaphore,
    ManagedCondition,
    ManagedEvent,
    ManagedLock,
    ManagedQueue,
    ManagedRLock,
    ManagedSemaphore,
    open_shared,
)
from ._token import Token, token_with
from ._values import ManagedArray, ManagedValue

_THEIRS = _stdlib.BaseManager
# How often a manager's process that starts is looked at.
_LOOK_SECONDS = 0.05


class BaseManager(_stdlib.BaseManager):
    """A manager of objects of registered types in a process of its own.

    `start` starts that process, which ends with this one however that ends; `connect` connects to one that runs
    already, at `address` with `authkey`. `get_server` returns a server to be run in this process.
    """

    _registry = {}
    _Server = Server

    def __init__(self, address=None, authkey=None, serializer="pickle", ctx=None, *, shutdown_timeout=1.0):
        ctx = ctx or _default_context.get_context()
        _THEIRS.__init__(self, address, authkey, serializer, ctx, shutdown_timeout=shutdown_timeout)

    def _check_initial(self):
        if self._state.value == State.STARTED:
            raise ProcessError("Already started server")
        if self._state.value == State.SHUTDOWN:
            raise ProcessError("Manager has shut down")

    def get_server(self):
        """Return the server, to be run in this process by its `serve_forever`."""
        self._check_initial()
        return self._Server(self._registry, self._address, self._authkey, self._serializer)

    def connect(self):
        """Connect to the server at the address. OSError if there is none."""
        _sessions.discard_ended(self._address)
        with closing(_connection.connect(self._address, self._authkey, self._serializer)) as made:
            dispatch(made, None, "dummy")
        _sessions.remember_key(self._address, self._authkey)
        self._state.value = State.STARTED

    def start(self, initializer=None, initargs=()):
        """Start the manager's process, in which `initializer(*initargs)` is called first.

        What that raises, or the server when it cannot use the address, is raised here.
        """
        self._check_initial()
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        reader, writer = connection.Pipe(duplex=False)
        self._process = self._ctx.Process(
            target=type(self)._run_server,
            args=(
                *(self._registry, self._address, self._authkey, self._serializer, writer),
                *(_initialize, (_starter(), initializer, initargs)),
            ),
        )
        identity = ":".join(str(number) for number in self._process._identity)
        self._process.name = f"{type(self).__name__}-{identity}"
        try:
            with reader:
                with writer, _without_interrupts(self._ctx.get_start_method()):
                    self._process.start()
                # Another child of this process may have the pipe's other end too, and the sentinel's.
                while not connection.wait([reader, self._process.sentinel], _LOOK_SECONDS):
                    if not self._process.is_alive():
                        break
                if not reader.poll():
                    raise EOFError
                address = reader.recv()
            if isinstance(address, Exception):
                raise address
            self._address = address
            _sessions.discard_ended(address)
            _sessions.remember_key(address, self._authkey)
            self.shutdown = util.Finalize(
                self,
                type(self)._finalize_manager,
                args=(
                    *(self._process, self._address, self._authkey, self._state),
                    *(self._Client, self._shutdown_timeout, self._serializer),
                ),
                exitpriority=0,
            )
            self._state.value = State.STARTED
        except BaseException as error:
            pid = self._process.pid
            if pid is not None:
                self._process.kill()
                self._process.join()
            if isinstance(error, EOFError):
                raise ManagerDied(self._address, pid, "its start") from error
            raise

    @classmethod
    def _run_server(cls, registry, address, authkey, serializer, writer, initializer=None, initargs=()):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        with writer:
            try:
                if initializer is not None:
                    initializer(*initargs)
                server = cls._Server(registry, address, authkey, serializer)
            except Exception as error:
                writer.send(Raised(error))
                sys.exit(1)
            writer.send(server.address)
        util.info("manager serving at %r", server.address)
        server.serve_forever()

    @staticmethod
    def _finalize_manager(process, address, authkey, state, _Client, shutdown_timeout, serializer="pickle"):
        """Have the manager's process end: ask it, then SIGTERM, then SIGKILL."""
        if process.is_alive():
            try:
                # A stopped one does not answer.
                with closing(_connection.connect(address, authkey, serializer, shutdown_timeout)) as made:
                    dispatch(made, None, "shutdown")
            except Exception as error:
                util.info("manager was not asked to shut down: %r", error)
            process.join(timeout=shutdown_timeout)
            if process.is_alive():
                process.terminate()
                process.join(timeout=shutdown_timeout)
            if process.is_alive():
                process.kill()
                process.join()
        state.value = State.SHUTDOWN
        _sessions.forget(address)

    def _ask(self, method, /, *args, **kwds):
        """Call a method of the server, which raises `RemoteError` here."""
        assert self._state.value == State.STARTED, "server not yet started"
        session = _sessions.session(self._address, self._authkey, self._serializer, anew=True)
        if session.nonce is None:
            with closing(self._Client(self._address, authkey=self._authkey)) as made:
                return dispatch(made, None, method, args, kwds)
        session.synchronize()
        kind, result = session.call(None, method, args, kwds)
        if kind != "#RETURN":
            raise convert_to_error(kind, result)
        return result

    def _create(self, typeid, /, *args, **kwds):
        """Make an object; return its token and the methods that it exposes."""
        session = self._state.value == State.STARTED and _sessions.session(
            self._address, self._authkey, self._serializer, anew=True
        )
        if session and session.nonce is None:
            ident, exposed = self._ask("create", typeid, *args, **kwds)
            return Token(typeid, self._address, ident), exposed
        ident, exposed, ticket = self._ask("make", typeid, *args, **kwds)
        return token_with(ticket, typeid, self._address, ident), exposed

    def _make(self, typeid, proxytype, args, kwds):
        token, exposed = self._create(typeid, *args, **kwds)
        proxy = class_of_ours(proxytype)(
            token, self._serializer, manager=self, authkey=self._authkey, exposed=exposed
        )
        if getattr(token, "_ticket", None) is None:
            # CPython's server has counted one for its own.
            with closing(self._Client(token.address, authkey=self._authkey)) as made:
                dispatch(made, None, "decref", (token.id,))
        return proxy

    def _debug_info(self):
        return self._ask("debug_info")

    def _number_of_objects(self):
        return self._ask("number_of_objects")

    @classmethod
    def register(
        cls,
        typeid,
        callable=None,
        proxytype=None,
        exposed=None,
        method_to_typeid=None,
        create_method=True,
    ):
        """Register a type: `typeid` becomes a method that makes an object and returns a proxy of it.

        `callable` makes the object, in the manager's process; `proxytype` is the class of the proxy, by default
        with all public methods, or those `exposed`. `method_to_typeid` has the methods that return a proxy of
        what they return, and the types of these.
        """
        proxytype = proxytype or AutoProxy
        super().register(typeid, callable, proxytype, exposed, method_to_typeid, create_method=False)
        if create_method:

            def make(self, /, *args, **kwds):
                return self._make(typeid, proxytype, args, kwds)

            make.__name__ = typeid
            make.__doc__ = (
                f"Make an object of type {typeid!r} in the manager's process; return a proxy of it."
            )
            setattr(cls, typeid, make)


@contextmanager
def _without_interrupts(method):
    """Keep Ctrl-C from a process that is started now, until it says that it ignores it."""
    if method == "forkserver":
        # It is that server's child. The server would keep what is blocked, for all its children.
        yield
        return
    if method == "spawn":
        # A start that finds no tracker starts one, and unblocks the signal after that.
        resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _initialize(starter, initializer, initargs):
    _end_with_starter(starter)
    # A descriptor or two for each queue, and for each thread that uses an object.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if initializer is not None:
        initializer(*initargs)


_SHARED_TYPES = {
    "Queue": ManagedQueue,
    "JoinableQueue": ManagedQueue,
    "Lock": ManagedLock,
    "RLock": ManagedRLock,
    "Semaphore": ManagedSemaphore,
    "BoundedSemaphore": ManagedBoundedSemaphore,
    "Condition": ManagedCondition,
    "Event": ManagedEvent,
    "Barrier": ManagedBarrier,
    "Value": ManagedValue,
    "Array": ManagedArray,
}


class _SyncServer(Server):
    """A manager's server that makes objects in shared memory too."""

    public = [*Server.public, "make_shared"]

    def make_shared(self, c, typeid, /, *args, **kwds):
        """Make an object; return its ident, a ticket and what opens its memory."""
        shared = _SHARED_TYPES[typeid](*args, **kwds)
        state = shared._shared_state()
        with self.mutex:
            self._idents += 1
            ident = f"{self.nonce}{self._idents:x}"
            shared._token = Token(typeid, self.address, ident)
            entry = self._entries[ident] = SharedEntry(ident, typeid, shared)
            return ident, self.issue(entry), state


class SyncManager(BaseManager, _stdlib.SyncManager):
    """A manager of queues, locks, values, dictionaries, lists, sets and namespaces.

    `Manager()` makes one and starts it. A queue, lock, value, … of a manager is usable in every process that
    has got it, in a pool's tasks too, and is there as long as any process has it or has been sent it.
    """

    _Server = _SyncServer

    def _make_shared(self, typeid, /, *args, **kwds):
        if self._serializer != "pickle":
            # Nothing but a proxy gets through XML.
            return self._make(typeid, self._registry[typeid][-1], args, kwds)
        ident, ticket, state = self._ask("make_shared", typeid, *args, **kwds)
        token = token_with(ticket, typeid, self._address, ident)
        return open_shared(
            *(token, self._serializer),
            cls=_SHARED_TYPES[typeid],
            state=state,
            manager=self,
            authkey=self._authkey,
        )

    def Queue(self, maxsize=0):
        """Return a queue with the methods of `queue.Queue`; `maxsize` above 0 is a bound."""
        return self._make_shared("Queue", maxsize)

    def JoinableQueue(self, maxsize=0):
        """Return a queue with the methods of `queue.Queue`; `maxsize` above 0 is a bound."""
        return self._make_shared("JoinableQueue", maxsize)

    def Lock(self):
        """Return a lock."""
        return self._make_shared("Lock")

    def RLock(self):
        """Return a lock that its owner may take again."""
        return self._make_shared("RLock")

    def Semaphore(self, value=1):
        """Return a semaphore of `value` permits."""
        return self._make_shared("Semaphore", value)

    def BoundedSemaphore(self, value=1):
        """Return a semaphore that never has more permits than the `value` it started with."""
        return self._make_shared("BoundedSemaphore", value)

    def Condition(self, lock=None):
        """Return a condition variable over `lock`, a manager's; by default over an `RLock` of its own."""
        return self._make_shared("Condition", lock)

    def Event(self):
        """Return an event, which is not set."""
        return self._make_shared("Event")

    def Barrier(self, parties, action=None, timeout=None):
        """Return a barrier for `parties` processes or threads."""
        return self._make_shared("Barrier", parties, action, timeout)

    def Value(self, typecode, value, lock=True):
        """Return an object with an attribute `value`.

        It holds any object that can be pickled, whatever the typecode is. If `value` is None, a
        truth value, a number, or a text or bytes of up to some 120 bytes, it is in shared memory
        while it is such a value.
        """
        if ManagedValue.can_hold(value):
            return self._make_shared("Value", typecode, value)
        return self._make("Value", _proxy_types.ValueProxy, (typecode, value, lock), {})

    def Array(self, typecode, sequence, lock=True):
        """Return an array. It is in shared memory if the typecode is that of numbers."""
        if ManagedArray.can_hold(typecode):
            return self._make_shared("Array", typecode, array(typecode, sequence))
        return self._make("Array", _proxy_types.ArrayProxy, (typecode, sequence, lock), {})


for _typeid, (_callable, _exposed, _methods, _proxytype) in _stdlib.SyncManager._registry.items():
    _ours = _proxy_types.PROXIES.get(getattr(_proxytype, "__name__", None), AutoProxy)
    SyncManager.register(
        _typeid,
        _callable,
        _ours,
        create_method=_typeid not in vars(SyncManager) and hasattr(_stdlib.SyncManager, _typeid),
    )
SyncManager.register("Pool", pool.Pool, _proxy_types.PoolProxy)
SyncManager.Pool.__doc__ = "Return a proxy of a pool of worker processes that the manager's process starts."
SyncManager.register("set", set, _proxy_types.SetProxy)
SyncManager.set.__doc__ = "Return a proxy of a set in the manager's process, of what the iterable yields."
SyncManager.list.__doc__ = "Return a proxy of a list in the manager's process, of what the iterable yields."
SyncManager.dict.__doc__ = (
    "Return a proxy of a dictionary in the manager's process, made as `dict` makes one."
)
SyncManager.Namespace.__doc__ = (
    "Return a proxy of an object in the manager's process that has any attributes."
)


class SharedMemoryManager(BaseManager, _stdlib.SharedMemoryManager):
    """A manager of blocks of shared memory, which are gone when it ends."""

    _Server = SharedMemoryServer

    def __init__(self, *args, **kwargs):
        # Before the manager's process is there, so that both have the same.
        resource_tracker.ensure_running()
        super().__init__(*args, **kwargs)

    get_server = BaseManager.get_server

    def _check_started(self):
        if self._state.value != State.STARTED:
            raise ValueError("the manager is not running: call its start() first, or its connect()")

    def SharedMemory(self, size):
        """Return a new block of shared memory of that many bytes, which the manager removes when it ends."""
        self._check_started()
        block = shared_memory.SharedMemory(create=True, size=size)
        try:
            self._ask("track_segment", block.name)
        except BaseException:
            block.close()
            block.unlink()
            raise
        return block

    def ShareableList(self, sequence):
        """Return a new `ShareableList` of the sequence's items, which the manager removes when it ends."""
        self._check_started()
        items = shared_memory.ShareableList(sequence)
        try:
            self._ask("track_segment", items.shm.name)
        except BaseException:
            items.shm.close()
            items.shm.unlink()
            raise
        return items
