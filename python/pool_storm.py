"""The storm over pools: every task is accounted for while workers are killed and stopped, and so are pools whose process is killed.

Threads give a pool all that it does: maps, calls with retries and without, iterators, large arguments and results, cancelled calls, calls
with a time limit, and tasks that kill their worker. Meanwhile workers are killed and stopped. A task's outcome is its right value, or a
`WorkerDied` that names a worker which was killed (each at most once, for it has one task at a time), or what else was asked for. A log outside
the library says how often each task was begun: never more often than once and its retries.

Run as a program it is the process that has pools of its own and is to be killed: no process of its may be left.
"""

import collections
import faulthandler
import gc
import itertools
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import CancelledError

import procession
from procession import PoolTerminated, TaskTimeoutError, WorkerDied

# Seconds without a result after which somebody hangs, however slow the machine is.
HANGS = 30.0
# Seconds between two kills, at most: where a worker takes long to start, something is to be done between them.
PAUSES = {"fork": 0.12, "forkserver": 0.3, "spawn": 0.6}
# Enough for tasks that need not fail.
RETRIES = 100_000
ENTRY = struct.Struct("<QQ")
# By what the processes of an owner are found, in their environment.
MARK = "PROCESSION_STORM_OWNER"


class Log:
    """Entries of two numbers in one file, each appended by one write, from any process."""

    def __init__(self, folder, name):
        self.file = os.open(
            os.path.join(folder, name), os.O_CREAT | os.O_APPEND | os.O_WRONLY | os.O_CLOEXEC, 0o600
        )

    def note(self, first, second):
        os.write(self.file, ENTRY.pack(first, second))


