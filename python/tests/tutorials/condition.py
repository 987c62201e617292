"""The second stage waits on a condition until the first one is done.

Prints in any order:

    s1: done
    s2[1]: running
    s2[2]: running
    wait_for: True, then False
"""

import multiprocessing


def stage_1(cond, done):
    with cond:
        done.value = 1
        print(f"{multiprocessing.current_process().name}: done", flush=True)
        cond.notify_all()


def stage_2(cond, done):
    with cond:
        while not done.value:
            cond.wait()
        print(f"{multiprocessing.current_process().name}: running", flush=True)


if __name__ == "__main__":
    condition = multiprocessing.Condition()
    done = multiprocessing.Value("b", 0)
    s1 = multiprocessing.Process(name="s1", target=stage_1, args=(condition, done))
    s2_clients = [
        multiprocessing.Process(name=f"s2[{i}]", target=stage_2, args=(condition, done)) for i in range(1, 3)
    ]
    for c in s2_clients:
        c.start()
    s1.start()
    s1.join()
    for c in s2_clients:
        c.join()
    with condition:
        seen = condition.wait_for(lambda: done.value == 1)
        print(f"wait_for: {seen}, then {condition.wait(timeout=0.05)}", flush=True)
