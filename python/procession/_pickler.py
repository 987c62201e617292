"""Which pickler is in effect: CPython's `ForkingPickler`, or the program's replacement.

A program may set `ForkingPickler` in ``multiprocessing.reduction``, `_ForkingPickler` in the module
of queues, the `reducer` of a context, or `dumps` and `loads` of the class itself. The class of the
watched modules notices the first three when they are set. The codec notices the last when it writes
or reads a pickle. So a message of plain data costs one load of a flag.

With another pickler all objects go through its `dumps` and `loads`, as CPython's queues call them.
A message says which pickler wrote it, and which function reads it:

- A process with a pickler of the same name reads the message with that pickler.
- A process with another pickler reads what looks like a pickle, as with CPython. Plain data of this
  package's own form is made a pickle first.
- A process with CPython's pickler uses the function, if that can be imported, or reads what looks
  like a pickle.
- Any other message raises `UnpicklingError` and is not read.
"""

import gc
import importlib
import inspect
import io
import operator
import pickle
import sys
import types
from multiprocessing import context as _context, reduction as _reduction

__all__ = ()

# CPython's, also if the program has set another one before it imported this package.
original = _reduction.AbstractReducer.ForkingPickler

# The attributes of the class: what its read-only view refers to.
(class_attributes,) = gc.get_referents(vars(original))

_THEIRS = "multiprocessing's ForkingPickler"
_NAMES = frozenset(("ForkingPickler", "_ForkingPickler"))
_watched: list[types.ModuleType] = []
_current = None


class _Module(types.ModuleType):
    """A module that tells when its pickler is replaced."""

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        if name in _NAMES:
            refresh()

    def __delattr__(self, name):
        super().__delattr__(name)
        if name in _NAMES:
            refresh()

    def __reduce__(self):
        # Picklers that know modules know them by their exact class.
        return importlib.import_module, (self.__name__,)


def watch(name):
    """Notice from now on when the pickler in the module of that name is replaced."""
    module = sys.modules[name]
    if module not in _watched:
        module.__class__ = _Module
        # What is set for queues alone comes before what is set for everything.
        _watched.insert(0, module)
        refresh()


def refresh():
    """Find out which pickler is in effect."""
    global _current
    pickler = _replacement()
    if pickler is not (_current and _current.pickler):
        from . import _procession

        _current = None if pickler is None else Replaced(pickler)
        _procession._replace_pickler(_current)


def _replacement():
    """What replaces CPython's pickler, or None."""
    for module in _watched:
        if module is _reduction:
            # A context's reducer has a pickler, too.
            module = _context.reduction
            if module is not _reduction:
                pickler = getattr(module, "ForkingPickler", original)
                if pickler is not original:
                    return pickler
            module = _reduction
        for name in _NAMES:
            pickler = vars(module).get(name, original)
            if pickler is not original:
                return pickler
    return None if _is_unchanged() else original


def _is_unchanged():
    """Whether the class itself writes and reads as CPython made it."""
    written_by = {getattr(class_attributes.get(name), "__module__", None) for name in ("dumps", "__init__")}
    return (
        class_attributes.get("loads") is pickle.loads
        and written_by == {_reduction.__name__}
        and not class_attributes.keys() & {"dump", "persistent_id", "reducer_override"}
    )


class Replaced:
    """A pickler that replaces CPython's: a class, an object or a module."""

    def __init__(self, pickler):
        self.pickler = pickler
        named = pickler if hasattr(pickler, "__name__") else type(pickler)
        module, name = getattr(named, "__module__", ""), getattr(named, "__qualname__", named.__name__)
        # The program's main module in a spawned child.
        self.name = f"{module}.{name}".replace("__mp_main__", "__main__", 1).lstrip(".")
        self.head = f"{self.name}|{_path_of(getattr(pickler, 'loads', None))}"

    def dumps(self, obj):
        """The bytes of an object."""
        try:
            dumps = self.pickler.dumps
        except AttributeError:
            # A class of picklers, as `reduction.dump` uses it.
            buffer = io.BytesIO()
            self.pickler(buffer).dump(obj)
            return buffer.getbuffer()
        return dumps(obj)

    def loads(self, data, writer, buffers):
        """The object of a message that `writer` wrote: CPython's pickler, or this package, if
        None."""
        writer = writer and writer.partition("|")[0]
        if writer is not None and writer != self.name and not _is_pickle(data):
            raise pickle.UnpicklingError(_not_for(self.name, writer))
        loads = getattr(self.pickler, "loads", pickle.loads)
        options = {}
        if buffers is not None:
            if not _takes_buffers(loads):
                raise pickle.UnpicklingError(_not_for(self.name, _THEIRS))
            options["buffers"] = buffers
        try:
            return loads(data, **options)
        except Exception as error:
            if writer != self.name:
                error.add_note(f"The message was written by {writer or _THEIRS} and read by {self.name}.")
            raise


def _not_for(reader, writer):
    return (
        f"the message cannot be read: it was written by {writer}, and this process reads with {reader};"
        " replace the pickler in all processes that use the queue or pool, before they use it"
    )


def _is_pickle(data):
    """Whether bytes look like a pickle of a protocol that has a head."""
    return len(data) > 2 and data[0] == 0x80 and data[1] <= pickle.HIGHEST_PROTOCOL and data[-1:] == b"."


def _takes_buffers(loads):
    try:
        parameters = inspect.signature(loads).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(
        parameter.name == "buffers" or parameter.kind == parameter.VAR_KEYWORD for parameter in parameters
    )


def read_others(data, writer):
    """The object of a message that another pickler wrote, where CPython's is in effect."""
    name, _, path = writer.partition("|")
    if path:
        # A pickle may import and call anything, too.
        return _function_at(path)(data)
    if not _is_pickle(data):
        raise pickle.UnpicklingError(_not_for(_THEIRS, name))
    return pickle.loads(data)


def _path_of(function):
    """Where a function can be imported from, as text; empty if it cannot."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    try:
        found = operator.attrgetter(name)(sys.modules[module])
    except (AttributeError, KeyError, TypeError):
        return ""
    return f"{module}:{name}".replace("__mp_main__", "__main__", 1) if found is function else ""


def _function_at(path):
    module, _, name = path.partition(":")
    return operator.attrgetter(name)(importlib.import_module(module))


def dumps_in_band(obj):
    """CPython's pickle of an object."""
    return bytes(original.dumps(obj))


def register(type, reduce):
    """As `ForkingPickler.register`, with the pickler in effect too if that has such a method."""
    original.register(type, reduce)
    if _current is not None and _current.pickler is not original:
        registers = getattr(_current.pickler, "register", None)
        if registers is not None:
            registers(type, reduce)


watch(_reduction.__name__)
