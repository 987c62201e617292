"""Proxies: what stands for an object of a manager's process in the others."""

from contextlib import closing
from functools import cache
from multiprocessing import managers as _stdlib, process
from multiprocessing.context import get_spawning_popen
from multiprocessing.managers import convert_to_error, dispatch
from os import getpid

from . import _session, _sessions
from ._connection import pickler
from ._object_table import Holder
from ._server import server_of
from ._token import Token, token_with

_THEIRS = _stdlib.RebuildProxy
_THEIR_BASE = _stdlib.BaseProxy


class BaseProxy(_stdlib.BaseProxy):
    """A base for proxies of objects in a manager's process.

    The object is there as long as any process has a proxy of it, another object of the manager contains one, or
    one is on its way in a message. Calls raise `ManagerDied` once the manager's process has ended, and what the
    method raises, with the traceback in that process as the cause.
    """

    # Where a class derived from CPython's calls the initializer of that itself.
    _server = _entry = _session = _ticket = _key = None

    def __init__(
        self,
        token,
        serializer,
        manager=None,
        authkey=None,
        exposed=None,
        incref=True,
        manager_owned=False,
    ):
        self._ticket = getattr(token, "_ticket", None)
        self._token = Token(token.typeid, token.address, token.id)
        self._id = token.id
        self._manager = manager
        self._serializer = serializer
        self._Client = _stdlib.listener_client[serializer][1]
        self._owned_by_manager = manager_owned
        # In a manager's process, for an object of it.
        self._server = server_of(token.id) if manager_owned else None
        if authkey is not None:
            self._authkey = process.AuthenticationString(authkey)
            if self._server is None:
                _sessions.remember_key(token.address, self._authkey)
        elif manager is not None:
            self._authkey = manager._authkey
        else:
            self._authkey = _sessions.key_of(token.address)
        if incref or manager_owned:
            self._incref()

    def _incref(self):
        ticket, self._ticket = self._ticket, None
        if self._server is not None:
            self._entry = self._server.claim(self._id, ticket)
            self._pid = getpid()
        else:
            self._key = self._traffic().hold(self, self._id, ticket)

    def _traffic(self):
        if self._entry is not None and self._pid != getpid():
            # In a child of the manager's process, which has copies of its objects.
            self._server = self._entry = None
            self._incref()
        if self._session is None:
            self._session = _sessions.session(self._token.address, self._authkey, self._serializer)
        return self._session

    def _connect(self):
        self._traffic().reconnect()

    def _callmethod(self, methodname, args=(), kwds={}):
        """Call a method of the object and return a copy of what it returns.

        A method that is registered to return a proxy returns that. Waits for the method to return; ManagerDied
        if the manager's process ends.
        """
        if self._entry is not None and self._pid == getpid():
            kind, result = self._call_here(methodname, args, kwds)
        else:
            kind, result = self._traffic().call(self._id, methodname, args, kwds)
        if kind == "#RETURN":
            return result
        if kind == "#PROXY":
            exposed, token, *proxytype = result
            if self._manager is not None:
                proxytype = class_of_ours(self._manager._registry[token.typeid][-1])
            elif proxytype and proxytype[0] is not None:
                proxytype = class_of_ours(proxytype[0])
            else:
                raise TypeError(
                    f"{methodname!r} returns a proxy of type {token.typeid!r}, whose class cannot be pickled: call"
                    " it where the manager object is"
                )
            token.address = self._token.address
            options = {"manager": self._manager, "authkey": self._authkey, "exposed": exposed}
            if self._entry is not None:
                options["manager_owned"] = True
            return proxytype(token, self._serializer, **options)
        try:
            raise convert_to_error(kind, result)
        finally:
            del result

    def _call_here(self, methodname, args, kwds):
        """Call a method of an object of this very process, which gets and gives copies too."""
        args, kwds = pickler().loads(pickler().dumps((args, kwds)))
        server = self._server
        before = getattr(server._thread, "holder", None)
        server._thread.holder = Holder()
        try:
            kind, result = server.perform(None, self._id, methodname, args, kwds)
            if kind == "#RETURN":
                result = pickler().loads(pickler().dumps(result))
            return kind, result
        finally:
            server._thread.holder = before

    def __reduce__(self):
        options = {}
        if get_spawning_popen() is not None:
            options["authkey"] = self._authkey
        token = token_with(self._new_ticket(), self._token.typeid, self._token.address, self._id)
        rebuild, function, more = self._recipe()
        return rebuild, (function, token, self._serializer, {**options, **more})

    def _new_ticket(self):
        """A ticket that keeps the object for the process that is sent a pickle; None if this
        process does not hold the object."""
        if self._entry is not None and self._pid == getpid():
            return self._server.issue(self._entry, _session.new_ticket(self._server.settle))
        if self._session is None and self._entry is None:
            return None
        return self._traffic().ticket(self._key, self._id)

    def _recipe(self):
        """The function that a pickle calls, the one that makes the proxy, and more options."""
        if getattr(self, "_isauto", False):
            return RebuildProxy, AutoProxy, {"exposed": self._exposed_}
        theirs = getattr(type(self), "_theirs", None)
        if theirs is not None:
            return _rebuild_of_ours, theirs, {}
        return RebuildProxy, type(self), {}


