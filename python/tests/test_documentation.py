"""The examples in the README and in docs/python.md are programs that run."""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "docs" / "python.md"]
EXAMPLES = [
    pytest.param(example, id=f"{page.name}-{number}")
    for page in PAGES
    for number, example in enumerate(
        re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    )
]
WATCHDOG = 120


def test_there_are_examples():
    assert len(EXAMPLES) > len(PAGES)


@pytest.mark.parametrize("example", EXAMPLES)
def test_example(example, tmp_path):
    program = tmp_path / "example.py"
    program.write_text(example)
    done = subprocess.run(
        [sys.executable, "-W", "error", program],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=WATCHDOG,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
