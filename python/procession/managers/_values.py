"""Values and arrays of a manager, in shared memory while their contents fit there."""

import marshal
from array import array
from multiprocessing import managers as _stdlib

from .. import _procession, synchronize
from ._proxy import BaseProxy
from ._proxy_types import ArrayProxy, ValueProxy
from ._shared_objects import SharedObject


class _Lock(SharedObject, synchronize.RLock):
    """The lock of a value or array. A signal's handler may use that in the middle of another
    use."""

    def __init__(self):
        super().__init__(robust="raise")

    def __enter__(self):
        try:
            return super().acquire()
        except synchronize.OwnerDied:
            # It is held, and what it guards is whole at every instant.
            return True


class _Memory:
    """A block of memory of a manager.

    It begins with a word. What it does not hold is in the manager's process, whose object is used
    then.
    """

    def _allocate(self, typecode, size):
        self._typecode = typecode
        self._lock = _Lock()
        self._map(_procession.Block(8 + size))

    def _map(self, block):
        self._block = block
        memory = block.create_memoryview()
        self._word = memory[:8].cast("Q")
        self._bytes = memory[8:]

    def __getstate__(self):
        return self._block.__getstate__(), self._lock, self._typecode

    def __setstate__(self, state):
        handle, self._lock, self._typecode = state
        block = _procession.Block.__new__(_procession.Block)
        block.__setstate__(handle)
        self._map(block)

    def _call_manager(self, methodname, *args):
        return BaseProxy._callmethod(self, methodname, args)


# The bytes of a slot, and those of them that are the length of what is in it.
_SLOT = 128
_LENGTH = 2
# `marshal` makes exactly the same object of each, in every version of Python.
_PLAIN = frozenset((type(None), bool, int, float, str, bytes))
_MARSHAL_VERSION = 2


def _plain(value):
    """The bytes of a value that fits in a slot; None if it does not."""
    if type(value) not in _PLAIN:
        return None
    data = marshal.dumps(value, _MARSHAL_VERSION)
    return data if len(data) <= _SLOT - _LENGTH else None


class ManagedValue(SharedObject, _Memory, ValueProxy):
    """A manager's value: any object that can be pickled.

    None, truth values, numbers, and texts and bytes of up to some 120 bytes are in shared memory.
    Others are in the manager's process.
    """

    # The word counts the values that were set: the current one is in the slot of its lowest bit. A
    # process that sets one holds the lock, writes the other slot, and then counts. If it is killed
    # before, the old value is current. A slot of length 0 says that the manager's process has the
    # value.

    def __init__(self, typecode, value, lock=True):
        self._given = typecode
        # The text is for the other processes: the class may be unknown where it is unpickled.
        self._allocate(repr(typecode), 2 * _SLOT)
        self._write(0, _plain(value))

    def _backing(self):
        """The object for values that do not fit."""
        return _stdlib.Value(self._given, None)

    @staticmethod
    def can_hold(value):
        """Whether the value fits in shared memory."""
        return _plain(value) is not None

    def get(self):
        """Return the value."""
        while True:
            with self._lock:
                count = self._word[0]
                data = self._read(count)
            if data:
                return marshal.loads(data)
            value = self._call_manager("get")
            # A value that is being set may have reached the manager, and is not the current one
            # yet.
            with self._lock:
                if self._word[0] == count:
                    return value

    def set(self, value):
        """Set the value."""
        data = _plain(value)
        with self._lock:
            if data is None:
                self._call_manager("set", value)
            while True:
                count = self._word[0]
                self._write(count + 1, data)
                # A signal's handler may have set one meanwhile.
                if self._word[0] == count:
                    break
            self._word[0] = count + 1

    value = property(get, set)

    __deepcopy__ = BaseProxy.__deepcopy__

    def _getvalue(self):
        """Return a copy of the object that CPython's manager has."""
        held = self._call_manager("#GETVALUE")
        held.set(self.get())
        return held

    def _read(self, count):
        start = (count & 1) * _SLOT
        length = int.from_bytes(self._bytes[start : start + _LENGTH], "little")
        return bytes(self._bytes[start + _LENGTH : start + _LENGTH + length])

    def _write(self, count, data):
        start = (count & 1) * _SLOT
        data = data or b""
        whole = len(data).to_bytes(_LENGTH, "little") + data
        self._bytes[start : start + len(whole)] = whole

    def __str__(self):
        return f"Value({self._typecode}, {self.value!r})"


class ManagedArray(SharedObject, _Memory, ArrayProxy):
    """A manager's array of numbers, as `array.array`.

    It is in shared memory until an assignment to a slice changes its length, and in the manager's
    process from then on.
    """

    # The word is 1 once the manager's process has the array. The process that moves it there sets
    # the word last, with the lock held. If it is killed before, the memory still has the array.

    _TYPECODES = frozenset("bBhHiIlLqQfd")

    def __init__(self, typecode, sequence, lock=True):
        data = array(typecode, sequence)
        self._allocate(typecode, len(data) * data.itemsize)
        self._cells[:] = memoryview(data)

    def _backing(self):
        """The array when its length changes."""
        return array(self._typecode)

    @classmethod
    def can_hold(cls, typecode):
        """Whether the typecode is that of numbers."""
        return isinstance(typecode, str) and typecode in cls._TYPECODES

    def _map(self, block):
        super()._map(block)
        self._cells = self._bytes.cast(self._typecode)

    def _copy(self, cells):
        return array(self._typecode, cells.tobytes())

    def __len__(self):
        return self._call_manager("__len__") if self._word[0] else len(self._cells)

    def __getitem__(self, index):
        if not isinstance(index, slice):
            if not self._word[0]:
                return self._cells[index]
        else:
            with self._lock:
                if not self._word[0]:
                    return self._copy(self._cells[index])
        return self._call_manager("__getitem__", index)

    def __setitem__(self, index, value):
        with self._lock:
            if self._word[0]:
                self._call_manager("__setitem__", index, value)
            elif not isinstance(index, slice):
                # Through an array for its conversions and errors.
                self._cells[index] = array(self._typecode, (value,))[0]
            else:
                self._set_slice(index, value)

    def _set_slice(self, index, value):
        cells = self._cells[index]
        if type(value) is array and value.typecode == self._typecode and len(value) == len(cells):
            cells[:] = memoryview(value)
            return
        # An array has the errors, or another length.
        changed = self._copy(self._cells)
        changed[index] = value
        self._call_manager("__setitem__", slice(None), changed)
        self._word[0] = 1

    __deepcopy__ = BaseProxy.__deepcopy__

    def _getvalue(self):
        """Return a copy of the array."""
        return self[:]

    def __str__(self):
        return str(self[:])
