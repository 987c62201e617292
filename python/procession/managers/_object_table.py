"""The objects of a manager's process, and who holds them."""

import os
import threading
import time
import weakref
from collections import Counter
from multiprocessing import managers as _stdlib, util
from traceback import format_exc

from . import _interruptible
from ._connection import pickler
from ._errors import gone
from ._token import token_with


class Entry:
    """An object that others have proxies of.

    It is there as long as something refers to its entry: a session, a ticket, or a proxy in this process, in
    another managed object for example. Python's own garbage collection does the rest, cycles included.
    """

    __slots__ = ("__weakref__", "exposed", "gettypeid", "ident", "obj", "proxytype", "typeid")

    def __init__(self, ident, typeid, obj, exposed, gettypeid, proxytype):
        self.ident = ident
        self.typeid = typeid
        self.obj = obj
        self.exposed = exposed
        self.gettypeid = gettypeid
        self.proxytype = proxytype


class SharedEntry(Entry):
    """An object in shared memory, which each process uses without its proxy's help.

    Calls are only for what does not fit in the memory.
    """

    __slots__ = ("shared",)

    def __init__(self, ident, typeid, shared):
        backing = shared._backing()
        obj = shared if backing is None else backing
        super().__init__(ident, typeid, obj, frozenset(shared._exposed_), None, type(shared))
        self.shared = shared


class Holder:
    """What one process holds."""

    def __init__(self, held=()):
        # By what the process calls its references.
        self.held = dict(held)
        # Tickets that were made for it and not shown yet: for messages to anybody, and for calls and replies.
        self.tickets = set()
        self.lent = set()


