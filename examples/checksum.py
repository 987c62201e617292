"""SHA-256 of all files below a folder, hashed by worker processes, as ``sha256sum`` prints them, sorted by path.

The exit status is 0 when all is hashed, 1 when something could not be read (it is named), 2 when nothing could be done.

A worker takes a file, hashes it, puts a report and only then says that the task is done: killed anywhere before, the file is
handed to another. With ``--pool`` a `Pool` sees to that. The same job in Rust is ``examples/checksum``.
"""

import argparse
import hashlib
import os
import queue
import random
import signal
import stat
import sys
import time

import procession as multiprocessing

# A file of this many bytes is big, and so many big ones are open at once: more would only make a disk seek.
BIG, BIG_FILES = 8 << 20, 8
# A file that this many workers died of, unasked, is given up.
DEATHS = 3
# Tasks that wait for workers, at most, so that memory stays flat however many files there are.
AHEAD = 256
# Seconds between two looks at the workers, and between two kills.
LOOK_EVERY, KILL_EVERY = 0.02, 0.05
# When this many workers in a row die before they begin with a file, the next will too.
STILLBORN = 10
# How often a pool begins a file again when most of the workers that die of it are killed on purpose.
RETRIES_UNDER_KILLS = 1_000

INCOMPLETE, FAILED, CLOSED = 1, 2, 141


class Failure(Exception):
    """Nothing could be done: what to say."""


class Shared:
    """What all processes share."""

    def __init__(self, files):
        self.tasks = multiprocessing.JoinableQueue(redeliver=True)
        self.reports = multiprocessing.Queue()
        # Permits to have a big file open. Those of a dead worker come back.
        self.big_files = multiprocessing.Semaphore(BIG_FILES, robust=True)
        # How many workers died unasked of each file. Their parent counts.
        self.deaths = multiprocessing.RawArray("B", files)


def work(shared):
    """A worker's whole life: it ends when the tasks are shut down."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for index, path, size in shared.tasks:
        deaths = shared.deaths[index]
        if deaths >= DEATHS:
            shared.reports.put(("ended", index, f"given up: {deaths} workers died while they hashed it"))
        else:
            shared.reports.put(("begun", index, os.getpid()))
            shared.reports.put(("ended", index, hashed(path, size, shared.big_files)))
        shared.tasks.task_done()


def hashed(path, size, big_files):
    """The SHA-256 of a file, or the number of the error."""
    if size >= BIG:
        with big_files:
            return hashed(path, 0, big_files)
    try:
        with open(path, "rb", buffering=0) as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        return error.errno or str(error)


def biggest_first(files):
    """The files' indices. Begun last, a big one would keep a single worker busy while the others are done."""
    return sorted(range(len(files)), key=lambda index: files[index][1], reverse=True)


