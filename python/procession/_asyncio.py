"""Tasks of asyncio that wait for a queue."""

import collections

# How often a task that waits looks for what dead consumers had, in seconds.
_LOOK = 0.25

# The futures that wait, by event loop and descriptor: a loop has one callback for a descriptor, and all
# handles of a process to a queue have the same.
_waiting: dict[tuple, collections.deque] = {}


async def wait(fd, looks):
    """Waits until the descriptor that `fd` returns may be readable. If `looks`, for _LOOK seconds at most.

    The descriptor is one of a queue, which the caller keeps, and up to date each time that `fd` is called.
    """
    import asyncio

    loop = asyncio.get_running_loop()
    try:
        number = fd()
    except BlockingIOError:
        # A process that is stopped inside the queue has its lock.
        await asyncio.sleep(_LOOK)
        return
    future = loop.create_future()
    key = loop, number
    futures = _waiting.get(key)
    if futures is None:
        futures = _waiting[key] = collections.deque()
        loop.add_reader(number, _readable, futures)
    futures.append(future)
    timer = loop.call_later(_LOOK, _end, future) if looks else None
    try:
        await future
    finally:
        if timer is not None:
            timer.cancel()
        futures.remove(future)
        if not futures:
            del _waiting[key]
            loop.remove_reader(number)


def _end(future):
    if not future.done():
        future.set_result(None)


def _readable(futures):
    # One at a time: the descriptor is readable for as long as there is something for the next one.
    for future in futures:
        if not future.done():
            future.set_result(None)
            return
