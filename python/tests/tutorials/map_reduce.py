"""MapReduce on a pool: words are counted.

Prints:

    a: 3
    b: 2
    c: 1
"""

import collections
import itertools
import multiprocessing


class SimpleMapReduce:
    def __init__(self, map_func, reduce_func, num_workers=None):
        self.map_func = map_func
        self.reduce_func = reduce_func
        self.pool = multiprocessing.Pool(num_workers)

    def __call__(self, inputs, chunksize=1):
        mapped = self.pool.map(self.map_func, inputs, chunksize=chunksize)
        partitioned = collections.defaultdict(list)
        for key, value in itertools.chain(*mapped):
            partitioned[key].append(value)
        return self.pool.map(self.reduce_func, partitioned.items())


def words_of(line):
    return [(word, 1) for word in line.split()]


def count_words(item):
    word, occurrences = item
    return word, sum(occurrences)


if __name__ == "__main__":
    counts = SimpleMapReduce(words_of, count_words, 2)(["a b", "a b c", "a"])
    for word, count in sorted(counts):
        print(f"{word}: {count}")
