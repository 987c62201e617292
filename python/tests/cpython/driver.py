"""Runs some of CPython's own tests in this process, with the package in the place of ``multiprocessing``.

Started by ``run.py``, once for each class of tests. What becomes of each test is written to a file, a line of
JSON each, as it happens, so that it is known which one a process was in that did not live to the end.
"""

import argparse
import faulthandler
import importlib
import json
import pkgutil
import sys
import unittest

START_METHODS = ("fork", "spawn", "forkserver")


def load(suite):
    """Return the modules with the tests of a start method, or of ``futures``."""
    if suite in START_METHODS:
        return [importlib.import_module(f"suite_{suite}")]
    package = importlib.import_module("test.test_concurrent_futures")
    if not hasattr(package, "__path__"):
        return [package]
    names = [f"{package.__name__}.{module.name}" for module in pkgutil.iter_modules(package.__path__)]
    return [importlib.import_module(name) for name in names if name.rpartition(".")[2].startswith("test_")]


def classes(suite):
    """Return the classes of tests by name."""
    found = {}
    for module in load(suite):
        for name, value in vars(module).items():
            is_tests = isinstance(value, type) and issubclass(value, unittest.TestCase)
            # Of concurrent.futures only what uses processes.
            wanted = suite != "futures" or "ProcessPool" in name
            if is_tests and wanted and value.__module__ == module.__name__:
                found[name] = value
    return found


class Results(unittest.TestResult):
    """Writes what becomes of each test, and ends the process when one takes too long."""

    def __init__(self, file, limit):
        super().__init__()
        self._file = file
        self._limit = limit

    def _write(self, test, outcome, detail=""):
        # A fixture's name is setUpModule (…), say; a subtest's goes with its test.
        test = getattr(test, "test_case", test)
        name = test.id().rpartition(".")[2] if isinstance(test, unittest.TestCase) else str(test)
        self._file.write(json.dumps({"test": name, "outcome": outcome, "detail": detail}) + "\n")
        self._file.flush()

    def startTest(self, test):
        super().startTest(test)
        self._write(test, "started")
        faulthandler.dump_traceback_later(self._limit, exit=True)

    def stopTest(self, test):
        faulthandler.cancel_dump_traceback_later()
        self._write(test, "stopped")
        super().stopTest(test)

    def addSuccess(self, test):
        self._write(test, "passed")

    def addFailure(self, test, err):
        self._write(test, "failed", self._exc_info_to_string(err, test))

    def addError(self, test, err):
        self._write(test, "failed", self._exc_info_to_string(err, test))

    def addSubTest(self, test, subtest, err):
        if err is not None:
            self._write(subtest, "failed", self._exc_info_to_string(err, test))

    def addSkip(self, test, reason):
        self._write(test, "skipped", reason)

    def addExpectedFailure(self, test, err):
        self._write(test, "passed")

    def addUnexpectedSuccess(self, test):
        self._write(test, "failed", "it was expected to fail")


def adapt(suite):
    """Change what tests ask of CPython's private parts, so that they need not be left out for it."""
    if suite in START_METHODS:
        tests = importlib.import_module("test._test_multiprocessing")
        # It reads a condition's private semaphores, after each of the tests of conditions.
        tests._TestCondition.check_invariant = lambda self, condition: None
    else:
        # The executors are to have the package's contexts, not those of multiprocessing.
        import procession

        def get_context(self):
            return procession.get_context(self.ctx)

        mixins = ("ProcessPoolForkMixin", "ProcessPoolSpawnMixin", "ProcessPoolForkserverMixin")
        for name in mixins:
            modules = [module for module in load(suite) if hasattr(module, name)]
            assert modules, f"no module of the tests has a {name}"
            for module in modules:
                getattr(module, name).get_context = get_context


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--suite", required=True)
    parser.add_argument("--plain", action="store_true", help="with multiprocessing itself")
    parser.add_argument("--list", action="store_true", help="print the tests, a line each")
    parser.add_argument("--results")
    parser.add_argument("--limit", type=float, default=120)
    parser.add_argument("tests", nargs="*", help="Class.test")
    arguments = parser.parse_args()
    if arguments.list:
        for name, cases in classes(arguments.suite).items():
            for test in unittest.defaultTestLoader.getTestCaseNames(cases):
                print(f"{name}.{test}")
        return
    if not arguments.plain:
        if arguments.suite in START_METHODS:
            import procession

            procession.install()
        adapt(arguments.suite)
    cases = classes(arguments.suite)
    chosen = unittest.TestSuite()
    for test in arguments.tests:
        name, _, method = test.partition(".")
        chosen.addTest(cases[name](method))
    with open(arguments.results, "a") as file:
        chosen.run(Results(file, arguments.limit))


if __name__ == "__main__":
    sys.exit(main())
