"""What clients that are CPython's send to a manager of this package."""

import io
import pickle
from functools import partial
from multiprocessing import connection, managers as _stdlib

_rebuild = _stdlib.RebuildProxy


class _Unpickler(pickle.Unpickler):
    """Makes proxies of the server's own objects that keep these as the proxies of this package do."""

    def __init__(self, server, data):
        super().__init__(io.BytesIO(data))
        self._server = server

    def find_class(self, module, name):
        if (module, name) == ("multiprocessing.managers", "RebuildProxy"):
            return partial(_rebuild_here, self._server)
        return super().find_class(module, name)


def _rebuild_here(server, func, token, serializer, kwds):
    if not token.id.startswith(server.nonce):
        return _rebuild(func, token, serializer, kwds)
    kwds.pop("incref", None)
    proxy = func(token, serializer, incref=False, manager_owned=True, **kwds)
    proxy._entry = server.claim(token.id, None)
    return proxy


def loads(server, file, data):
    """What the bytes say."""
    if isinstance(file, connection.Connection):
        return _Unpickler(server, data).load()
    return file._loads(data)
