"""A program in Python with a worker in Rust: plain data through named queues, in MessagePack.

    cargo xtask python examples/two_languages/two_languages.py cargo run --package two_languages --
"""

import collections
import os
import subprocess
import sys

import procession

TEXTS = ["All in order", "in order of the numbers", "the queue is in order"]


def main(worker):
    names = [f"two-languages-{what}-{os.getpid()}" for what in ("texts", "counts")]
    texts, counts = (procession.Queue(name=name, codec="msgpack") for name in names)
    process = subprocess.Popen([*worker, *names])
    texts.put_many({"number": number, "text": text} for number, text in enumerate(TEXTS))
    texts.shutdown()  # The worker ends when it has taken all.
    total = collections.Counter()
    for _ in TEXTS:
        counted = counts.get(timeout=300)
        print(f"text {counted['number']}: {sum(counted['words'].values())} words")
        total.update(counted["words"])
    print(", ".join(f"{word} {times}" for word, times in sorted(total.items())))
    return process.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
