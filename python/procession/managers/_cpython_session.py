"""A process's side of its traffic with a manager's process that is CPython's."""

import weakref
from collections import Counter
from contextlib import closing
from multiprocessing import util
from multiprocessing.managers import RemoteError, dispatch

from ._connection import connect, means_the_end
from ._errors import ManagerDied
from ._session import Base


class CPythonSession(Base):
    """A session with one of CPython's managers, which counts references and does not see who dies."""

    _serve = "accept_connection"
    nonce = None

    def __init__(self, address, authkey, serializer):
        super().__init__(address, authkey, serializer)
        self._held = Counter()

    def _ensure(self):
        pass

    def _lives(self, error):
        return False

    def ended(self):
        return self.dead

    def _tell(self, method, ident):
        try:
            with closing(connect(self.address, self.authkey, self.serializer)) as made:
                return dispatch(made, None, method, (ident,))
        except (OSError, EOFError) as error:
            if not means_the_end(error):
                raise
            raise self.died() from error

    def hold(self, proxy, ident, ticket=None):
        self._tell("incref", ident)
        self._held[ident] += 1
        # Also in a forked child, whose session holds what the parent's did.
        weakref.finalize(proxy, self._drop, ident).atexit = False

    def ticket(self, key, ident):
        return None

    def _drop(self, ident):
        self._held[ident] -= 1
        try:
            self._tell("decref", ident)
        except (OSError, RemoteError) as error:
            util.info("a manager of CPython's goes on counting a proxy: %r", error)

    def synchronize(self):
        pass

    def before_fork(self):
        pass

    def after_fork_in_parent(self):
        pass

    def after_fork_in_child(self):
        self._close_connections()
        try:
            for ident in self._held.elements():
                self._tell("incref", ident)
        except (ManagerDied, RemoteError):
            pass
