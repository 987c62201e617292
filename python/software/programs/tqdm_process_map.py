"""tqdm's maps over processes, with its lock shared among them."""

import multiprocessing
import sys

import tqdm
import tqdm.contrib.concurrent


def square(number):
    tqdm.tqdm.write(f"{number} squared", file=sys.stderr)
    return number * number


if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    squares = tqdm.contrib.concurrent.process_map(square, range(50), max_workers=2, chunksize=5)
    assert squares == [number * number for number in range(50)]
    # Its lock is one of threads too, which only a fork can hand on.
    shared = (
        {"initializer": tqdm.tqdm.set_lock, "initargs": (tqdm.tqdm.get_lock(),)}
        if sys.argv[1] == "fork"
        else {}
    )
    with multiprocessing.Pool(2, **shared) as pool:
        assert list(tqdm.tqdm(pool.imap(square, range(20)), total=20)) == squares[:20]
    print("as expected")
