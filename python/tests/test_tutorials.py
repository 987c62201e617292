"""Programs as tutorials teach them, unchanged but for the import, print what they say at their top."""

import ast
import pathlib
import re
import textwrap

import pytest
from processes import METHODS, lines_of_program

PROGRAMS = sorted((pathlib.Path(__file__).parent / "tutorials").glob("*.py"))
MAIN = 'if __name__ == "__main__":\n'

programs = pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.stem)


def expected(program):
    """The lines that a program promises, and whether their order is free."""
    head, _, lines = ast.get_docstring(ast.parse(program.read_text())).partition("\n\nPrints")
    assert head and lines, program
    order, _, lines = lines.partition(":\n\n")
    assert order in ("", " in any order"), program
    return textwrap.dedent(lines).splitlines(), order != ""


def run(program, *command):
    """Run a program and compare its output, both streams, with what it promises."""
    found = lines_of_program(*command)
    lines, any_order = expected(program)
    if any_order:
        lines, found = sorted(lines), sorted(found)
    assert found == lines


def with_method(text, package, method):
    """The program with a start method set before it does anything else."""
    assert text.count(MAIN) == 1
    setting = f"    from {package} import set_start_method as choose\n\n    choose({method!r})\n"
    return text.replace(MAIN, MAIN + setting)


@pytest.mark.parametrize("method", METHODS)
@programs
def test_import_replaced(program, method, tmp_path):
    text, count = re.subn(
        r"^(from|import) multiprocessing\b", r"\1 procession", program.read_text(), flags=re.M
    )
    assert count
    text = re.sub(r"^import procession$", "import procession as multiprocessing", text, flags=re.M)
    path = tmp_path / program.name
    path.write_text(with_method(text, "procession", method))
    run(program, path)


@programs
def test_unchanged(program):
    run(program, "-m", "procession", program)


@programs
def test_promises_hold_with_cpython(program, tmp_path):
    # Under fork: with other start methods CPython's can fail, see the program `unjoined`.
    path = tmp_path / program.name
    path.write_text(with_method(program.read_text(), "multiprocessing", "fork"))
    run(program, path)