def entries(folder, name):
    try:
        with open(os.path.join(folder, name), "rb") as file:
            data = file.read()
    except FileNotFoundError:
        return []
    return ENTRY.iter_unpack(data[: len(data) // ENTRY.size * ENTRY.size])


def begin(folder):
    """The beginning of a worker."""
    begin.log = Log(folder, "begun")


def note(task):
    begin.log.note(task, os.getpid())


def square(task, n):
    note(task)
    return n * n


def square_of(pair):
    return square(*pair)


def nap(task, seconds):
    note(task)
    time.sleep(seconds)
    return seconds


def large(task, n, size):
    note(task)
    return bytearray(pattern(n, size))


def checksum(task, data):
    note(task)
    return zlib.crc32(data)


def die(task, how):
    note(task)
    if how > 0:
        os._exit(how)
    signal.signal(signal.SIGSEGV, signal.SIG_DFL)
    os.kill(os.getpid(), -how)
    time.sleep(60)


def pattern(n, size):
    return struct.pack("<Q", n) * (size // 8)


class Traffic:
    """Threads that use a pool until they are told to stop, and check all that it answers."""

    def __init__(self, pool, seed, folder):
        self.pool, self.folder = pool, folder
        self.stop = threading.Event()
        # Of each task: how often it may be begun. Of each worker that was killed, noted before it is.
        self.tasks, self.killed = {}, set()
        self.numbers = itertools.count(1)
        self.problems = []
        self.outcomes = collections.Counter()
        self.blamed = collections.Counter()
        self.beats, self.longest = {}, 0.0
        self.threads = [
            threading.Thread(target=self.run, args=(kind, random.Random(f"{seed} {kind.__name__}")), daemon=True)
            for kind in (
                self.maps, self.maps_without_retries, self.chunked_maps, self.calls, self.calls_without_retries,
                self.iterators, self.endless, self.large_ones, self.cancelled, self.limited, self.deadly,
            )
        ]  # fmt: skip

    def start(self):
        for thread in self.threads:
            self.beats[thread.name] = time.monotonic()
            thread.start()

    def run(self, kind, dice):
        try:
            while not self.stop.is_set():
                kind(dice)
        except PoolTerminated:
            self.outcomes["terminated"] += 1
        except ValueError as error:
            if str(error) != "Pool not running":
                self.problems.append((kind.__name__, error))
        except BaseException as error:
            self.problems.append((kind.__name__, error))
        finally:
            del self.beats[threading.current_thread().name]

    def beat(self):
        thread, now = threading.current_thread().name, time.monotonic()
        self.longest = max(self.longest, now - self.beats[thread])
        self.beats[thread] = now

    def task(self, retries=0):
        number = next(self.numbers)
        self.tasks[number] = retries + 1
        return number

    def outcome(self, take, *also):
        """What `take` returns, or the exception that is right."""
        try:
            value = take()
        except WorkerDied as death:
            self.blame(death)
            value = death
        except also as error:
            self.outcomes[type(error).__name__] += 1
            value = error
        else:
            self.outcomes["right"] += 1
        self.beat()
        return value

    def blame(self, death):
        self.outcomes["died"] += 1
        if death.pid not in self.killed or death.exitcode != -signal.SIGKILL:
            raise AssertionError(f"nobody killed it: {death}")
        self.blamed[death.pid] += 1
        if self.blamed[death.pid] > 1:
            raise AssertionError(f"it had one task only: {death}")

    def expect(self, value, wanted):
        if not isinstance(value, BaseException) and value != wanted:
            raise AssertionError(f"{value!r:.100} instead of {wanted!r:.100}")

    def maps(self, dice):
        pairs = [(self.task(RETRIES), n) for n in range(dice.randrange(1, 300))]
        self.expect(
            self.outcome(lambda: self.pool.map(square_of, pairs, chunksize=1, retries=RETRIES)),
            [n * n for _, n in pairs],
        )

    def maps_without_retries(self, dice):
        pairs = [(self.task(), n) for n in range(dice.randrange(1, 100))]
        result = self.pool.map_async(square_of, pairs, chunksize=1)
        # More than one of them may have lost its worker; the first one's error is raised.
        self.expect(self.outcome(result.get), [n * n for _, n in pairs])

    def chunked_maps(self, dice):
        pairs = [(self.task(RETRIES), n) for n in range(dice.randrange(1, 3000))]
        self.expect(
            self.outcome(lambda: self.pool.starmap(square, pairs, retries=RETRIES)), [n * n for _, n in pairs]
        )

    def calls(self, dice):
        results = [
            (n, self.pool.apply_async(square, (self.task(RETRIES), n), retries=RETRIES))
            for n in range(dice.randrange(1, 50))
        ]
        for n, result in results:
            if self.outcome(result.get) != n * n:
                raise AssertionError(f"{result.get()} instead of {n * n}")

    def calls_without_retries(self, dice):
        results = [(n, self.pool.apply_async(square, (self.task(), n))) for n in range(dice.randrange(1, 50))]
        dice.shuffle(results)
        for n, result in results:
            self.expect(self.outcome(result.get), n * n)

    def iterators(self, dice):
        count = dice.randrange(1, 200)
        pairs = [(self.task(), n) for n in range(count)]
        ordered = dice.random() < 0.5
        results = (self.pool.imap if ordered else self.pool.imap_unordered)(square_of, pairs)
        values = [self.outcome(lambda: next(results)) for _ in range(count)]
        if next(results, None) is not None:
            raise AssertionError("more results than tasks")
        seen = [value for value in values if not isinstance(value, WorkerDied)]
        if len(set(seen)) < len(seen) or not set(seen) <= {n * n for n in range(count)}:
            raise AssertionError(f"these are no {count} squares: {values}")
        if ordered and any(not isinstance(v, WorkerDied) and v != n * n for n, v in enumerate(values)):
            raise AssertionError(f"not in order: {values}")

    def endless(self, dice):
        pairs = ((self.task(RETRIES), n) for n in itertools.count())
        results = self.pool.imap(square_of, pairs, buffersize=dice.choice([1, 7, 100]), retries=RETRIES)
        for n in range(dice.randrange(1, 50)):
            self.expect(self.outcome(lambda: next(results)), n * n)

    def large_ones(self, dice):
        size = dice.choice([1 << 12, 1 << 17, 1 << 20, 8 << 20])
        retries = dice.choice([0, RETRIES])
        n = dice.randrange(1 << 30)
        there = self.pool.apply_async(large, (self.task(retries), n, size), retries=retries)
        back = self.pool.apply_async(checksum, (self.task(retries), pattern(n, size)), retries=retries)
        self.expect(self.outcome(there.get), pattern(n, size))
        self.expect(self.outcome(back.get), zlib.crc32(pattern(n, size)))

    def cancelled(self, dice):
        results = [self.pool.apply_async(nap, (self.task(), 0.01)) for _ in range(dice.randrange(1, 8))]
        for result in results:
            was_cancelled = dice.random() < 0.5 and result.cancel(kill=dice.random() < 0.2)
            value = self.outcome(result.get, CancelledError)
            if was_cancelled != isinstance(value, CancelledError):
                raise AssertionError(f"cancelled: {was_cancelled}, but the outcome is {value!r}")

    def limited(self, dice):
        result = self.pool.apply_async(nap, (self.task(), 60), timeout=dice.uniform(0.02, 0.3))
        value = self.outcome(result.get, TaskTimeoutError)
        if not isinstance(value, (TaskTimeoutError, WorkerDied)):
            raise AssertionError(f"it slept on: {value!r}")
        time.sleep(0.2)

    def deadly(self, dice):
        how = dice.choice([-signal.SIGKILL, -signal.SIGSEGV, 3, 255])
        retries = dice.choice([0, 0, 2])
        try:
            value = self.pool.apply(die, (self.task(retries), how), retries=retries)
        except WorkerDied as death:
            self.beat()
            self.outcomes["killed itself"] += 1
            if death.exitcode != how and death.pid not in self.killed:
                raise AssertionError(f"it ended by {how}: {death}") from None
        else:
            raise AssertionError(f"{value!r} from a task that ends its worker")
        time.sleep(0.2)

    def check_begun(self):
        """Holds what the log says against what was allowed; how many tasks there were."""
        begun = collections.Counter(task for task, _ in entries(self.folder, "begun"))
        for task, times in begun.items():
            if times > self.tasks[task]:
                raise AssertionError(f"task {task} was begun {times} times instead of {self.tasks[task]}")
        return len(begun)


class PoolTurn:
    """A pool whose workers are killed and stopped."""

    def __init__(self, context, folder, dice, seconds):
        self.folder, self.dice, self.seconds = folder, dice, seconds
        self.context = context
        self.kills = self.stops = 0
        self.seen = set()

    def run(self):
        use_once(self.context)  # What a start method sets up once is no leak.
        gc.collect()
        before = descriptors()
        size = self.dice.randrange(2, 5)
        pool = self.context.Pool(size, begin, (self.folder,), self.dice.choice([None, None, 30, 300]))
        self.traffic = Traffic(pool, self.dice.random(), self.folder)
        self.traffic.start()
        try:
            self.storm(pool)
            self.end(pool)
        except BaseException as error:
            error.add_note(pool.describe())
            faulthandler.dump_traceback(all_threads=True)
            raise
        tasks = self.traffic.check_begun()
        del pool, self.traffic.pool
        self.check_nothing_is_left(before)
        return tasks

    def storm(self, pool):
        end = time.monotonic() + self.seconds
        while time.monotonic() < end and not self.traffic.problems:
            time.sleep(self.dice.uniform(0.005, PAUSES[self.context.get_start_method()]))
            self.watch()
            # One that is killed before it is ready counts as one that cannot begin: of these a pool bears few in a row.
            self.seen.update(pid for _, pid in entries(self.folder, "begun"))
            victims = [worker for worker in list(pool._pool) if worker.pid in self.seen]
            if self.dice.random() < 0.05:
                pool.resize(self.dice.randrange(1, 5))
            elif victims and self.dice.random() < 0.25:
                self.stops += 1
                threading.Thread(
                    target=stop_for, args=(self.dice.choice(victims), self.dice.uniform(0, 0.3))
                ).start()
            elif victims:
                self.kills += 1
                victim = self.dice.choice(victims)
                self.traffic.killed.add(victim.pid)
                send(victim, signal.SIGKILL)

    def watch(self):
        now = time.monotonic()
        for name, last in list(self.traffic.beats.items()):
            if now - last > HANGS:
                raise AssertionError(f"{name} has been without a result for {now - last:.1f} s")
        if self.traffic.problems:
            kind, error = self.traffic.problems[0]
            raise AssertionError(f"{kind}: {error!r}") from error

    def end(self, pool):
        """Ends the pool in one way or the other."""
        terminates = self.dice.random() < 0.5
        if terminates:
            pool.terminate()
        self.traffic.stop.set()
        for thread in self.traffic.threads:
            while thread.is_alive():
                thread.join(0.1)
                self.watch()
        self.watch()
        if not terminates:
            pool.close()
        joiner = threading.Thread(target=pool.join, daemon=True)
        joiner.start()
        joiner.join(HANGS)
        if joiner.is_alive():
            raise AssertionError("join hangs")

    def check_nothing_is_left(self, before):
        if left := procession.active_children():
            raise AssertionError(f"processes are left: {left}")
        end = time.monotonic() + HANGS
        while len(now := descriptors()) > len(before) or threading.active_count() > 1:
            if time.monotonic() > end:
                raise AssertionError(f"left: {threading.enumerate()}, {now}, before {before}")
            gc.collect()
            time.sleep(0.01)


def use_once(context):
    with context.Pool(1) as pool:
        pool.apply(abs, (1,))


def send(worker, number):
    try:
        os.kill(worker.pid, number)
    except ProcessLookupError:
        pass


def stop_for(worker, seconds):
    send(worker, signal.SIGSTOP)
    time.sleep(seconds)
    send(worker, signal.SIGCONT)


def descriptors():
    """What each descriptor leads to, but for those of arenas, which are kept for objects to come."""
    found = {}
    for number in os.listdir("/proc/self/fd"):
        try:
            found[number] = os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:
            pass  # it was that of the folder
    return {number: path for number, path in found.items() if "procession-arena" not in path}


def own(method, folder, seed):
    """An owner's whole life: it uses a pool until it is killed."""
    daemon = random.Random(seed).random() < 0.7
    pool = procession.get_context(method).Pool(3, begin, (folder,), daemon=daemon)
    traffic = Traffic(pool, seed, folder)
    traffic.start()
    print("ready", flush=True)
    while not traffic.problems:
        time.sleep(0.1)
    raise SystemExit(repr(traffic.problems))


def kill_an_owner(method, folder, dice):
    """Lets another process have a pool, kills that process, and waits until all of its processes have ended."""
    mark = f"{os.getpid()}-{dice.randrange(1 << 60)}"
    os.mkdir(folder)
    arguments = [sys.executable, __file__, method, folder, str(dice.random())]
    environment = {**os.environ, MARK: mark}
    # A worker that is just starting says that its parent has ended.
    with (
        open(os.path.join(folder, "errors"), "w") as errors,
        subprocess.Popen(
            arguments, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as owner,
    ):
        if owner.stdout.readline() != "ready\n":
            raise AssertionError(f"an owner ended with {owner.wait()}")
        time.sleep(dice.uniform(0, 0.7))
        for pid in dice.sample(sorted(processes_of(mark) - {owner.pid}), 1):
            # It would have been replaced, or was, or was a forkserver.
            os.kill(pid, signal.SIGKILL)
        time.sleep(dice.choice([0, 0.02]))
        code = owner.poll()
        owner.kill()
        if code is not None:
            raise AssertionError(f"an owner ended with {code}")
    killed = time.monotonic()
    while left := processes_of(mark):
        if time.monotonic() - killed > HANGS:
            raise AssertionError(f"a killed owner's processes are left: {left}")
        time.sleep(0.01)
    shutil.rmtree(folder)
    return time.monotonic() - killed


def processes_of(mark):
    found = set()
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/environ", "rb") as file:
                if f"{MARK}={mark}\0".encode() in file.read():
                    found.add(int(name))
        except OSError:
            pass
    return found


if __name__ == "__main__":
    own(*sys.argv[1:])
