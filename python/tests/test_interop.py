"""Queues whose other side is written in another language, or knows nothing of pickles."""

import collections
import math
import os
import pathlib
import pickle
import subprocess
import sys

import pytest
from procession.queues import JoinableQueue, Queue

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def program():
    """The example in Rust, as `cargo xtask test` has built it, or built with the settings of cargo's own tests."""
    if built := os.environ.get("INTEROP"):
        return built
    cargo = os.environ.get("CARGO", "cargo")
    command = [cargo, "build", "--quiet", "--package", "interop", "--message-format", "json"]
    built = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    import json

    artifacts = (json.loads(line) for line in built.splitlines())
    executables = [artifact["executable"] for artifact in artifacts if artifact.get("executable")]
    assert len(executables) == 1
    return executables[0]


def exchange(requests, replies):
    texts = ["a b a", "", "ä 😀 ä", "word " * 50_000]
    for number, text in enumerate(texts):
        requests.put({"id": number, "text": text})
    for number, text in enumerate(texts):
        assert replies.get(timeout=100) == {"id": number, "words": dict(collections.Counter(text.split()))}
    requests.shutdown()


def test_queues_made_in_python_and_used_in_rust(program):
    name = f"test-python-{os.getpid()}"
    requests = Queue(2, name=f"{name}-requests", codec="msgpack")
    replies = Queue(name=f"{name}-replies", codec="msgpack")
    with subprocess.Popen([program, "open", name], stdout=subprocess.PIPE) as process:
        requests_elsewhere = pickle.loads(pickle.dumps(requests))
        assert process.stdout.readline() == b"ready\n"
        exchange(requests_elsewhere, Queue.open(f"{name}-replies", codec="msgpack"))
    assert process.returncode == 0
    assert replies.empty()


def test_queues_made_in_rust_and_used_in_python(program):
    name = f"test-rust-{os.getpid()}"
    with subprocess.Popen([program, "make", name], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        requests, replies = (
            Queue.open(f"{name}-{which}", codec="msgpack") for which in ("requests", "replies")
        )
        exchange(requests, replies)
    assert process.returncode == 0


def test_what_rust_cannot_read_ends_it_and_not_the_queue(program):
    name = f"test-wrong-{os.getpid()}"
    requests, replies = Queue(name=f"{name}-requests"), Queue(name=f"{name}-replies")
    with subprocess.Popen([program, "open", name], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        requests.put({"pickled": {1, 2}})
        assert b"interop: " in process.stderr.read()
    assert process.returncode == 1
    requests.put(1)
    assert requests.get() == 1 and replies.empty()


def test_the_example(program, tmp_path):
    (tmp_path / "text").write_text("one two two\nthree three\nthree\n")
    command = [sys.executable, ROOT / "examples" / "interop.py", program, tmp_path / "text"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["3", "three", "2", "two", "1", "one"]


PLAIN = [
    None,
    True,
    False,
    0,
    1,
    127,
    128,
    255,
    256,
    65535,
    65536,
    2**32 - 1,
    2**32,
    2**63,
    2**64 - 1,
    -1,
    -32,
    -33,
    -128,
    -129,
    -(2**15) - 1,
    -(2**31),
    -(2**31) - 1,
    -(2**63),
    0.0,
    -1.5,
    math.inf,
    "",
    "a" * 31,
    "a" * 32,
    "ä" * 200,
    "x" * 70_000,
    b"",
    b"x" * 255,
    b"x" * 70_000,
    [],
    list(range(15)),
    list(range(16)),
    list(range(70_000)),
    {},
    {str(n): n for n in range(16)},
    {n: [n] for n in range(70_000)},
    [[[{"a": [None]}]]],
]


@pytest.mark.parametrize("value", PLAIN, ids=lambda value: repr(value)[:30])
def test_plain_data_as_messagepack(value):
    queue = Queue(codec="msgpack")
    queue.put(value)
    got = queue.get()
    assert got == value and type(got) is type(value)


def test_messagepack_is_what_others_write():
    msgpack = pytest.importorskip("msgpack")
    queue, raw = Queue(codec="msgpack", name=f"test-raw-{os.getpid()}"), None
    raw = Queue.open(f"test-raw-{os.getpid()}", codec="bytes")
    for value in PLAIN:
        queue.put(value)
        assert msgpack.unpackb(raw.get(), strict_map_key=False) == value
        raw.put(msgpack.packb(value))
        assert queue.get() == value


def test_tuples_and_subclasses_as_messagepack():
    queue = Queue(codec="msgpack")
    Point = collections.namedtuple("Point", "x y")
    queue.put((1, Point(2, 3), bytearray(b"x"), collections.OrderedDict(a=1)))
    assert queue.get() == [1, [2, 3], b"x", {"a": 1}]


def test_what_messagepack_has_nothing_for():
    queue = Queue(codec="msgpack")
    ring = []
    ring.append(ring)
    for value, error in [
        ({1}, TypeError),
        ([1j], TypeError),
        (object(), TypeError),
        (2**64, OverflowError),
        (-(2**63) - 1, OverflowError),
        (ring, ValueError),
        ("\ud800", UnicodeEncodeError),
    ]:
        with pytest.raises(error):
            queue.put(value)
        with pytest.raises(error) as caught:
            queue.put_many(["before", value])
        assert caught.value.put_count == 1
        assert queue.get() == "before" and queue.empty()


def test_bytes_that_are_no_messagepack():
    name = f"test-hostile-{os.getpid()}"
    queue, raw = Queue(name=name, codec="msgpack"), Queue.open(name, codec="bytes")
    deep = b"\x91" * 100_000 + b"\xc0"
    for message in [
        b"",
        b"\xc1",
        b"\xd9",
        b"\xd9\x05abc",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff\xc0",
        b"\xc0\xc0",
        b"\xa1\xff",
        b"\xd4\x01\x00",
        b"\xc9\xff\xff\xff\xff",
        b"\xcb\x00",
        deep,
    ]:
        raw.put(message)
        with pytest.raises(pickle.UnpicklingError):
            queue.get()
    raw.put(b"\x81\x90\x01")
    with pytest.raises(TypeError):
        queue.get()
    queue.put("next")
    assert queue.get() == "next"


@pytest.mark.parametrize("size", [0, 1, 16_383, 16_384, 16_385, 100_000, 3_000_000])
def test_bytes_as_they_are(size):
    queue = Queue(codec="bytes")
    for kind in (bytes, bytearray, memoryview):
        queue.put(kind(b"x" * size))
        assert queue.get() == b"x" * size
    assert queue.put_many([b"x" * size, b"y"]) == 2
    assert queue.get_many(5) == [b"x" * size, b"y"]
    for value in ("text", 1, None):
        with pytest.raises(TypeError):
            queue.put(value)
    assert queue.empty()


def test_a_codec_travels_with_the_handle_and_fits_tasks():
    queue = JoinableQueue(codec="msgpack", redeliver=True)
    other = pickle.loads(pickle.dumps(queue))
    other.put((1, 2))
    assert queue.get() == [1, 2]
    queue.task_done()
    queue.join()


@pytest.mark.parametrize("codec", ["json", "", 1, b"bytes"])
def test_an_impossible_codec(codec):
    with pytest.raises(ValueError, match="codec"):
        Queue(codec=codec)