class Job:
    """The parent's side: feeds the workers, collects their reports, replaces those that die, and kills some when told."""

    def __init__(self, files, workers):
        self.files = files
        self.unfed = biggest_first(files)[::-1]
        self.shared = Shared(max(len(files), 1))
        self.outcomes = [None] * len(files)
        self.left = len(files)
        # What each worker, by its pid, last began to work on.
        self.begun = {}
        self.killed = self.died = self.stillborn = 0
        self.workers = [self.start_worker() for _ in range(workers)]

    def start_worker(self):
        # A daemon, so that none outlives this process, however it ends.
        worker = multiprocessing.Process(target=work, args=(self.shared,), daemon=True)
        worker.start()
        return worker

    def run(self, chaos, progress):
        now = time.monotonic()
        next_look, next_kill, left_at_kill = now + LOOK_EVERY, now + KILL_EVERY, None
        while self.left:
            self.feed()
            self.receive(LOOK_EVERY)
            now = time.monotonic()
            if now >= next_look:
                self.replace_the_dead()
                progress(len(self.files) - self.left)
                next_look = now + LOOK_EVERY
            # Without a file done since the last kill, the next one waits: a big file needs more than one interval.
            if chaos and now >= next_kill and self.left != left_at_kill:
                self.kill_one()
                next_kill, left_at_kill = time.monotonic() + KILL_EVERY, self.left
        # What is left are files that were handed out twice.
        self.shared.tasks.shutdown(immediate=True)
        for worker in self.workers:
            worker.join()

    def feed(self):
        """Puts tasks for as long as few wait."""
        while self.unfed and self.shared.tasks.qsize() < AHEAD:
            index = self.unfed.pop()
            self.shared.tasks.put((index, *self.files[index]))

    def receive(self, timeout):
        """Takes all reports that there are, waiting for the first."""
        try:
            reports = self.shared.reports.get_many(AHEAD, timeout=timeout)
        except queue.Empty:
            return
        for what, index, value in reports:
            if what == "begun":
                self.begun[value] = index
                self.stillborn = 0
            # Not again when the file was handed out again.
            elif self.outcomes[index] is None:
                self.outcomes[index] = value
                self.left -= 1

    def replace_the_dead(self):
        for place, worker in enumerate(self.workers):
            if not worker.is_alive():
                self.workers[place] = self.start_worker()
                self.bury(worker)

    def kill_one(self):
        """SIGKILLs a worker and starts another."""
        place = random.randrange(len(self.workers))
        victim, self.workers[place] = self.workers[place], self.start_worker()
        victim.kill()
        victim.join()
        if victim.exitcode == -signal.SIGKILL:
            self.killed += 1
            self.receive(0)
            self.begun.pop(victim.pid, None)
        else:
            self.bury(victim)  # it was faster

    def bury(self, worker):
        """A worker ended unasked. What it worked on is handed out again, unless it may be the reason."""
        worker.join()
        if worker.exitcode >= 0:
            raise Failure(f"a worker ended before its work, with exit code {worker.exitcode}")
        self.died += 1
        # All that it reported has come: a put is over before its process can be.
        self.receive(0)
        index = self.begun.pop(worker.pid, None)
        if index is None:
            self.stillborn += 1
        elif self.outcomes[index] is None:
            self.shared.deaths[index] = min(self.shared.deaths[index] + 1, 255)
        if self.stillborn >= STILLBORN:
            raise Failure(f"workers die before they begin, the last with exit code {worker.exitcode}")


def begin(big_files):
    """The beginning of a pool's worker, which then calls `hash_one` for its files."""
    hash_one.big_files = big_files


def hash_one(file):
    """The SHA-256 of a file, or the number of the error; and which worker says so."""
    return hashed(*file, hash_one.big_files), os.getpid()


class PoolJob:
    """The same by a pool, which itself feeds its workers, replaces those that die, and has their files begun again."""

    def __init__(self, files, workers):
        self.files = files
        self.outcomes = [None] * len(files)
        self.workers = workers
        self.killed = self.died = 0
        # Workers that have begun. A pool whose workers all die at their start gives up.
        self.ready = set()

    def run(self, chaos, progress):
        if not self.files:
            return
        order = biggest_first(self.files)
        retries = RETRIES_UNDER_KILLS if chaos else DEATHS - 1
        big_files = multiprocessing.Semaphore(BIG_FILES, robust=True)
        with multiprocessing.Pool(self.workers, begin, (big_files,)) as pool:
            outcomes = pool.imap(
                hash_one, (self.files[index] for index in order), buffersize=AHEAD, retries=retries
            )
            next_look, next_kill = 0, time.monotonic() + KILL_EVERY
            for done, index in enumerate(order, 1):
                try:
                    self.outcomes[index], worker = next(outcomes)
                    self.ready.add(worker)
                except multiprocessing.WorkerDied as death:
                    self.outcomes[index] = f"given up: {death}"
                    self.died += 1
                except multiprocessing.PoolBroken as error:
                    raise Failure(error) from None
                now = time.monotonic()
                if now >= next_look:
                    progress(done)
                    next_look = now + LOOK_EVERY
                if chaos and now >= next_kill:
                    self.kill_one()
                    next_kill = now + KILL_EVERY

    def kill_one(self):
        """SIGKILLs a worker that has begun, if there is one just now."""
        if workers := [worker for worker in multiprocessing.active_children() if worker.pid in self.ready]:
            random.choice(workers).kill()
            self.killed += 1


