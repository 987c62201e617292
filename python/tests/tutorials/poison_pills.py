"""Consumers are a subclass of Process, tasks are objects, and a poison pill ends each consumer.

Prints in any order:

    0 * 0 = 0
    1 * 1 = 1
    2 * 2 = 4
    3 * 3 = 9
    4 * 4 = 16
    5 * 5 = 25
    6 * 6 = 36
    7 * 7 = 49
    Consumer 1: exiting
    Consumer 2: exiting
"""

import multiprocessing
import time


class Consumer(multiprocessing.Process):
    def __init__(self, task_queue, result_queue, name):
        multiprocessing.Process.__init__(self)
        self.task_queue = task_queue
        self.result_queue = result_queue
        self.name = name

    def run(self):
        while True:
            next_task = self.task_queue.get()
            if next_task is None:
                print(f"{self.name}: exiting", flush=True)
                self.task_queue.task_done()
                break
            answer = next_task()
            self.task_queue.task_done()
            self.result_queue.put(answer)


class Task:
    def __init__(self, a, b):
        self.a = a
        self.b = b

    def __call__(self):
        time.sleep(0.02)
        return f"{self} = {self.a * self.b}"

    def __str__(self):
        return f"{self.a} * {self.b}"


if __name__ == "__main__":
    tasks = multiprocessing.JoinableQueue()
    results = multiprocessing.Queue()
    consumers = [Consumer(tasks, results, f"Consumer {i}") for i in (1, 2)]
    for consumer in consumers:
        consumer.start()
    num_jobs = 8
    for i in range(num_jobs):
        tasks.put(Task(i, i))
    for _ in consumers:
        tasks.put(None)
    tasks.join()
    while num_jobs:
        print(results.get(), flush=True)
        num_jobs -= 1
