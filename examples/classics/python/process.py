"""Processes with a name and arguments, one of them a daemon."""

import functools
import os
import sys
import time

import procession as multiprocessing

# Each line is written at once, so that those of several processes do not mix.
print = functools.partial(print, flush=True)


def greet(greeting, times):
    print(f"{multiprocessing.current_process().name}: process {os.getpid()}, parent {os.getppid()}")
    print(" ".join([greeting] * times))
    sys.exit(3)


class Greeter(multiprocessing.Process):
    """A process may also be a subclass with a method ``run``."""

    def __init__(self, whom):
        super().__init__(name=f"greeter of {whom}")
        self.whom = whom

    def run(self):
        print(f"{self.name}: hello {self.whom}")


def main():
    print(f"{multiprocessing.current_process().name}: process {os.getpid()}")
    greeter = multiprocessing.Process(target=greet, args=("hello",), kwargs={"times": 3}, name="greeter")
    greeter.start()
    print(f"main: started {greeter.name}, process {greeter.pid}, daemon: {greeter.daemon}")
    greeter.join()
    print(f"main: greeter is alive: {greeter.is_alive()}, exit code {greeter.exitcode}")

    other = Greeter("Ada")
    other.start()
    other.join()

    sleeper = multiprocessing.Process(target=time.sleep, args=(1000,), daemon=True)
    sleeper.start()
    sleeper.join(timeout=0.1)
    print(
        f"main: sleeper is alive: {sleeper.is_alive()}, exit code {sleeper.exitcode}, daemon: {sleeper.daemon}"
    )
    sleeper.terminate()
    sleeper.join()
    print(f"main: sleeper is alive: {sleeper.is_alive()}, exit code {sleeper.exitcode}")

    # A daemon that nobody ends, ends with this program.
    multiprocessing.Process(target=time.sleep, args=(1000,), daemon=True).start()


if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1] if sys.argv[1:] else None)
    main()
