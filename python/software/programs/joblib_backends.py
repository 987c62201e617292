"""joblib over processes: its own loky, and multiprocessing."""

import multiprocessing
import sys

import joblib
import numpy


def total(array):
    return float(array.sum())


if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    arrays = [numpy.full(300_000, float(number)) for number in range(8)]
    for backend in ["loky", "multiprocessing"]:
        sums = joblib.Parallel(n_jobs=2, backend=backend)(joblib.delayed(total)(array) for array in arrays)
        assert sums == [300_000.0 * number for number in range(8)], (backend, sums)
    print("as expected")
