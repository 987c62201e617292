"""The exit code says how a process ended.

Prints:

    returns.exitcode = 0
    exits.exitcode = 1
    raises.exitcode = 1
    is terminated.exitcode = -15
    is killed.exitcode = -9
"""

import multiprocessing
import os
import sys
import time


def exits():
    sys.exit(1)


def returns():
    return 1


def raises():
    sys.stderr = open(os.devnull, "w")
    raise RuntimeError("there was an error")


if __name__ == "__main__":
    jobs = [multiprocessing.Process(name=f.__name__, target=f) for f in (returns, exits, raises)]
    for name in ("is terminated", "is killed"):
        jobs.append(multiprocessing.Process(name=name, target=time.sleep, args=(100,)))
    for j in jobs:
        j.start()
    jobs[3].terminate()
    jobs[4].kill()
    for j in jobs:
        j.join()
        assert not j.is_alive()
        print(f"{j.name}.exitcode = {j.exitcode}")
