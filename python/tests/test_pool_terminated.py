"""Whatever a pool is doing when it is terminated raises `PoolTerminated`."""

import itertools
import threading
import time

import procession
import pytest


def iterate(pool):
    for _ in pool.imap(abs, itertools.count()):
        pass


def call(pool):
    while True:
        pool.apply(abs, (1,))


def map_much(pool):
    while True:
        pool.map(abs, range(1000), chunksize=1)


def send_much(pool):
    while True:
        pool.apply(len, (bytes(1 << 20),))


@pytest.mark.parametrize("use", [iterate, call, map_much, send_much])
def test_what_is_handed_out_while_the_pool_ends(use):
    for n in range(10):
        errors = []

        def run():
            try:
                use(pool)
            except BaseException as error:
                errors.append(error)

        pool = procession.get_context("fork").Pool(2)
        threads = [threading.Thread(target=run, daemon=True) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(0.003 * n)
        pool.terminate()
        for thread in threads:
            thread.join()
        pool.join()
        for error in errors:
            # Who had no call under way is told that there can be no other.
            assert isinstance(error, procession.PoolTerminated) or str(error) == "Pool not running", repr(
                error
            )
        assert len(errors) == 3
