"""Blocks of shared memory and lists in them, here and where CPython's class has them open."""

import multiprocessing.shared_memory
import os
import pickle
import subprocess
import sys

import pytest
from processes import finish, start
from procession.shared_memory import ShareableList, SharedMemory

ITEMS = [
    *("é" * 7, "日本語" * 10, "plain", "", "a\0", "\0", "x\0" * 4, "é\0"),
    *(b"bytes", b"", b"\0", b"ab\0\0", b"\0" * 8, b"\0a"),
    *(None, True, False, 0, -5, 2**63 - 1, 0.5, float("-inf")),
]
BIG = [b"\0" * 2_000_000, b"x" * 1_000_000, "y" * 999_999 + "z"]


@pytest.fixture
def block():
    block = SharedMemory(create=True, size=16)
    yield block
    block.close()
    try:
        block.unlink()
    except FileNotFoundError:
        pass


def same(ours, theirs):
    return all(a == b and type(a) is type(b) for a, b in zip(ours, theirs, strict=True))


@pytest.fixture
def shareable():
    made = []

    def make(kind, items):
        made.append(kind(items))
        return made[-1]

    yield make
    for each in made:
        each.shm.close()
        each.shm.unlink()


def test_a_list_returns_what_it_was_given(shareable):
    for items in ITEMS, BIG, [], (1, 2):
        made = shareable(ShareableList, items)
        other = pickle.loads(pickle.dumps(made))
        assert same(made, list(items)) and same(other, list(items))
        for item in items:
            assert other.index(item) == list(items).index(item)
            assert made.count(item) == list(items).count(item)
        other.shm.close()
    assert repr(made) == f"ShareableList([1, 2], name={made.shm.name!r})"
    assert made.format == "qq"


def test_items_are_set_to_any_that_fit(shareable):
    made = shareable(ShareableList, ["12345678"] * len(ITEMS))
    for position, item in enumerate(ITEMS):
        if isinstance(item, str) and len(item.encode()) > 16:
            with pytest.raises(ValueError):
                made[position] = item
            item = "\0" * 16
        made[position] = item
    expected = [item if item != ITEMS[1] else "\0" * 16 for item in ITEMS]
    assert same(made, expected)
    for position in range(len(made)):
        made[position - len(made)] = "again"
    assert list(made) == ["again"] * len(ITEMS)
    for position in len(made), -len(made) - 1:
        with pytest.raises(IndexError):
            made[position]
        with pytest.raises(IndexError):
            made[position] = 1
    with pytest.raises(KeyError):
        made[0] = []


def test_lists_that_cannot_be_described():
    with pytest.raises(ValueError):
        ShareableList(["x" * 10**6 + "\0"])
    with pytest.raises(ValueError):
        ShareableList([b"x" * 10**7])


def test_cpythons_lists_and_these_read_each_other(shareable):
    theirs = multiprocessing.shared_memory.ShareableList
    made = shareable(ShareableList, ITEMS)
    seen = theirs(name=made.shm.name)
    # All but texts that end with zeros, which its own lose too.
    expected = [item.rstrip("\0") if isinstance(item, str) else item for item in ITEMS]
    assert same(seen, expected)
    seen[ITEMS.index(b"ab\0\0")] = b"1234567"
    seen[ITEMS.index("é\0")] = "é12345"
    assert (made[ITEMS.index(b"ab\0\0")], made[ITEMS.index("é\0")]) == (b"1234567", "é12345")
    seen.shm.close()
    plain = ["text", b"bytes", 1, 0.5, None, True]
    seen = ShareableList(name=shareable(theirs, plain).shm.name)
    assert same(seen, plain)
    seen.shm.close()


def run(code, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout.strip()


OPEN = """
import sys
{module}
block = SharedMemory(sys.argv[1])
block.buf[0] = 7
{end}
"""
OURS = "from procession.shared_memory import SharedMemory"
INSTALLED = """
from multiprocessing.shared_memory import SharedMemory
import procession
procession.install()
"""


@pytest.mark.parametrize("module", [OURS, INSTALLED], ids=["ours", "installed"])
@pytest.mark.parametrize("end", ["block.close()", "", "import os; os._exit(0)"])
def test_a_program_that_opened_a_block_does_not_remove_it(block, module, end):
    run(OPEN.format(module=module, end=end), block.name)
    assert block.buf[0] == 7
    SharedMemory(block.name).close()


@pytest.mark.parametrize(
    "running", ["", "from multiprocessing import resource_tracker as r; r.ensure_running()"]
)
def test_a_program_that_opened_a_block_removes_it(block, running):
    run(
        OPEN.format(module=OURS, end=f"{running}; block.unlink()" if running else "block.unlink()"),
        block.name,
    )
    with pytest.raises(FileNotFoundError):
        SharedMemory(block.name)
    # This process's tracker must not look for it at the end.
    SharedMemory(block.name, create=True, size=1).unlink()


MADE = f"""
{OURS}
import os, sys
block = SharedMemory(create=True, size=1, track=sys.argv[1] == "tracked")
print(block.name, flush=True)
os._exit(0)
"""


@pytest.mark.parametrize("which", ["tracked", "left alone"])
def test_the_makers_end(which):
    done = subprocess.run([sys.executable, "-c", MADE, which], capture_output=True, text=True, check=True)
    name = done.stdout.strip()
    # The tracker holds the pipes: it has ended.
    if which == "tracked":
        assert "leaked shared_memory" in done.stderr
        with pytest.raises(FileNotFoundError):
            SharedMemory(name)
    else:
        left = SharedMemory(name, track=False)
        left.close()
        left.unlink()


def use(name, unlink):
    block = SharedMemory(name)
    block.buf[1] = 5
    block.close()
    if unlink:
        block.unlink()


@pytest.mark.parametrize("unlink", [False, True])
def test_children_share_the_makers_tracker(context, block, unlink):
    finish(start(context, use, block.name, unlink))
    assert block.buf[1] == 5
    assert os.path.exists(f"/dev/shm/{block.name}") == (not unlink)


def test_a_block_that_cannot_be_opened_stays():
    path = f"/dev/shm/psm_empty_{os.getpid()}"
    with open(path, "wb"):
        pass
    try:
        # Nothing can map no bytes.
        with pytest.raises(ValueError):
            SharedMemory(os.path.basename(path))
        assert os.path.exists(path)
    finally:
        os.remove(path)


def test_arguments():
    for arguments in [{"size": -1, "create": True}, {"create": True}, {"name": None}]:
        with pytest.raises(ValueError):
            SharedMemory(**arguments)
    with pytest.raises(FileNotFoundError):
        SharedMemory("no such block")


@pytest.mark.parametrize("name", [5, 1.5, b"block", ["block"], True])
def test_a_name_is_a_text(name):
    for options in {}, {"create": True, "size": 1}:
        with pytest.raises(TypeError, match="can only concatenate str"):
            SharedMemory(name, **options)
