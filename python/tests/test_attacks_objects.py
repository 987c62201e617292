"""Objects that are out of the ordinary."""

import pickle

import pytest
from procession.queues import Queue


class Counted:
    """What its reducer gets must have a length and elements, whatever the size."""

    def __init__(self, content):
        self.content = content

    def __reduce_ex__(self, protocol):
        return measured, (pickle.PickleBuffer(self.content),)


def measured(buffer):
    return len(buffer), buffer[0], buffer[-1], bytes(buffer[1:3])


@pytest.mark.parametrize("size", [10, 10_000, 100_000, 1_000_000])
def test_buffers_of_every_size_have_a_length(size):
    queue = Queue()
    queue.put(Counted(bytearray(b"ab" * size)))
    assert queue.get() == (2 * size, ord("a"), ord("b"), b"ba")