class ObjectTable:
    """The part of a server that has to do with its objects."""

    def _prepare(self):
        # No ident of another server, one that was here before at the same address for example, is one of this.
        self.nonce = os.urandom(8).hex()
        self._idents = 0
        self._entries = weakref.WeakValueDictionary()
        self._by_object = weakref.WeakValueDictionary()
        # For each what it keeps, and where its maker keeps account of it.
        self._tickets = {}
        # Of those whose makers are gone, until when they are kept.
        self._orphans = {}
        # What CPython's clients have together, and how often.
        self._cpython_references = {}
        self._holders = set()
        self._thread = threading.local()

    def perform(self, conn, ident, method, args, kwds):
        """Call a method of an object; return what kind of result there is, and the result."""
        entry = obj = None
        try:
            try:
                entry = self._entries[ident]
            except KeyError:
                raise gone(ident) from None
            obj = entry.obj
            if method not in entry.exposed:
                raise AttributeError(
                    f"method {method!r} of {type(obj)!r} object is not in exposed={entry.exposed!r}"
                )
            function = getattr(obj, method)
        except AttributeError:
            try:
                return "#RETURN", self.fallback_mapping[method](self, conn, ident, obj, *args, **kwds)
            except BaseException:
                return "#TRACEBACK", format_exc()
        except BaseException as error:
            return "#TRACEBACK", str(error.args[0]) if error.args else format_exc()
        try:
            theirs = None if conn is None else _interruptible.waits_for(obj, method)
            if theirs is None:
                result = function(*args, **kwds)
            else:
                result = _interruptible.call(function, theirs, conn, args, kwds)
        except _interruptible.HungUp:
            raise
        except Exception as error:
            return "#ERROR", error
        except BaseException:
            return "#TRACEBACK", format_exc()
        typeid = entry.gettypeid and entry.gettypeid.get(method)
        if not typeid:
            return "#RETURN", result
        try:
            made, exposed = self.create(conn, typeid, result)
            token = token_with(self._issued, typeid, self.address, made)
            return "#PROXY", (exposed, token, self._portable(self.registry[typeid][-1]))
        except BaseException:
            return "#TRACEBACK", format_exc()

    def _portable(self, proxytype):
        """The type, for a process that has no manager to ask for it; None if it cannot be pickled."""
        try:
            pickler().dumps(proxytype)
        except Exception:
            return None
        return proxytype

    def create(self, c, typeid, /, *args, **kwds):
        """Make an object; return its ident and the methods that it exposes."""
        callable, exposed, method_to_typeid, proxytype = self.registry[typeid]
        if callable is None:
            if kwds or len(args) != 1:
                raise ValueError("Without callable, must have one non-keyword argument")
            obj = args[0]
        else:
            obj = callable(*args, **kwds)
        if exposed is None:
            exposed = _stdlib.public_methods(obj)
        if method_to_typeid is not None:
            if not isinstance(method_to_typeid, dict):
                raise TypeError(
                    f"Method_to_typeid {method_to_typeid!r}: type {type(method_to_typeid)!s}, not dict"
                )
            exposed = [*exposed, *method_to_typeid]
        with self.mutex:
            entry = self._by_object.get((id(obj), typeid))
            if entry is None:
                self._idents += 1
                ident = f"{self.nonce}{self._idents:x}"
                entry = Entry(ident, typeid, obj, frozenset(exposed), method_to_typeid, proxytype)
                self._entries[ident] = self._by_object[id(obj), typeid] = entry
            holder = getattr(self._thread, "holder", None)
            if holder is None:
                self._hold_for_cpython(entry)
            else:
                self._issued = self.issue(entry)
        util.debug("%r callable returned object with id %r", typeid, entry.ident)
        return entry.ident, tuple(exposed)

    def make(self, c, typeid, /, *args, **kwds):
        """Make an object; return its ident, the methods that it exposes and a ticket."""
        ident, exposed = self.create(c, typeid, *args, **kwds)
        return ident, exposed, self._issued

    @property
    def _issued(self):
        return getattr(self._thread, "issued", None)

    @_issued.setter
    def _issued(self, ticket):
        self._thread.issued = ticket

    @property
    def id_to_obj(self):
        """The objects: what CPython's server has under this name."""
        entries = dict(self._entries)
        return {ident: (entry.obj, entry.exposed, entry.gettypeid) for ident, entry in entries.items()}

    def issue(self, entry, ticket=None, tickets=None):
        """Keep an object until somebody shows the ticket, or who it was made for is gone."""
        ticket = ticket or os.urandom(12).hex()
        with self.mutex:
            if tickets is None:
                holder = getattr(self._thread, "holder", None)
                tickets = None if holder is None else holder.lent
            if tickets is None:
                # In a message of this process's own.
                self._orphans[ticket] = time.monotonic() + self.transit_seconds
            else:
                tickets.add(ticket)
            self._tickets[ticket] = entry, tickets
        return ticket

    def claim(self, ident, ticket, settled=True):
        """The object, for who shows a ticket for it; it is there without one too if somebody has it."""
        with self.mutex:
            entry, _ = self._tickets.get(ticket, (None, None))
            if settled:
                self.settle(ticket)
            if entry is None or entry.ident != ident:
                entry = self._entries.get(ident)
            if entry is None:
                raise gone(ident)
            return entry

    def settle(self, ticket):
        """Nobody will show the ticket any more."""
        with self.mutex:
            entry, tickets = self._tickets.pop(ticket, (None, None))
            self._orphans.pop(ticket, None)
            if tickets is not None:
                tickets.discard(ticket)
        # Outside of the lock: it may be the end of the object.
        del entry

    def _discard(self, holder):
        if holder is not None and holder.lent:
            with self.mutex:
                dropped = [self._tickets.pop(ticket, None) for ticket in holder.lent]
                holder.lent.clear()
            # Outside of the lock: it may be the end of objects.
            del dropped

    def _hold_for_cpython(self, entry):
        self._cpython_references.setdefault(entry.ident, [entry, 0])[1] += 1

    def incref(self, c, ident):
        """Count a reference of a client that is CPython's."""
        with self.mutex:
            self._hold_for_cpython(self.claim(ident, None))

    def decref(self, c, ident):
        """Undo an `incref`."""
        with self.mutex:
            held = self._cpython_references.get(ident)
            if held is None:
                raise AssertionError(f"Id {ident!s} has refcount 0, not 1+")
            held[1] -= 1
            if held[1] == 0:
                del self._cpython_references[ident]
        # Outside of the lock: it may be the end of the object.
        del held

    def get_methods(self, c, token):
        """Return the methods that the object of a token exposes."""
        return tuple(self.claim(token.id, None).exposed)

    def number_of_objects(self, c):
        """Return how many objects there are."""
        return len(self._entries)

    def debug_info(self, c):
        """Return a text with the objects and how often they are held by processes and messages."""
        with self.mutex:
            counts = Counter()
            for holder in self._holders:
                counts.update(entry.ident for entry in list(holder.held.values()))
            counts.update({ident: count for ident, (_, count) in self._cpython_references.items()})
            counts.update(entry.ident for entry, _ in self._tickets.values())
            entries = sorted(dict(self._entries).items())
        return "\n".join(
            f"  {ident}:       refcount={counts[ident]}\n    {str(entry.obj)[:75]}"
            for ident, entry in entries
        )
