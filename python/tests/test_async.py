"""Waiting for queues with asyncio, and together with other things."""

import asyncio
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
from multiprocessing import connection
from queue import Empty, Full

import pytest
from procession.queues import JoinableQueue, Queue, ShutDown, SimpleQueue

FORK = multiprocessing.get_context("fork")


def start(target, *args):
    process = FORK.Process(target=target, args=args, daemon=True)
    process.start()
    return process


def double(there, back):
    for number in iter(there.get, None):
        back.put(number * 2)


def test_get_and_put_of_tasks():
    there, back = Queue(3), Queue(3)
    worker = start(double, there, back)

    async def put():
        for number in range(500):
            await there.aput(number)
        await there.aput(None)

    async def get():
        return [await back.aget() for _ in range(500)]

    async def main():
        threads = threading.active_count()
        _, got = await asyncio.gather(put(), get())
        assert threading.active_count() == threads
        return got

    assert asyncio.run(main()) == [number * 2 for number in range(500)]
    worker.join()


def test_other_tasks_run_while_one_waits():
    queue = Queue()
    order = []

    async def wait():
        order.append(await queue.aget())

    async def main():
        waiting = asyncio.create_task(wait())
        for number in range(3):
            await asyncio.sleep(0)
            order.append(number)
        queue.put("got")
        await waiting

    asyncio.run(main())
    assert order == [0, 1, 2, "got"]


def test_several_tasks_wait_for_one_queue():
    queue = Queue()
    results = Queue()

    async def wait():
        return await queue.aget()

    async def main():
        tasks = [asyncio.create_task(wait()) for _ in range(10)]
        await asyncio.sleep(0.01)
        queue.put_many(range(10))
        return await asyncio.gather(*tasks)

    assert sorted(asyncio.run(main())) == list(range(10))
    assert queue.empty() and results.empty()


def test_a_cancelled_task_takes_nothing():
    queue = Queue()
    full = Queue(1)
    full.put(1)

    async def main():
        for use in (queue.aget(), full.aput(2)):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(use, 0.02)
        first, second = asyncio.create_task(queue.aget()), asyncio.create_task(queue.aget())
        await asyncio.sleep(0.01)
        first.cancel()
        queue.put("for the second")
        assert await second == "for the second"
        with pytest.raises(asyncio.CancelledError):
            await first

    asyncio.run(main())
    assert full.get() == 1 and full.empty() and queue.empty()
    # Nothing of the loop is left behind.
    from procession import _asyncio

    assert not _asyncio._waiting


def test_shutdown_ends_the_wait_of_tasks():
    queue, full = Queue(), Queue(1)
    full.put(1)

    async def main():
        tasks = [asyncio.create_task(queue.aget()), asyncio.create_task(full.aput(2))]
        await asyncio.sleep(0.01)
        queue.shutdown()
        full.shutdown()
        for task in tasks:
            with pytest.raises(ShutDown):
                await task

    asyncio.run(main())


def take(queue, taken):
    queue.get()
    taken.put(1)
    signal.pause()


def test_a_task_gets_what_a_dead_consumer_had():
    queue, taken = JoinableQueue(redeliver=True), Queue()
    queue.put("again")
    worker = start(take, queue, taken)
    taken.get()

    async def main():
        waiting = asyncio.create_task(queue.aget())
        await asyncio.sleep(0.01)
        worker.kill()
        return await waiting

    assert asyncio.run(main()) == "again"
    queue.task_done()
    queue.join()
    worker.join()


def put_after(queue, gate, value):
    gate.recv()
    queue.put(value)


def test_connection_wait_takes_queues_sockets_and_sentinels():
    queue, simple = Queue(), SimpleQueue()
    ours, theirs = socket.socketpair()
    gate, their_gate = multiprocessing.Pipe()
    worker = start(put_after, queue, their_gate, "from the worker")
    readers = [queue._reader, simple._reader, ours, worker.sentinel]
    assert connection.wait(readers, 0) == []
    gate.send("go")
    while True:
        ready = connection.wait(readers)
        if queue._reader in ready:
            break
    assert queue._reader.recv() == "from the worker"
    worker.join()
    assert connection.wait(readers) == [worker.sentinel]
    theirs.send(b"x")
    simple.put(1)
    assert set(connection.wait(readers[:3])) == {simple._reader, ours}
    assert simple.get() == 1
    assert connection.wait([queue._reader, simple._reader], 0.01) == []


def test_poll():
    queue = Queue()
    assert not queue._reader.poll() and not queue._reader.poll(0.01) and not queue._poll(0)
    queue.put(1)
    assert queue._reader.poll() and queue._reader.poll(None) and queue._poll()
    queue.get()
    assert not queue._reader.poll(0.01)
    gate, their_gate = multiprocessing.Pipe()
    worker = start(put_after, queue, their_gate, 2)
    gate.send("go")
    assert queue._reader.poll(60)
    assert queue.get() == 2
    worker.join()


def test_a_forked_child_has_a_descriptor_of_its_own():
    queue = Queue()
    assert connection.wait([queue._reader], 0) == []
    pid = os.fork()
    if not pid:
        ready = connection.wait([queue._reader], 60)
        os._exit(0 if ready and queue.get() == 1 else 1)
    queue.put(1)
    assert os.waitpid(pid, 0)[1] == 0
    with pytest.raises(Empty):
        queue.get(block=False)
    assert connection.wait([queue._reader], 0) == []


def test_room_can_be_waited_for():
    queue = Queue(1)
    assert connection.wait([queue._writer], 60)
    queue.put(1)
    assert connection.wait([queue._writer], 0.01) == []
    with pytest.raises(Full):
        queue.put(2, block=False)
    queue.get()
    assert connection.wait([queue._writer], 60)


EXECUTOR = """
import faulthandler, os, signal, sys
import procession
procession.install()
import concurrent.futures.process
import multiprocessing
import procession.queues

def square(number):
    return number * number

def die(_):
    os.kill(os.getpid(), signal.SIGKILL)

if __name__ == '__main__':
    faulthandler.dump_traceback_later(100, exit=True)
    context = multiprocessing.get_context(sys.argv[1])
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as executor:
        assert type(executor._result_queue) is procession.queues.SimpleQueue
        assert list(executor.map(square, range(200))) == [number * number for number in range(200)]
        refused = executor.submit(square, lambda: None)
        assert 'pickle' in str(refused.exception())
        assert executor.submit(square, 3).result() == 9
        killed = executor.submit(die, 1)
        assert type(killed.exception()).__name__ == 'BrokenProcessPool'
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_an_executor_over_these_queues(method, tmp_path):
    script = tmp_path / "executor.py"
    script.write_text(EXECUTOR)
    subprocess.run([sys.executable, script, method], check=True)


def test_a_task_waits_for_room_in_bytes():
    queue = Queue(max_bytes=4 << 20)
    for _ in range(3):
        queue.put(b"x" * (1 << 20))

    async def main():
        put = asyncio.create_task(queue.aput(b"y" * (2 << 20)))
        ticks = 0
        while ticks < 20:
            await asyncio.sleep(0.005)
            ticks += 1
        assert not put.done()
        for _ in range(3):
            await queue.aget()
        await put

    asyncio.run(main())
    assert queue.get() == b"y" * (2 << 20)
