"""``python -m procession script.py args…`` runs a program with multiprocessing replaced by the package."""

import argparse
import builtins
import importlib.machinery
import os
import pkgutil
import runpy
import sys
import types

from procession import install

_USAGE = "python -m procession [-h] [-c code | -m module | script.py] [argument …]"


def _parse(arguments):
    """Return `(kind, what, arguments)`, where `kind` is `"-c"`, `"-m"` or None for a script."""
    parser = argparse.ArgumentParser(
        prog="python -m procession",
        usage=_USAGE,
        description="Run a program with procession in the place of multiprocessing, in its children too.",
        epilog="Everything after the program is its own.",
    )
    # Only for the help: what follows the program must reach it as it is, unseen by argparse.
    parser.add_argument("-c", metavar="code", help="run this code")
    parser.add_argument("-m", metavar="module", help="run this module as a program")
    parser.add_argument("script", help="run this file, or this directory or zip file with a __main__.py")
    if not arguments:
        parser.error("no program to run")
    first = arguments[0]
    for kind in ("-c", "-m"):
        if first == kind:
            if len(arguments) < 2:
                parser.error(f"argument {kind} expects one argument")
            return kind, arguments[1], arguments[2:]
        if first.startswith(kind):
            return kind, first[2:], arguments[1:]
    if first.startswith("-"):
        parser.parse_args([first])
    return None, first, arguments[1:]


def _new_main(**attributes):
    """Put a new module in the place of ``__main__``, as the interpreter would make it for the program."""
    module = types.ModuleType("__main__")
    module.__builtins__ = builtins
    if "__annotations__" in vars(sys.modules["__main__"]):
        module.__annotations__ = {}
    module.__dict__.update(attributes)
    sys.modules["__main__"] = sys.modules["__mp_main__"] = module
    return module


def _path_of(first):
    """Put `first` where the interpreter has put what is of use to ``-m procession`` only."""
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = first


def _run(kind, what, arguments):
    sys.argv[:] = [what if kind is None else kind, *arguments]
    if kind == "-c":
        _path_of("")
        exec(compile(what, "<string>", "exec"), _new_main().__dict__)
    elif kind == "-m":
        _new_main()
        runpy._run_module_as_main(what)
    elif os.path.isfile(what) and pkgutil.get_importer(what) is None:
        path = os.path.abspath(what)
        with open(path, "rb") as file:
            code = pkgutil.read_code(file)
        if code is None:
            with open(path, "rb") as file:
                code = compile(file.read(), path, "exec")
            loader = importlib.machinery.SourceFileLoader("__main__", path)
        else:
            loader = importlib.machinery.SourcelessFileLoader("__main__", path)
        _path_of(os.path.dirname(os.path.realpath(path)))
        exec(code, _new_main(__file__=path, __cached__=None, __loader__=loader).__dict__)
    else:
        # A directory or a zip file, which goes first whatever the flags say: the program is found through it.
        _new_main()
        if getattr(sys.flags, "safe_path", False):
            sys.path.insert(0, what)
        else:
            sys.path[0] = what
        runpy._run_module_as_main("__main__", alter_argv=False)


def _without_ours(traceback):
    """The traceback from the program's first line on."""
    ours = {__file__, runpy.__file__, "<frozen runpy>"}
    rest = traceback
    while rest is not None and rest.tb_frame.f_code.co_filename in ours:
        rest = rest.tb_next
    # Of an error in finding the program, everything is of interest.
    return traceback if rest is None else rest


def main():
    """Run the program that the command line names."""
    kind, what, arguments = _parse(sys.argv[1:])
    install()
    if kind is None and not os.path.exists(what):
        sys.exit(f"{sys.executable}: can't open file {os.path.abspath(what)!r}: No such file or directory")
    try:
        _run(kind, what, arguments)
    except Exception as error:
        error = error.with_traceback(_without_ours(error.__traceback__))
        sys.excepthook(type(error), error, error.__traceback__)
        sys.exit(1)


if __name__ == "__main__":
    main()