def class_of_ours(proxytype):
    """The class of proxies; if it is derived from CPython's alone, one that is derived from it and from `BaseProxy`.

    A function that makes proxies is returned as it is.
    """
    if not isinstance(proxytype, type) or not issubclass(proxytype, _THEIR_BASE):
        return proxytype
    return proxytype if issubclass(proxytype, BaseProxy) else _derived(proxytype)


@cache
def _derived(proxytype):
    if proxytype is _THEIR_BASE:
        return BaseProxy
    names = "__module__", "__qualname__", "__doc__"
    body = {**{name: getattr(proxytype, name) for name in names}, "_theirs": proxytype}
    return type(proxytype.__name__, (proxytype, BaseProxy), body)


def _rebuild_of_ours(proxytype, token, serializer, kwds):
    return RebuildProxy(class_of_ours(proxytype), token, serializer, kwds)


def RebuildProxy(func, token, serializer, kwds):
    """Make a proxy from its pickle."""
    if isinstance(func, type) and not issubclass(func, BaseProxy):
        return _THEIRS(func, token, serializer, kwds)
    server = server_of(token.id)
    over = _session.context.session
    if server is not None:
        kwds["manager_owned"] = True
    elif over is not None and over.nonce is not None and token.id.startswith(over.nonce):
        # Who put it there may know the manager by another address.
        token.address = over.address
        kwds.setdefault("authkey", over.authkey)
    return func(token, serializer, incref=kwds.pop("incref", True), **kwds)


def methods(names):
    """Methods that call those of the object."""

    def method(name):
        def call(self, /, *args, **kwds):
            return self._callmethod(name, args, kwds)

        call.__name__ = call.__qualname__ = name
        call.__doc__ = f"Call `{name}` of the object in the manager's process; return a copy of the result."
        return call

    return {name: method(name) for name in names}


# CPython's dictionary of them, so that a signature is the same.
_types = _stdlib.MakeProxyType.__defaults__[0]


def MakeProxyType(name, exposed, _cache=_types):
    """Return a class of proxies that have the methods `exposed`."""
    exposed = tuple(exposed)
    found = _cache.get((BaseProxy, name, exposed))
    if found is None:
        body = {**methods(exposed), "_exposed_": exposed}
        found = _cache[BaseProxy, name, exposed] = type(name, (BaseProxy,), body)
    return found


def AutoProxy(token, serializer, manager=None, authkey=None, exposed=None, incref=True, manager_owned=False):
    """Return a proxy with all public methods of its object."""
    if exposed is None:
        key = authkey or (manager._authkey if manager is not None else _sessions.key_of(token.address))
        with closing(_stdlib.listener_client[serializer][1](token.address, authkey=key)) as connection:
            exposed = dispatch(connection, None, "get_methods", (token,))
    proxytype = MakeProxyType(f"AutoProxy[{token.typeid}]", exposed)
    proxy = proxytype(
        token, serializer, manager=manager, authkey=authkey, incref=incref, manager_owned=manager_owned
    )
    proxy._isauto = True
    return proxy
