"""Processes are started in a loop and joined.

Prints in any order:

    main: MainProcess
    Worker-0: hello Ada
    Worker-1: hello Bob
    Worker-2: hello Eve
    main: 3 ended, exit codes [0, 0, 0]
"""

from multiprocessing import Process, active_children, current_process, parent_process


def greet(name):
    assert parent_process().name == "MainProcess"
    print(f"{current_process().name}: hello {name}", flush=True)


if __name__ == "__main__":
    print("main:", current_process().name, flush=True)
    assert parent_process() is None
    jobs = []
    for i, name in enumerate(["Ada", "Bob", "Eve"]):
        p = Process(target=greet, args=(name,), name=f"Worker-{i}")
        jobs.append(p)
        p.start()
    for p in jobs:
        p.join()
    assert active_children() == []
    print("main:", len(jobs), "ended, exit codes", [p.exitcode for p in jobs])
