"""``os.fork``: one process becomes two, each with a copy of every variable, but a shared value is one for both."""

import functools
import os

import procession as multiprocessing

# Each line is written at once, so that those of several processes do not mix.
print = functools.partial(print, flush=True)


def main():
    money, shared = 100, multiprocessing.Value("i", 100)
    print(f"before: process {os.getpid()}, money {money}")
    pid = os.fork()
    if pid == 0:
        money += 50
        with shared.get_lock():
            shared.value += 50
        print(f"child: process {os.getpid()}, parent {os.getppid()}, money {money}")
        os._exit(7)
    _, status = os.wait()
    money -= 30
    print(
        f"parent: process {os.getpid()}, child {pid}, exit status {os.waitstatus_to_exitcode(status)}, money {money}"
    )
    print(f"parent: shared money {shared.value}")


if __name__ == "__main__":
    main()
