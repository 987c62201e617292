"""Blocks of shared memory with names, and lists in them, as in ``multiprocessing.shared_memory``.

A block is removed when the process that made it ends without `unlink`, and not when a process ends
that only opened it. A `ShareableList` returns each item as it was, with trailing zeros and whatever
its characters are.
"""

import _posixshmem
import mmap
import os
import struct
import sys
from multiprocessing import resource_tracker, shared_memory as _stdlib

__all__ = ["SharedMemory", "ShareableList"]


class SharedMemory(_stdlib.SharedMemory):
    """A block of shared memory, which other processes open by its name.

    With `create` it is a new one of `size` bytes, under `name` or a name that is made up. It stays
    until a process calls `unlink`. If the process that made it, and those that this has started,
    end before, the resource tracker calls it; not with ``track=False``.
    """

    # Whether the resource tracker of this process may have been told of it by another process.
    _opened = False
    # Whether this process has told the tracker of the block. CPython's class has, and until 3.13
    # also of blocks that it only opened.
    _track = True

    def __init__(self, name=None, create=False, size=0, *, track=True):
        if hasattr(sys, "frozen"):
            from ._frozen import check_orders

            check_orders()
        if not size >= 0:
            raise ValueError("'size' must be a positive integer")
        if create and size == 0:
            raise ValueError("'size' must be a positive number different from zero")
        if name is None and not create:
            raise ValueError("'name' can only be None if create=True")
        self._track = bool(track and create)
        self._opened = not create
        self._open(name, create)
        try:
            if create:
                os.ftruncate(self._fd, size)
            self._size = os.fstat(self._fd).st_size
            self._mmap = mmap.mmap(self._fd, self._size)
        except BaseException:
            self.close()
            if create:
                _posixshmem.shm_unlink(self._name)
            raise
        self._buf = memoryview(self._mmap)
        if self._track:
            resource_tracker.register(self._name, "shared_memory")

    def _open(self, name, create):
        flags = os.O_RDWR | (os.O_CREAT | os.O_EXCL if create else 0)
        while True:
            self._name = _stdlib._make_filename() if name is None else "/" + name
            try:
                self._fd = _posixshmem.shm_open(self._name, flags, mode=self._mode)
                return
            except FileExistsError:
                if name is not None:
                    raise

    def unlink(self):
        """Remove the block's name: nothing can open it any more. FileNotFoundError if it was
        removed already.

        The memory goes when the last process that has it open closes it or ends.
        """
        if not self._name:
            return
        _posixshmem.shm_unlink(self._name)
        if self._opened and resource_tracker._resource_tracker._fd is not None:
            # It may be the tracker of the process that made it too. It forgets only what it has.
            resource_tracker.register(self._name, "shared_memory")
            resource_tracker.unregister(self._name, "shared_memory")
        elif self._track:
            resource_tracker.unregister(self._name, "shared_memory")


_ENCODING = "utf-8"
_WORD = 8
# How `_back_transforms_mapping` of CPython's class calls its functions.
_AS_IT_IS, _TEXT, _BYTES, _NONE = range(4)


class ShareableList(_stdlib.ShareableList):
    """A list of a fixed length in a block of shared memory, which other processes open by its name.

    Items are None, truth values, integers of 64 bits, floats, texts and bytes. An item may be set
    to another one that takes no more bytes than the first one did, rounded up.
    """

    # The memory is laid out as by CPython's class, so that both read what the other has written.
    # There, texts and bytes are padded with zeros, and the reader strips all of them. Here, an item
    # that ends with zeros has its exact length in its format, and a space after that. CPython's
    # class reads such bytes as they are, and such a text without its zeros.

    def __init__(self, sequence=None, *, name=None):
        if sequence is None and name is not None:
            self.shm = SharedMemory(name)
            self._list_len = len(self)
            self._allocated_offsets = list(
                struct.unpack_from(self._format_size_metainfo, self.shm.buf, _WORD)
            )
            return
        items = [_stored(item) for item in sequence or ()]
        self._list_len = len(items)
        self._allocated_offsets = [0]
        for room, *_ in items:
            self._allocated_offsets.append(self._allocated_offsets[-1] + room)
        size = self._offset_back_transform_codes + self._list_len
        self.shm = SharedMemory(name, create=True, size=size)
        header = self._list_len, *self._allocated_offsets
        struct.pack_into("q" + self._format_size_metainfo, self.shm.buf, 0, *header)
        for position, item in enumerate(items):
            self._store(position, *item)

    def __getitem__(self, position):
        position = self._checked(position, "index out of range")
        fmt = self._get_packing_format(position)
        offset = self._offset_data_start + self._allocated_offsets[position]
        (value,) = struct.unpack_from(fmt, self.shm.buf, offset)
        if not fmt.endswith(" "):
            return self._get_back_transform(position)(value)
        (code,) = struct.unpack_from("b", self.shm.buf, self._offset_back_transform_codes + position)
        return value.decode(_ENCODING) if code == _TEXT else value

    def __setitem__(self, position, value):
        position = self._checked(position, "assignment index out of range")
        start, end = self._allocated_offsets[position : position + 2]
        self._store(position, *_stored(value, end - start))

    def _checked(self, position, error):
        place = position + self._list_len if position < 0 else position
        if not 0 <= place < self._list_len:
            raise IndexError(error)
        return place

    def _store(self, position, room, fmt, code, value):
        memory = self.shm.buf
        struct.pack_into("8s", memory, self._offset_packing_formats + position * _WORD, fmt.encode())
        struct.pack_into("b", memory, self._offset_back_transform_codes + position, code)
        struct.pack_into(fmt, memory, self._offset_data_start + self._allocated_offsets[position], value)


def _stored(item, room=None):
    """How an item is stored: the bytes that it has, the format, the code of its type, and what the
    format takes."""
    if not isinstance(item, (str, bytes)):
        fmt = _stdlib.ShareableList._types_mapping[type(item)]
        return room or _WORD, fmt, _NONE if item is None else _AS_IT_IS, item
    data, code = (item.encode(_ENCODING), _TEXT) if isinstance(item, str) else (item, _BYTES)
    if room is None:
        # As CPython's, which counts the characters of a text, and more where it needs more.
        room = _WORD * max(len(item) // _WORD + 1, -(-len(data) // _WORD))
    if len(data) > room:
        raise ValueError("bytes/str item exceeds available storage")
    if not data.endswith(b"\0"):
        fmt = f"{room}s"
    elif code == _BYTES:
        # The space is for CPython's `__setitem__`, and may be missing.
        fmt, code = f"{len(data)}s "[:_WORD], _AS_IT_IS
    else:
        fmt = f"{len(data)}s "
    if len(fmt) > _WORD or not fmt.rstrip().endswith("s"):
        raise ValueError(f"a ShareableList has no room for the format of an item of {len(data)} bytes")
    return room, fmt, code, data


def __getattr__(name):
    return getattr(_stdlib, name)
