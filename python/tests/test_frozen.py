"""Frozen programs: an executable that is the program, without arguments of an interpreter's.

A script with the interpreter in its first line is one, once it says that it is frozen.
"""

import subprocess
import sys

import pytest
from processes import METHODS

PROGRAM = """\
#!{python}
import os
import sys

sys.executable = os.path.abspath(__file__)
sys.frozen = True
with open(sys.executable + ".log", "a") as log:
    log.write("started\\n")
import procession

{hook}

def double(queue, memory):
    memory.buf[0] *= 2
    queue.put(memory.buf[0])

if __name__ == "__main__":
    {support}
    context = procession.get_context("{method}")
    memory = procession.shared_memory.SharedMemory(create=True, size=1)
    memory.buf[0] = 21
    queue = context.Queue()
    process = context.Process(target=double, args=(queue, memory))
    process.start()
    process.join()
    print(process.exitcode, flush=True)
    memory.close()
    memory.unlink()
    if process.exitcode == 0:
        with context.Pool(2) as pool:
            print(queue.get(), pool.map(abs, [-1, -2]), len(context.Manager().list([1])))
"""
CALL = "procession.freeze_support()"
# As PyInstaller's.
HOOK = """\
import multiprocessing.spawn
called = multiprocessing.spawn.freeze_support

def freeze_support():
    os.write(1, b"hook\\n")
    if sys.argv[-1].startswith("from multiprocessing."):
        exec(sys.argv[-1])
        sys.exit()
    called()

multiprocessing.freeze_support = multiprocessing.spawn.freeze_support = freeze_support
"""


def run(tmp_path, **parts):
    path = tmp_path / "program"
    path.write_text(PROGRAM.format(python=sys.executable, **parts))
    path.chmod(0o755)
    done = subprocess.run([path], capture_output=True, text=True, check=False, timeout=100)
    starts = len((tmp_path / "program.log").read_text().split())
    return done, starts


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("hook", ["", HOOK], ids=["no hook", "hook"])
def test_children_are_children(tmp_path, method, hook):
    done, starts = run(tmp_path, method=method, support=CALL, hook=hook)
    lines = [line for line in done.stdout.split("\n") if line and line != "hook"]
    assert lines == ["0", "42 [1, 2] 1"], done.stderr
    assert ("hook" in done.stdout) == bool(hook)
    # The program, the tracker, the process, two workers, the manager; with spawn they import the
    # program too.
    assert starts <= 12


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_program_without_support_ends(tmp_path, method):
    done, starts = run(tmp_path, method=method, support="pass", hook="")
    assert "call freeze_support() first" in done.stderr
    assert "42" not in done.stdout
    assert starts <= 12


def test_nothing_happens_in_other_programs():
    code = "import procession; procession.freeze_support(); print('here')"
    command = [sys.executable, "-c", code, "--multiprocessing-fork", "pipe_handle=5"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "here\n"), done.stderr
