"""Runs CPython's own tests of ``multiprocessing`` and ``concurrent.futures`` against the package.

They are ``test._test_multiprocessing`` of the interpreter that runs this, under each start method with
``procession.install()`` in force, and ``test.test_concurrent_futures`` over the package's contexts. Each
class of tests has a process of its own. The file ``exclusions.toml`` names the tests that may fail, with the
reasons; one that does not fail any more is an error. What fails is run again with CPython's own
``multiprocessing``: what fails there too is only reported. A test that is skipped has to be skipped there
too.

The exit status is 0 when nothing is wrong, else 1.
"""

import argparse
import concurrent.futures
import fnmatch
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib

HERE = pathlib.Path(__file__).resolve().parent
SUITES = ("fork", "spawn", "forkserver", "futures")
# One class of each kind, those that take no longer than a few seconds.
QUICK = (
    "WithProcessesTestArray",
    "WithProcessesTestBarrier",
    "WithProcessesTestCondition",
    "WithProcessesTestEvent",
    "WithProcessesTestLock",
    "WithProcessesTestPool",
    "TestPoolNotLeakOnFailure",
    "WithProcessesTestQueue",
    "WithProcessesTestSemaphore",
    "WithProcessesTestValue",
    "WithManagerTestQueue",
    "WithManagerTestLock",
)


class Exclusion:
    """An entry of the list."""

    def __init__(self, test, reason, suites=SUITES, python="", run=True, always=True):
        self.test = test
        self.reason = reason
        self.suites = suites
        # Whether it is tried at all: not if it hangs or harms others.
        self.run = run
        # Whether it fails each time.
        self.always = always
        comparison, _, version = python.partition(" ")
        wanted = tuple(int(part) for part in version.split(".")) if version else ()
        here = sys.version_info[: len(wanted)]
        self.applies = {"": True, ">=": here >= wanted, "<": here < wanted}[comparison]

    def matches(self, suite, test):
        """Whether it is about that test."""
        return self.applies and suite in self.suites and fnmatch.fnmatchcase(test, self.test)


class Outcome:
    """What became of a test: `passed`, `failed`, `skipped`, or `died` if its process did."""

    def __init__(self, kind, detail="", seconds=0.0):
        self.kind = kind
        self.detail = detail
        self.seconds = seconds


def driver(suite, *arguments, **options):
    """Start the process that runs tests."""
    command = [sys.executable, "-X", "faulthandler", str(HERE / "driver.py"), "--suite", suite, *arguments]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(command, env=environment, start_new_session=True, **options)


