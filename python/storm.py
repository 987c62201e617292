"""A storm of SIGKILLs over Python processes: what they acknowledged is accounted for against logs outside the library.

Turns of a few seconds take the start methods and the kinds of traffic in their order. In each, producers and consumers are killed
every few milliseconds and replaced; one of each lives on, and for it no second may pass without progress. A killed consumer may have
taken one message that it did not log, and no more; a killed producer may have put one that it did not log. Tasks, which are
acknowledged, are never lost. What pools go through stands in `pool_storm`.

    cargo xtask storm --python [--seconds N] [--seed N] [--only KIND]
"""

import argparse
import collections
import itertools
import mmap
import os
import queue
import random
import shutil
import signal
import struct
import sys
import tempfile
import time
import warnings

import procession
from pool_storm import PoolTurn, kill_an_owner

METHODS = ["fork", "spawn", "forkserver"]
KINDS = ["queue", "tasks", "lock", "pool"]
TURN = 4.0
# Seconds that a survivor may be without progress, less what this program's own sleeps were too long by; and whatever they were.
LIMIT, LAST_LIMIT = 1.0, 10.0
WORD = struct.Struct("<Q")
ENTRY = struct.Struct("<IIQ")


class Payload:
    """An object that only pickle can carry."""

    def __init__(self, seed):
        self.seed, self.text = seed, str(seed) * 3

    def __eq__(self, other):
        return (self.seed, self.text) == (other.seed, other.text)


def payload(number):
    """What a message carries beside its number; the same for the same number."""
    match number % 7:
        case 0:
            return number
        case 1:
            return f"message {number} ✓"
        case 2:
            return {"n": number, "half": number / 2, "no": None, "yes": True}
        case 3:
            return WORD.pack(number) * (number % 1000)
        case 4:
            return [(number, "nested"), {"list": [number] * 3}]
        case 5:
            return bytearray(WORD.pack(number) * 20_000)
        case _:
            return Payload(number)


class Beats:
    """A word for each survivor in a file that all map: when it last got on, in µs of the monotonic clock."""

    def __init__(self, path, count):
        self.path = path
        if not os.path.exists(path):
            with open(path, "wb") as file:
                file.write(WORD.pack(now()) * count)
        with open(path, "r+b") as file:
            # Items of a view are stored whole; ``struct`` would write zeros first.
            self.words = memoryview(mmap.mmap(file.fileno(), 0)).cast("Q")

    def __reduce__(self):
        return Beats, (self.path, 0)

    def beat(self, seat):
        self.words[seat] = now()

    def last(self, seat):
        return self.words[seat]


def now():
    return time.monotonic_ns() // 1000


class Log:
    """A file to which one process appends, each entry by one write."""

    def __init__(self, folder, what, process):
        self.process = process
        self.file = os.open(
            os.path.join(folder, f"{what}-{process}"), os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600
        )

    def note(self, process, number):
        os.write(self.file, ENTRY.pack(process, 0, number))


