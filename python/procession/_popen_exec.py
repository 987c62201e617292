"""Starting processes by spawn or a forkserver, and waiting for them. See `_popen`."""

from multiprocessing import popen_forkserver, popen_spawn_posix

from ._popen import Watched, is_readable

# Seconds that a forkserver has to say how a process ended.
_UNTIL_TOLD = 1


class SpawnPopen(Watched, popen_spawn_posix.Popen):
    """A spawned process."""

    def _launch(self, process_obj):
        super()._launch(process_obj)
        self.watch_started()


class ForkServerPopen(Watched, popen_forkserver.Popen):
    """A process that a forkserver has forked: a child of that, which says how it ended."""

    def _launch(self, process_obj):
        super()._launch(process_obj)
        self._status = self.sentinel
        self.watch_started()

    def _collect(self, pidfd):
        from ._procession import _read_status

        if is_readable(self._status, _UNTIL_TOLD) and _read_status(self, self._status):
            return True
        # The forkserver was killed, or is stopped.
        return super()._collect(pidfd)
