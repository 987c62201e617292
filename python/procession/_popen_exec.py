"""Starting processes by spawn or a forkserver, and waiting for them. See `_popen`."""

import io
import os
import pickle
from functools import partial
from multiprocessing import popen_forkserver, popen_spawn_posix, reduction

from ._popen import Watched, is_readable

# Seconds that a forkserver has to say how a process ended.
_UNTIL_TOLD = 1


class _WithDescriptors:
    """A process that is pickled with the descriptors of the queues, locks and so on that it holds.

    A child opens descriptors of its parent through /proc. It cannot when the parent has changed its user.
    """

    def __init__(self, process_obj):
        self._process_obj = process_obj
        self._name = process_obj._name
        self._numbers = []

    def __reduce__(self):
        from ._procession import _collect_descriptors

        data = io.BytesIO()
        self._numbers += _collect_descriptors(partial(reduction.dump, self._process_obj, data))
        return _read, (data.getvalue(), [reduction.DupFd(number) for number in self._numbers])

    def close(self):
        for number in self._numbers:
            os.close(number)


def _read(data, descriptors):
    from ._procession import _deliver_descriptors

    numbers = [descriptor.detach() for descriptor in descriptors]
    try:
        return _deliver_descriptors(numbers, partial(pickle.loads, data))
    finally:
        for number in numbers:
            os.close(number)


def _launch(launch, process_obj):
    from ._procession import _hides_descriptors

    if not _hides_descriptors():
        return launch(process_obj)
    pickled = _WithDescriptors(process_obj)
    try:
        return launch(pickled)
    finally:
        pickled.close()


class SpawnPopen(Watched, popen_spawn_posix.Popen):
    """A spawned process."""

    def _launch(self, process_obj):
        self.launch(partial(_launch, super()._launch), process_obj)


class ForkServerPopen(Watched, popen_forkserver.Popen):
    """A process that a forkserver has forked: a child of that, which says how it ended."""

    def _launch(self, process_obj):
        self.launch(partial(_launch, super()._launch), process_obj)

    def watch(self, pidfd):
        self._status = self.sentinel
        super().watch(pidfd)

    def _collect(self, pidfd):
        from ._procession import _read_status

        if is_readable(self._status, _UNTIL_TOLD) and _read_status(self, self._status):
            return True
        # The forkserver was killed, or is stopped.
        return super()._collect(pidfd)
