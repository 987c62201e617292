"""dask's scheduler over processes."""

import multiprocessing
import sys

import dask


@dask.delayed
def add(a, b):
    return a + b


if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    numbers = [add(number, 1) for number in range(20)]
    with dask.config.set({"multiprocessing.context": sys.argv[1]}):
        result = dask.delayed(sum)(numbers).compute(scheduler="processes", num_workers=2)
    assert result == sum(range(21)), result
    print("as expected")
