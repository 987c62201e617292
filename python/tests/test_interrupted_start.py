"""Starts of processes that an exception interrupts, as a signal's handler raises it."""

import pathlib
import subprocess
import sys

import pytest
from processes import METHODS

PROGRAM = pathlib.Path(__file__).with_name("interrupted_start.py")


@pytest.mark.parametrize("method", METHODS)
def test_an_interrupted_start_leaves_nothing_behind(method):
    run = subprocess.run(
        [sys.executable, PROGRAM, method], capture_output=True, text=True, timeout=200, check=False
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) > 100
