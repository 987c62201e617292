"""Transfers between accounts: each takes the locks of two accounts, always in the same order.

Prints:

    the sum is 300
    no account is overdrawn: True
"""

import random
from multiprocessing import Array, Lock, Process


def transfer(accounts, locks, seed):
    choice = random.Random(seed)
    for _ in range(50):
        a, b = choice.sample(range(len(locks)), 2)
        with locks[min(a, b)], locks[max(a, b)]:
            amount = min(accounts[a], choice.randrange(20))
            accounts[a] -= amount
            accounts[b] += amount


if __name__ == "__main__":
    accounts = Array("i", [100, 100, 100])
    locks = [Lock() for _ in accounts]
    processes = [Process(target=transfer, args=(accounts, locks, seed)) for seed in range(4)]
    for p in processes:
        p.start()
    for p in processes:
        p.join()
    print("the sum is", sum(accounts))
    print("no account is overdrawn:", min(accounts) >= 0)
