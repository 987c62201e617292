"""The sessions of this process, and the keys of managers."""

import os
import threading
from multiprocessing import process, util
from multiprocessing.managers import RemoteError

from ._connection import means_the_end
from ._cpython_session import CPythonSession
from ._errors import ManagerDied
from ._session import Session

_sessions = {}
# Held while a session with the manager at an address is made.
_making = {}
# Held by the thread that forks, whose sessions these are.
_forks = threading.RLock()
_forking = []


def _keys():
    """The keys of managers that are not this process's own; children get them with the rest of `_config`."""
    return process.current_process()._config.setdefault("procession_manager_keys", {})


def remember_key(address, authkey):
    """Have proxies of the manager that arrive without a key use this one."""
    if authkey != process.current_process().authkey:
        _keys()[address] = process.AuthenticationString(authkey)
    else:
        _keys().pop(address, None)


def key_of(address):
    """The key of the manager at an address."""
    return _keys().get(address) or process.current_process().authkey


def session(address, authkey, serializer, anew=False):
    """This process's session with the manager at an address, which it makes if it has none."""
    found = _sessions.get(address)
    if found is None or found.dead or (anew and found.ended()):
        with _making.setdefault(address, threading.RLock()):
            found = _sessions.get(address)
            if found is None or found.dead:
                made = _open(address, authkey, serializer, found and found.pid)
                _forget_dead(address)
                # A signal's handler may have been here meanwhile.
                found = _sessions.setdefault(address, made)
                if found is not made:
                    made.close()
    return found


def _forget_dead(address):
    found = _sessions.get(address)
    if found is not None and found.dead:
        _sessions.pop(address, None)


def _open(address, authkey, serializer, pid):
    try:
        return Session(address, authkey, serializer)
    except RemoteError as error:
        if "unrecognized" not in str(error):
            raise
        return CPythonSession(address, authkey, serializer)
    except (OSError, EOFError) as error:
        if not means_the_end(error):
            raise
        raise ManagerDied(address, pid) from error


def discard_ended(address):
    """End the session with a manager that was at the address before another one."""
    found = _sessions.pop(address, None)
    if found is not None:
        if found.ended():
            found.close()
        else:
            _sessions[address] = found


def forget(address):
    """End the session with a manager that has been shut down."""
    _keys().pop(address, None)
    _making.pop(address, None)
    found = _sessions.pop(address, None)
    if found is not None:
        found.close()


def _close_all():
    for address in list(_sessions):
        forget(address)


def _before_fork():
    _forks.acquire()
    for each in list(_sessions.values()):
        _forking.append(each)
        each.before_fork()


def _after_fork_in_parent():
    while _forking:
        _forking.pop().after_fork_in_parent()
    # What a signal's handler raises ends what comes before a fork, but not the fork.
    if _forks._is_owned():
        _forks.release()


def _after_fork_in_child():
    global _forks
    _forks = threading.RLock()
    _making.clear()
    sessions = {*_forking, *_sessions.values()}
    _forking.clear()
    for each in sessions:
        each.after_fork_in_child()


os.register_at_fork(
    before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
)
# After what the program's managers do at its end.
util.Finalize(None, _close_all, exitpriority=-10)
