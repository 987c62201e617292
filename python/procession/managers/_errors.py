"""What goes wrong between a manager's process and those that use its objects."""

from multiprocessing.managers import RemoteError
from multiprocessing.pool import RemoteTraceback
from traceback import format_exception

from ._connection import pickler


class ManagerDied(ConnectionError, EOFError):
    """A manager's process has ended, or its machine cannot be reached any more, and its objects are gone.

    `address` is the manager's, `pid` its process if that is known.
    """

    def __init__(self, address, pid=None, doing=None):
        self.address = address
        self.pid = pid
        self.doing = doing
        process = "" if pid is None else f", process {pid},"
        during = "" if doing is None else f" during {doing}"
        super().__init__(
            f"the manager at {address!r}{process} has ended{during}; its objects are gone and their proxies of no"
            " use any more: start a manager and make them anew"
        )

    def __reduce__(self):
        return type(self), (self.address, self.pid, self.doing)


class Raised:
    """An exception on its way to the process whose call raised it, which gets the traceback as its cause.

    One that does not survive pickling arrives as a `RemoteError` with the traceback's text.
    """

    def __init__(self, error, where="manager's process"):
        self.text = "".join(format_exception(error))
        self.pickled = None
        # Nobody but the caller's interpreter may be ended by SystemExit and its like.
        if isinstance(error, Exception):
            try:
                if type(pickler().loads(pickler().dumps(error))) is type(error):
                    # Proxies in the first have been received.
                    self.pickled = bytes(pickler().dumps(error))
            except Exception as reason:
                self.text += f"\n(The exception cannot be pickled: {type(reason).__name__}: {reason})\n"

    def __reduce__(self):
        return rebuild, (self.pickled, self.text)


def rebuild(pickled, text):
    """The exception, or a `RemoteError` in its place."""
    if pickled is not None:
        try:
            error = pickler().loads(pickled)
            error.__cause__ = RemoteTraceback(f'\n"""\n{text}"""')
            return error
        except Exception as reason:
            text += f"\n(The exception cannot be unpickled here: {type(reason).__name__}: {reason})\n"
    return RemoteError(text)


def gone(ident):
    """The error of who asks for an object that the manager does not have any more."""
    return RemoteError(
        f"KeyError: no object {ident!r}: nobody had a proxy of it any more, and it was deleted\n"
    )
