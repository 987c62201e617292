"""Has words counted by a program in Rust (examples/interop), over two queues that both have by name.

    cargo build -p interop
    python examples/interop.py target/debug/interop README.md

Messages are MessagePack: dicts here, structs there.
"""

import collections
import os
import subprocess
import sys

from procession.queues import Queue


def main(program, *paths):
    name = f"words-{os.getpid()}"
    requests = Queue(name=f"{name}-requests", codec="msgpack")
    replies = Queue(name=f"{name}-replies", codec="msgpack")
    with subprocess.Popen([program, "open", name], stdout=subprocess.DEVNULL):
        sent = 0
        for path in paths:
            with open(path, encoding="utf-8") as file:
                for line in file:
                    requests.put({"id": sent, "text": line})
                    sent += 1
        requests.shutdown()
        words = collections.Counter()
        for _ in range(sent):
            words.update(replies.get()["words"])
    for word, count in words.most_common(10):
        print(f"{count:7} {word}")


if __name__ == "__main__":
    main(*sys.argv[1:])
