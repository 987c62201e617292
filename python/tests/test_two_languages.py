"""A program in Python and one in Rust on the same queues."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
PROGRAM = ROOT / "examples" / "two_languages" / "two_languages.py"
WATCHDOG = 600


def test_a_worker_in_rust():
    cargo = os.environ.get("CARGO", "cargo")
    worker = [cargo, "run", "--quiet", "--manifest-path", ROOT / "Cargo.toml", "--package", "two_languages", "--"]
    done = subprocess.run(
        [sys.executable, PROGRAM, *worker],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        timeout=WATCHDOG,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "text 0: 3 words",
        "text 1: 5 words",
        "text 2: 5 words",
        "all 1, in 3, is 1, numbers 1, of 1, order 3, queue 1, the 2",
    ]