def find(folder):
    """All regular files below a folder with their sizes, sorted by the bytes of their paths, and what could not be read."""
    files, unreadable, folders = [], [], [os.fsencode(folder)]
    with os.scandir(folders[0]):
        pass  # it must be a folder, and readable
    while folders:
        path = folders.pop()
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except OSError as error:
                        unreadable.append((entry.path, error.strerror))
                        continue
                    if stat.S_ISDIR(status.st_mode):
                        folders.append(entry.path)
                    elif stat.S_ISREG(status.st_mode):
                        files.append((entry.path, status.st_size))
        except OSError as error:
            unreadable.append((path, error.strerror))
    files.sort()
    return files, unreadable


def line(digest, path):
    """As GNU ``sha256sum`` writes it: with what would break a line escaped."""
    escaped = path.replace(b"\\", b"\\\\").replace(b"\n", b"\\n").replace(b"\r", b"\\r")
    mark = b"" if escaped == path else b"\\"
    return b"%s%s  %s\n" % (mark, digest.hex().encode(), escaped)


def say(text):
    print(f"checksum: {text}", file=sys.stderr)


def name(path):
    """A path for a message: quoted with escapes when it holds what a terminal would act on, or what is no text."""
    text = os.fsdecode(path)
    return text if text.isprintable() else ascii(text)


def counted(number, thing):
    return f"{number} {thing}{'' if number == 1 else 's'}"


def run(arguments):
    """Whether everything could be read."""
    start = time.monotonic()
    try:
        files, unreadable = find(arguments.dir)
    except OSError as error:
        raise Failure(f"{name(arguments.dir)}: {error.strerror}") from None
    workers = min(arguments.workers, len(files))
    job = (PoolJob if arguments.pool else Job)(files, workers)
    shows = not arguments.quiet and sys.stderr.isatty()

    def progress(done):
        if shows:
            print(f"\r{done} of {len(files)} files", end="", file=sys.stderr, flush=True)

    job.run(arguments.chaos, progress)
    if shows:
        print("\r\x1b[K", end="", file=sys.stderr)
    for (path, _), outcome in zip(files, job.outcomes):
        if isinstance(outcome, bytes):
            sys.stdout.buffer.write(line(outcome, path))
        else:
            unreadable.append((path, os.strerror(outcome) if isinstance(outcome, int) else outcome))
    sys.stdout.flush()
    for path, reason in unreadable:
        say(f"{name(path)}: {reason}")
    if not arguments.quiet:
        hashed_files = sum(isinstance(outcome, bytes) for outcome in job.outcomes)
        total = sum(size for _, size in files)
        summary = (
            f"{counted(hashed_files, 'file')}, {counted(total, 'byte')} in {time.monotonic() - start:.2f} s"
        )
        summary += f" with {counted(workers, 'worker')}"
        summary += f", {job.killed} killed" if arguments.chaos else ""
        summary += f", {job.died} died" if job.died else ""
        print(summary, file=sys.stderr)
    return not unreadable


def positive(text):
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def main():
    parser = argparse.ArgumentParser(prog="checksum", description=__doc__.splitlines()[0])
    parser.add_argument("dir", help="the folder; links below it are not followed")
    parser.add_argument(
        "--workers", type=positive, default=os.cpu_count(), metavar="N", help="worker processes"
    )
    parser.add_argument(
        "--chaos", action="store_true", help="kill a random worker every 50 ms and start another"
    )
    parser.add_argument(
        "--pool",
        action="store_true",
        help="use a Pool instead of processes, a queue of tasks and one of reports",
    )
    parser.add_argument("--quiet", action="store_true", help="show neither progress nor summary")
    try:
        return 0 if run(parser.parse_args()) else INCOMPLETE
    except Failure as failure:
        say(failure)
        return FAILED
    except BrokenPipeError:
        # Whoever closes standard output early has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    sys.exit(main())
