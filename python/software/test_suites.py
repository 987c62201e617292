"""Other projects' own tests, run with the package instead of ``multiprocessing``.

Their sources come from PyPI, in the version that is installed. Left out is what fails with
``multiprocessing`` as well, and what tests that a killed process hangs others.
"""

import importlib.metadata
import pathlib
import subprocess
import sys
import tarfile

import pytest

WATCHDOG = 900

PEBBLE = ["process_pool", "concurrent_process", "asynchronous_process"]
METHODS = ["fork", "spawn", "forkserver"]

LUIGI = ["worker", "worker_multiprocess", "worker_parallel_scheduling", "worker_task_process", "worker_task"]
LUIGI += ["task_running_resources", "simulate", "mock", "scheduler_message", "worker_keep_alive"]

LEFT_OUT = {
    # A worker dies with a lock of the pool's pipe, and the test waits for the deadlock: the lock
    # passes on here.
    "pebble": ["PoolDeadlock"],
    # The first needs a fresh interpreter, the second and third a machine without other work: they
    # fail with multiprocessing too. In the last a task puts its result before it has left its
    # context, and the test reads what that writes: it is late where a put does not wait for a
    # thread.
    "luigi": [
        "test_dynamic_dependencies_other_module",
        "test_cleanup_children_on_terminate",
        "test_tasks_parallel",
        "test_context_manager_with_multiprocessing",
    ],
}

# Each file by itself: pebble's set the program's start method.
SUITES = [("pebble", f"test/test_{kind}_{method}.py") for kind in PEBBLE for method in METHODS]
SUITES += [("luigi", f"test/{name}_test.py") for name in LUIGI]


@pytest.fixture(scope="session")
def sources(tmp_path_factory):
    """A function that gives the folder with a project's source distribution."""
    folder = tmp_path_factory.mktemp("sources")
    unpacked = {}

    def source(project):
        if project not in unpacked:
            wanted = f"{project}=={importlib.metadata.version(project)}"
            command = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--no-deps",
                "--no-binary",
                ":all:",
            ]
            subprocess.run([*command, "--dest", folder / project, wanted], check=True)
            (archive,) = (folder / project).glob("*.tar.gz")
            with tarfile.open(archive) as file:
                file.extractall(folder / project, filter="data")
            (unpacked[project],) = (path for path in (folder / project).iterdir() if path.is_dir())
        return unpacked[project]

    return source


@pytest.mark.parametrize(("project", "file"), SUITES)
def test_suite(project, file, sources):
    command = [
        sys.executable,
        "-m",
        "procession",
        "-m",
        "pytest",
        "-q",
        "-W",
        "ignore",
        "-p",
        "no:cacheprovider",
    ]
    command += ["-k", " and ".join(f"not {name}" for name in LEFT_OUT[project]), pathlib.Path(file)]
    folder = sources(project)
    done = subprocess.run(
        command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=WATCHDOG
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
