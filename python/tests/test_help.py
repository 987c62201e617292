"""What ``help()`` shows: something of everything, with examples that work."""

import doctest
import importlib
import inspect
import subprocess
import sys
import textwrap
import threading

import procession
import pytest
from procession import queues, sharedctypes, synchronize

MODULES = ["", "context", "managers", "pool", "process", "queues", "sharedctypes", "synchronize"]

EXAMPLES = [
    queues.JoinableQueue,
    queues.Queue,
    queues.SimpleQueue,
    sharedctypes.Array,
    sharedctypes.RawArray,
    sharedctypes.RawValue,
    sharedctypes.Synchronized,
    sharedctypes.SynchronizedArray,
    sharedctypes.SynchronizedString,
    sharedctypes.Value,
    synchronize.Barrier,
    synchronize.BoundedSemaphore,
    synchronize.Condition,
    synchronize.Event,
    synchronize.Lock,
    synchronize.RLock,
    synchronize.Semaphore,
]


def ours(value):
    return (getattr(value, "__module__", None) or "").startswith("procession")


def without_docs(name, cls):
    """The public methods and properties of a class that are this package's and say nothing of themselves."""
    if not inspect.getdoc(cls) or not cls.__doc__:
        yield name
    for attribute in dir(cls):
        owner = next((base for base in cls.__mro__ if attribute in vars(base)), None)
        value = inspect.getattr_static(cls, attribute)
        if attribute.startswith("_") or owner is None or not ours(owner) or inspect.isclass(value):
            continue
        if not getattr(value, "__doc__", None):
            yield f"{name}.{attribute}"


@pytest.mark.parametrize("module", MODULES)
def test_everything_has_a_docstring(module):
    module = importlib.import_module(f"procession.{module}".rstrip("."))
    assert module.__doc__
    missing = []
    seen = 0
    for name in dir(module):
        value = getattr(module, name)
        if name.startswith("_") or inspect.ismodule(value):
            continue
        if inspect.isclass(value) and ours(value):
            seen += 1
            missing += without_docs(name, value)
        elif callable(value) and ours(value):
            seen += 1
            missing += [] if inspect.getdoc(value) else [name]
    assert seen
    assert missing == []


@pytest.mark.parametrize("described", EXAMPLES, ids=lambda described: described.__name__)
def test_the_examples_work(described):
    names = {**vars(queues), **vars(sharedctypes), **vars(synchronize), "threading": threading}
    test = doctest.DocTestParser().get_doctest(
        described.__doc__, names, described.__name__, described.__module__, 0
    )
    output = []
    result = doctest.DocTestRunner().run(test, out=output.append)
    assert result.attempted > 0
    assert result.failed == 0, "".join(output)


def test_the_first_program_works(tmp_path):
    """The program in the package's docstring."""
    _, _, text = procession.__doc__.partition("::\n\n")
    program = textwrap.dedent(text.partition("\n\nWhat is different")[0])
    path = tmp_path / "program.py"
    path.write_text(program)
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("[0, 1, 4, 9]\n", "")
