"""A child that has ended is a zombie until its parent waits for it, unless the parent ignores SIGCHLD."""

import functools
import os
import pathlib
import signal
import time

# Each line is written at once, so that those of several processes do not mix.
print = functools.partial(print, flush=True)


def state(pid):
    """What the system knows of a child that ended: ``Z`` for a zombie, ``None`` when it is forgotten."""
    while True:
        try:
            status = pathlib.Path(f"/proc/{pid}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return None
        if status.split("State:\t")[1][0] == "Z":
            return "Z"
        time.sleep(0.001)  # it is still ending


def fork_and_look():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    found = state(pid)
    print(f"child {pid} ended and is " + ("forgotten" if found is None else "a zombie"))


def main():
    print("SIGCHLD as usual")
    fork_and_look()
    pid, status = os.wait()
    print(f"child {pid} was waited for: exit code {os.waitstatus_to_exitcode(status)}")
    print("SIGCHLD ignored")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    fork_and_look()
    try:
        os.wait()
    except ChildProcessError:
        print("wait: there is no child process to wait for")


if __name__ == "__main__":
    main()
