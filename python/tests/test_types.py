"""The stubs say what is there at runtime, and type checkers make use of them."""

import pathlib
import re
import subprocess
import sys

import procession
import pytest

HERE = pathlib.Path(__file__).parent
TYPED = HERE / "typed"
PACKAGE = pathlib.Path(procession.__file__).parent
WATCHDOG = 300


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("mypy")


def run(*arguments, folder):
    return subprocess.run(
        [sys.executable, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        timeout=WATCHDOG,
    )


def mypy(*arguments, cache):
    """The errors as `(file name, line, code)`, and the whole output."""
    strict = ["--strict", "--hide-error-context", "--no-error-summary", "--no-pretty"]
    done = run("-m", "mypy", *strict, f"--cache-dir={cache}", *arguments, folder=cache)
    assert done.returncode in (0, 1), done.stdout
    pattern = re.compile(r"^(.*?):(\d+): error: .*\[([a-z-]+)\]$", re.MULTILINE)
    errors = [(pathlib.Path(file).name, int(line), code) for file, line, code in pattern.findall(done.stdout)]
    assert len(errors) == done.stdout.count(": error: "), done.stdout
    return errors, done.stdout


def test_the_package_says_that_it_is_typed():
    assert (PACKAGE / "py.typed").is_file()
    # A hook of PyInstaller is no module.
    paths = (path for path in PACKAGE.rglob("[!_]*.py") if not path.name.startswith("hook-"))
    modules = {path.relative_to(PACKAGE).with_suffix("") for path in paths}
    stubs = {path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("[!_]*.pyi")}
    assert stubs == modules


def test_the_stubs_say_what_is_there(cache):
    done = run(
        *("-m", "mypy.stubtest", "procession", "--concise"),
        *("--allowlist", HERE / "stubtest_allowlist.txt", "--ignore-unused-allowlist"),
        *("--mypy-config-file", HERE / "stubtest.ini"),
        folder=cache,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("version", ["3.11", "3.13"])
def test_the_stubs_are_well_typed(version, cache):
    # By their names, as paths into an installed package are refused.
    stubs = [stub.relative_to(PACKAGE.parent).with_suffix("") for stub in sorted(PACKAGE.rglob("*.pyi"))]
    modules = [".".join(stub.parts).removesuffix(".__init__") for stub in stubs]
    assert len(modules) > 20
    arguments = [f"--module={module}" for module in modules]
    errors, output = mypy(f"--python-version={version}", *arguments, cache=cache)
    assert not errors, output


def test_a_program_is_checked(cache):
    """No error in the program that is well typed, and all of the other's."""
    expected = [
        ("misuse.py", number, code)
        for number, line in enumerate((TYPED / "misuse.py").read_text().splitlines(), 1)
        for code in re.split(r", *", line.partition("# mypy: ")[2])
        if code
    ]
    assert len(expected) > 30
    errors, output = mypy(TYPED / "sample.py", TYPED / "misuse.py", cache=cache)
    assert sorted(errors) == sorted(expected), output


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_the_checked_program_runs(method, tmp_path):
    done = run(TYPED / "sample.py", method, folder=tmp_path)
    assert (done.returncode, done.stdout) == (0, "well typed\n"), done.stdout