def entries(folder, what):
    """The entries of each process's log."""
    logs = {}
    for name in os.listdir(folder):
        if name.startswith(f"{what}-"):
            with open(os.path.join(folder, name), "rb") as file:
                data = file.read()
            logs[int(name.removeprefix(f"{what}-"))] = [
                (process, number)
                for process, _, number in ENTRY.iter_unpack(data[: len(data) // ENTRY.size * ENTRY.size])
            ]
    return logs


def produce(folder, process, seat, messages, beats, stop):
    log = Log(folder, "put", process)
    number = 0
    while not stop.is_set():
        try:
            messages.put((process, number, payload(number)), timeout=0.2)
        except queue.Full:
            pass
        else:
            log.note(process, number)
            number += 1
        beats.beat(seat)


def consume(folder, process, seat, messages, beats, stop, tasks):
    log = Log(folder, "got", process)
    while True:
        try:
            producer, number, data = messages.get(timeout=0.1)
        except queue.Empty:
            if stop.is_set():
                return
        else:
            if data != payload(number):
                raise AssertionError(f"message {number} of {producer} is torn: {data!r:.100}")
            log.note(producer, number)
            if tasks:
                messages.task_done()
        beats.beat(seat)


def count(folder, process, seat, value, beats, stop):
    """Adds 1 under a lock that the killed leave held; the log says which sums were reached."""
    log = Log(folder, "sum", process)
    warnings.simplefilter("ignore", procession.OwnerDiedWarning)
    while not stop.is_set():
        with value.get_lock():
            value.value += 1
            log.note(process, value.value)
        beats.beat(seat)


class Turn:
    def __init__(self, context, kind, folder, dice, seconds):
        self.context, self.kind, self.folder, self.dice, self.seconds = context, kind, folder, dice, seconds
        self.beats = Beats(os.path.join(folder, "beats"), 16)
        self.stop = context.Event()
        self.started = self.kills = self.killed_consumers = 0
        self.longest = 0.0
        bound = dice.choice([0, 1, 50])
        if kind == "tasks":
            self.shared = context.JoinableQueue(bound, redeliver=True)
        elif kind == "queue":
            self.shared = context.Queue(bound)
        else:
            self.shared = context.Value("q", 0)
        roles = ["count"] * 4 if kind == "lock" else ["produce", "consume"] * 2
        self.seats = [self.start(role, seat) for seat, role in enumerate(roles)]

    def start(self, role, seat):
        process, self.started = self.started, self.started + 1
        arguments = (self.folder, process, seat, self.shared, self.beats, self.stop)
        if role == "consume":
            arguments += (self.kind == "tasks",)
        child = self.context.Process(target=globals()[role], args=arguments, daemon=True)
        child.role = role
        # How long a start takes is not what is watched.
        self.beats.words[seat] = 0
        child.start()
        return child

    def run(self):
        """Kills until the time is up; the first of each role survives."""
        survivors = [0, 1]
        end, late = time.monotonic() + self.seconds, 0.0
        excused = collections.defaultdict(float)
        seen = {}
        while time.monotonic() < end:
            pause = self.dice.uniform(0.001, 0.03)
            before = time.monotonic()
            time.sleep(pause)
            late += max(0.0, time.monotonic() - before - pause)
            for seat in survivors:
                last = self.beats.last(seat)
                if last == 0:
                    continue
                if seen.get(seat) != last:
                    seen[seat], excused[seat] = last, late
                raw = (now() - last) / 1e6
                net = raw - (late - excused[seat])
                self.longest = max(self.longest, net)
                if net > LIMIT or raw > LAST_LIMIT:
                    raise AssertionError(f"{self.seats[seat].role} has been without progress for {raw:.2f} s")
            seat = self.dice.randrange(2, len(self.seats))
            victim = self.seats[seat]
            os.kill(victim.pid, signal.SIGKILL)
            victim.join()
            self.kills += 1
            self.killed_consumers += victim.role == "consume"
            if victim.exitcode != -signal.SIGKILL:
                raise AssertionError(f"{victim.role} ended with exit code {victim.exitcode}")
            self.seats[seat] = self.start(victim.role, seat)
        self.stop.set()
        for child in self.seats:
            child.join(60)
            if child.exitcode != 0:
                raise AssertionError(f"{child.role} ended with exit code {child.exitcode}")

    def account(self):
        """What was put against what was got; how many are missing, which is allowed where consumers were killed."""
        if self.kind == "lock":
            return self.account_sums()
        got = collections.Counter()
        for log in entries(self.folder, "got").values():
            got.update(log)
            last = {}
            for producer, number in log:
                if self.kind == "queue" and number <= last.get(producer, -1):
                    raise AssertionError(f"message {number} of {producer} came after {last[producer]}")
                last[producer] = number
        left = 0
        while not self.shared.empty():
            producer, number, _ = self.shared.get(timeout=10)
            got[producer, number] += 1
            left += 1
            if self.kind == "tasks":
                self.shared.task_done()
        repeated = sum(times - 1 for times in got.values())
        put = entries(self.folder, "put")
        lost = [message for log in put.values() for message in log if message not in got]
        acknowledged = {process: len(log) for process, log in put.items()}
        for producer, number in got:
            if number > acknowledged.get(producer, 0):
                raise AssertionError(f"message {number} of {producer} was never put")
        if self.kind == "tasks":
            self.shared.join()
            if lost or repeated > self.killed_consumers:
                raise AssertionError(f"{len(lost)} tasks are lost, {repeated} were repeated: {lost[:5]}")
        elif repeated or len(lost) > self.killed_consumers:
            raise AssertionError(f"{len(lost)} messages are lost, {repeated} were repeated: {lost[:5]}")
        return sum(acknowledged.values()), len(lost), repeated

    def account_sums(self):
        sums = collections.Counter(
            number for log in entries(self.folder, "sum").values() for _, number in log
        )
        if any(times > 1 for times in sums.values()):
            raise AssertionError("two processes were under the lock")
        # Killed between the addition and the note, a sum is in no log.
        missing = self.shared.value - len(sums)
        if not 0 <= missing <= self.kills:
            raise AssertionError(f"{missing} additions are missing after {self.kills} kills")
        return len(sums), missing, 0


def storm_over_pools(method, folder, dice, seconds):
    """A turn with a pool, and then a process with a pool is killed. How many kills, and the longest time without a result."""
    turn = PoolTurn(procession.get_context(method), folder, dice, seconds)
    tasks = turn.run()
    gone = kill_an_owner(method, os.path.join(folder, "owner"), dice)
    traffic = turn.traffic
    outcomes = ", ".join(f"{count} {what}" for what, count in sorted(traffic.outcomes.items()))
    print(
        f"pool by {method}: {turn.kills} kills, {turn.stops} stops, {tasks} tasks, outcomes: {outcomes}, "
        f"longest wait {traffic.longest * 1000:.0f} ms, processes of a killed one gone after {gone * 1000:.0f} ms",
        flush=True,
    )
    return turn.kills + 1, 0.0


def storm_over_processes(kind, method, folder, dice, seconds):
    """A turn. How many kills, and the longest stall in seconds."""
    turn = Turn(procession.get_context(method), kind, folder, dice, seconds)
    try:
        turn.run()
        messages, lost, repeated = turn.account()
    except AssertionError as error:
        if describe := getattr(turn.shared, "describe", None):
            error.add_note(describe())
        raise
    print(
        f"{kind} by {method}: {turn.kills} kills, {messages} acknowledged, {lost} lost, {repeated} repeated, "
        f"longest stall {turn.longest * 1000:.0f} ms",
        flush=True,
    )
    return turn.kills, turn.longest


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--only", choices=KINDS, help="this kind of turns")
    arguments = parser.parse_args()
    seed = random.randrange(1 << 32) if arguments.seed is None else arguments.seed
    dice = random.Random(seed)
    print(f"seed {seed}", flush=True)
    end = time.monotonic() + arguments.seconds
    kinds = [arguments.only] if arguments.only else KINDS
    kills, longest = 0, 0.0
    for kind, method in itertools.cycle((kind, method) for method in METHODS for kind in kinds):
        seconds = min(TURN, end - time.monotonic())
        if seconds < 0.5:
            break
        folder = tempfile.mkdtemp(prefix="procession-storm-")
        try:
            if kind == "pool":
                killed, stall = storm_over_pools(method, folder, dice, seconds)
            else:
                killed, stall = storm_over_processes(kind, method, folder, dice, seconds)
        except AssertionError as error:
            notes = "\n".join(getattr(error, "__notes__", []))
            print(f"{kind} by {method}, seed {seed}: {error}\nlogs: {folder}\n{notes}", flush=True)
            # Whoever hangs would keep an orderly end from coming.
            for child in procession.active_children():
                child.kill()
            os._exit(1)
        shutil.rmtree(folder)
        kills, longest = kills + killed, max(longest, stall)
    print(f"{kills} kills, longest stall {longest * 1000:.0f} ms: all accounted for")
    return 0


if __name__ == "__main__":
    sys.exit(main())
