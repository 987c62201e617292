"""Thumbnails of all images in a folder, made by a pool of worker processes.

A file that is no image, or a damaged one, is reported, and the rest is done. A worker that dies (of memory, of a fault in a decoder)
costs nothing: its file is begun again by another, up to three times. One that takes longer than it may is killed, and its file
reported. The exit status is 0 when every file has its thumbnail, 1 when some have none (they are named), 2 when nothing could be done.

Needs Pillow.
"""

import argparse
import itertools
import os
import pathlib
import random
import sys

import procession as multiprocessing
from PIL import Image, ImageOps, UnidentifiedImageError

RETRIES = 3
# Seconds a file may take, and bytes of memory above which a worker is replaced by a fresh one.
MOST_TIME, MOST_MEMORY = 60, 1 << 30
# With chaos a worker is killed whenever so many more files are done.
KILL_EVERY = 4

INCOMPLETE, FAILED = 1, 2


def begin(folder, size):
    """The beginning of a worker, which then calls `thumbnail` for its files."""
    thumbnail.folder, thumbnail.size = folder, size


def thumbnail(path):
    """Makes the thumbnail of a file; the file, what is wrong with it or None, and which worker did it."""
    return path, make(path), os.getpid()


def make(path):
    """Makes the thumbnail of a file; what is wrong with that, or None."""
    target = thumbnail.folder / f"{path.name}.jpg"
    # Whoever looks at the folder sees whole thumbnails only, though this process may be killed at any moment.
    unfinished = target.with_suffix(".unfinished")
    try:
        with Image.open(path) as image:
            small = ImageOps.exif_transpose(image)
            small.thumbnail((thumbnail.size, thumbnail.size))
            small.convert("RGB").save(unfinished, "JPEG", quality=85)
        unfinished.replace(target)
    except UnidentifiedImageError:
        return "no image"
    # What decoders raise about damaged files.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        unfinished.unlink(missing_ok=True)
        return str(error)
    return None


def make_all(paths, arguments):
    """What is wrong, by file; of those that nobody came to an end with, too. And how many workers were killed on purpose."""
    problems, killed = {}, 0
    left, ready = set(paths), set()
    context = multiprocessing.get_context(arguments.method)
    with context.Pool(
        arguments.workers,
        begin,
        (arguments.thumbnails, arguments.size),
        retries=RETRIES,
        timeout=MOST_TIME,
        max_memory_per_child=MOST_MEMORY,
    ) as pool:
        results = pool.imap_unordered(thumbnail, paths, progress=not arguments.quiet)
        for done in itertools.count(1):
            try:
                path, problem, worker = next(results)
                ready.add(worker)
                left.remove(path)
                if problem:
                    problems[path] = problem
            except StopIteration:
                break
            except (multiprocessing.WorkerDied, multiprocessing.TaskTimeoutError) as error:
                print(f"thumbnails: {error}", file=sys.stderr)
            if arguments.chaos and done % KILL_EVERY == 0:
                killed += kill_one_of(ready)
    problems.update((path, "given up") for path in left)
    return problems, killed


def kill_one_of(ready):
    """SIGKILLs a worker that has begun, if there is one just now; how many. A pool whose workers all die at their start gives up."""
    workers = [worker for worker in multiprocessing.active_children() if worker.pid in ready]
    if workers:
        random.choice(workers).kill()
    return len(workers[:1])


def main():
    parser = argparse.ArgumentParser(prog="thumbnails", description=__doc__.splitlines()[0])
    parser.add_argument("images", type=pathlib.Path, help="the folder with the images")
    parser.add_argument(
        "thumbnails", type=pathlib.Path, help="the folder for the thumbnails, made if need be"
    )
    parser.add_argument("--size", type=int, default=256, help="pixels that each is wide and high at most")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), metavar="N", help="worker processes")
    parser.add_argument(
        "--method", choices=multiprocessing.get_all_start_methods(), help="how they are started"
    )
    parser.add_argument("--chaos", action="store_true", help="kill a random worker now and then")
    parser.add_argument("--quiet", action="store_true", help="show neither progress nor summary")
    arguments = parser.parse_args()
    try:
        paths = sorted(path for path in arguments.images.iterdir() if path.is_file())
        arguments.thumbnails.mkdir(parents=True, exist_ok=True)
        problems, killed = make_all(paths, arguments)
    except (OSError, ValueError, multiprocessing.PoolBroken) as error:
        print(f"thumbnails: {error}", file=sys.stderr)
        return FAILED
    for path, problem in sorted(problems.items()):
        print(f"thumbnails: {path.name}: {problem}", file=sys.stderr)
    if not arguments.quiet:
        summary = f"{len(paths) - len(problems)} of {len(paths)} files have thumbnails"
        print(summary + (f", {killed} workers were killed" if arguments.chaos else ""))
    return INCOMPLETE if problems else 0


if __name__ == "__main__":
    sys.exit(main())
