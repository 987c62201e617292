"""What a forkserver imports once, so that its children need not."""

from . import queues, synchronize

__all__ = ["queues", "synchronize"]
