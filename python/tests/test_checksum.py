"""``examples/checksum.py`` prints what ``sha256sum`` prints, also while its workers are killed."""

import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest

FORMS = [pytest.param([], id="queues"), pytest.param(["--pool"], id="pool")]
PROGRAM = pathlib.Path(__file__).parents[2] / "examples" / "checksum.py"
WATCHDOG = 300


def checksum(*arguments):
    command = [sys.executable, PROGRAM, *arguments]
    return subprocess.run(command, capture_output=True, timeout=WATCHDOG, stdin=subprocess.DEVNULL)


def expected(folder):
    script = 'find "$1" -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum --'
    return subprocess.run(["sh", "-c", script, "sh", folder], capture_output=True, check=True).stdout


@pytest.fixture
def tree(tmp_path):
    """A tree with all that names and contents can be."""
    root = os.fsencode(tmp_path)
    names = [
        b"plain",
        b"with a blank",
        b"-leading-dash",
        b"new\nline",
        b"back\\slash",
        b"carriage\rreturn",
        b"not \xff\xfe utf-8",
        b"tab\tand\x01control",
        "schöne Grüße".encode(),
        b"sort!",
    ]
    for name in names:
        pathlib.Path(os.fsdecode(os.path.join(root, name))).write_bytes(name)
    (tmp_path / "empty").touch()
    deep = os.path.join(root, b"deep", b"er\n", b"and\xff")
    os.makedirs(deep)
    with open(os.path.join(deep, b"file"), "wb") as file:
        file.write(b"deep")
    (tmp_path / "sort").mkdir()
    (tmp_path / "sort" / "x").write_bytes(b"1")
    (tmp_path / "a link").symlink_to("plain")
    (tmp_path / "a loop").symlink_to(".")
    (tmp_path / "big").write_bytes(bytes(range(251)) * 60_000)
    for n in range(200):
        (tmp_path / f"many-{n}").write_bytes(bytes([n]) * (n * 37))
    return tmp_path


@pytest.mark.parametrize("form", FORMS)
def test_odd_names_and_contents(form, tree):
    done = checksum(*form, "--workers", "3", tree)
    assert (done.returncode, done.stdout) == (0, expected(tree)), done.stderr
    assert done.stderr.decode().startswith("214 files, "), done.stderr


@pytest.mark.parametrize("form", FORMS)
def test_odd_names_and_contents_under_kills(form, tree):
    done = checksum(*form, "--chaos", "--workers", "3", tree)
    assert (done.returncode, done.stdout) == (0, expected(tree)), done.stderr


@pytest.mark.parametrize("form", FORMS)
def test_what_cannot_be_read_is_named_and_the_rest_is_printed(form, tree, tmp_path_factory):
    missing = tmp_path_factory.mktemp("elsewhere") / "missing"
    done = checksum(*form, missing)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.decode() == f"checksum: {missing}: No such file or directory\n"
    assert checksum(*form, "--workers", "0", tree).returncode == 2


@pytest.mark.parametrize("form", FORMS)
def test_an_empty_folder_prints_nothing(form, tmp_path):
    done = checksum(*form, "--quiet", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.parametrize("form", FORMS)
def test_interrupted_it_leaves_nothing_behind(form, tree):
    # Enough for it to be at work still.
    (tree / "bigger").write_bytes(bytes(600_000_000))
    program = subprocess.Popen(
        [sys.executable, PROGRAM, *form, "--workers", "2", tree],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    children = pathlib.Path(f"/proc/{program.pid}/task/{program.pid}/children")

    def is_ready(pid):
        # A pool's workers are from the beginning. Others have said that an interrupt ends them.
        if form:
            return True
        try:
            status = pathlib.Path(f"/proc/{pid}/status").read_text()
        except FileNotFoundError:
            return False
        caught = int(re.search(r"^SigCgt:\s+(\w+)$", status, re.MULTILINE)[1], 16)
        return caught >> (signal.SIGINT - 1) & 1 == 0

    while sum(map(is_ready, children.read_text().split())) < 2:
        assert program.poll() is None
    os.killpg(program.pid, signal.SIGINT)
    # The pipes are closed when no process is left.
    out, err = program.communicate(timeout=WATCHDOG)
    assert program.returncode == -signal.SIGINT, err
    assert b"Traceback" not in err