def tests_of(suite):
    """Return the names of a suite's tests; None and the reason if the interpreter has none."""
    process = driver(suite, "--plain", "--list", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    output, errors = process.communicate()
    if process.returncode:
        reason = errors.strip().rpartition("\n")[2]
        if not reason.startswith("ModuleNotFoundError: No module named 'test"):
            sys.exit(f"the tests of {suite} cannot be listed:\n{errors}")
        return None, reason
    return output.split(), ""


def run(suite, tests, limit, plain=False):
    """Run tests of one class; return an `Outcome` for each."""
    outcomes = {}
    with tempfile.TemporaryDirectory(prefix="procession-suite-") as directory:
        results = pathlib.Path(directory, "results")
        while rest := [test for test in tests if test not in outcomes]:
            results.write_text("")
            options = ["--results", str(results), "--limit", str(limit), *(["--plain"] if plain else [])]
            with open(pathlib.Path(directory, "output"), "w+") as output:
                started = time.monotonic()
                process = driver(suite, *options, *rest, stdout=output, stderr=output, cwd=directory)
                # The driver ends itself when a test takes too long; this is for one that is stopped or cannot
                # even do that.
                watchdog = threading.Timer(limit * (len(rest) + 1), process.kill)
                watchdog.start()
                process.wait()
                watchdog.cancel()
                # What a test has left behind.
                try:
                    os.killpg(process.pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
                output.seek(0)
                text = output.read()[-6000:]
            read(results, rest, outcomes, process.returncode, text, time.monotonic() - started)
    return outcomes


def read(results, tests, outcomes, code, output, seconds):
    """Add to `outcomes` what a driver that has ended with `code` wrote."""
    names = {test.rpartition(".")[2]: test for test in tests}
    current = None
    failures = []
    for line in results.read_text().splitlines():
        entry = json.loads(line)
        test = names.get(entry["test"])
        kind = entry["outcome"]
        if test is None:
            # A fixture's failure or skip is that of all tests that were to come.
            failures.append((kind, entry["detail"]))
        elif kind == "started":
            current = test
        elif kind == "stopped":
            current = None
            outcomes.setdefault(test, Outcome("failed", "it came to no end that the runner knows"))
        elif test not in outcomes or kind == "failed":
            before = outcomes[test].detail if test in outcomes and outcomes[test].kind == "failed" else ""
            outcomes[test] = Outcome(kind, before + entry["detail"])
    if current is not None:
        outcomes[current] = Outcome("died", f"exit status {code}\n{output}")
        return
    for test in tests:
        if failures:
            kind, detail = failures[0]
            outcomes.setdefault(test, Outcome("failed" if kind == "failed" else kind, detail))
        else:
            outcomes.setdefault(test, Outcome("died", f"before its tests: exit status {code}\n{output}"))
    if code != 0:
        # After the last test: what atexit or a thread did.
        outcomes[tests[-1]] = Outcome("died", f"after its tests: exit status {code}\n{output}")


def judge(suite, outcomes, exclusions, limit):
    """Return `(wrong, line)` for each outcome of which something is to be said: whether it is wrong, and what."""
    judged = []
    suspects = {}
    for test, outcome in outcomes.items():
        exclusion = next((entry for entry in exclusions if entry.matches(suite, test)), None)
        if exclusion is None and outcome.kind != "passed":
            suspects[test] = outcome
        if exclusion is not None and exclusion.always and outcome.kind == "passed":
            line = f"STALE    {suite}: {test} passes, and is in exclusions.toml: {exclusion.reason}"
            judged.append((True, line))
    plain = run(suite, list(suspects), limit, plain=True)
    for test, outcome in suspects.items():
        name = f"{suite}: {test}"
        if outcome.kind == plain[test].kind == "skipped":
            continue
        if outcome.kind != "skipped" and plain[test].kind in ("failed", "died"):
            judged.append((False, f"CPYTHON  {name} fails with CPython's own multiprocessing too"))
        else:
            judged.append((True, f"{outcome.kind.upper():8} {name}\n{outcome.detail}"))
    return judged


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--start-method", "--suite", dest="suites", action="append", choices=SUITES, help="only this"
    )
    parser.add_argument("--quick", action="store_true", help="only a part that takes some seconds")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="so many processes at a time")
    parser.add_argument("--limit", type=float, default=180, help="seconds for a test at most")
    parser.add_argument("--all", action="store_true", help="as if exclusions.toml were empty")
    parser.add_argument("patterns", nargs="*", help="only tests that match: Class.test, with * and ?")
    arguments = parser.parse_args()
    exclusions = []
    if not arguments.all:
        entries = tomllib.loads((HERE / "exclusions.toml").read_text())["exclude"]
        exclusions = [Exclusion(**entry) for entry in entries]

    work = []
    for suite in arguments.suites or SUITES:
        names, reason = tests_of(suite)
        if names is None:
            print(f"MISSING  {suite}: this Python comes without these tests ({reason})", flush=True)
            continue
        classes = {}
        for name in names:
            wanted = not arguments.patterns or any(fnmatch.fnmatchcase(name, p) for p in arguments.patterns)
            if arguments.quick and name.partition(".")[0] not in QUICK:
                wanted = False
            if any(entry.matches(suite, name) and not entry.run for entry in exclusions):
                wanted = False
            if wanted:
                classes.setdefault(name.partition(".")[0], []).append(name)
        work += [(suite, tests) for tests in classes.values()]

    counts = {}
    wrong = 0

    def one(suite, tests):
        outcomes = run(suite, tests, arguments.limit)
        return outcomes, judge(suite, outcomes, exclusions, arguments.limit)

    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as threads:
        for done in concurrent.futures.as_completed([threads.submit(one, *item) for item in work]):
            outcomes, judged = done.result()
            for outcome in outcomes.values():
                counts[outcome.kind] = counts.get(outcome.kind, 0) + 1
            for is_wrong, line in judged:
                wrong += is_wrong
                print(line, flush=True)
    summary = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
    print(f"{summary or 'no tests'}; {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
