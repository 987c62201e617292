"""Contexts: programs use several start methods, and libraries choose without a word to others.

Prints:

    fork: hello
    spawn: hello
    forkserver: hello
    ['fork', 'forkserver', 'spawn']
    the context is set: RuntimeError
"""

import multiprocessing as mp


def foo(q):
    q.put("hello")


if __name__ == "__main__":
    for method in ("fork", "spawn", "forkserver"):
        ctx = mp.get_context(method)
        q = ctx.Queue()
        p = ctx.Process(target=foo, args=(q,))
        p.start()
        print(f"{method}: {q.get()}", flush=True)
        p.join()
    print(sorted(mp.get_all_start_methods()))
    mp.set_start_method(mp.get_start_method(), force=True)
    try:
        mp.set_start_method("spawn")
    except RuntimeError as error:
        print("the context is set:", type(error).__name__)
