"""Hardened systems: `/proc` hides processes, shows those of others, or is missing; `/dev/shm`
cannot be used."""

import errno
import os
import subprocess
import sys

import pytest
from processes import HUNG

HIDE = "mount --make-rprivate / && mount -t proc -o hidepid=2 proc /proc"

BEGINNING = """
import os, procession, signal, sys, time, warnings
signal.alarm({hung})
context = procession.get_context({method!r})

def become_nobody():
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
"""


def run(tmp_path, code, unshare, script="true", method="fork"):
    """What a program prints that runs in namespaces of its own, after a shell script."""
    if subprocess.run(["unshare", *unshare, "true"], stderr=subprocess.DEVNULL).returncode:
        pytest.skip(f"SKIPPED: it needs root, and unshare {' '.join(unshare)}")
    # Every user may read it.
    os.chmod(tmp_path, 0o755)
    program = tmp_path / "program.py"
    program.write_text(BEGINNING.format(hung=HUNG, method=method) + code)
    command = ["unshare", *unshare, "sh", "-c", f'{script} || exit; exec "$@"', "sh", sys.executable, program]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    assert "panicked" not in done.stderr
    return done.stdout.split()


LOCK = """
def take(lock, reports):
    become_nobody()
    reports.put("begun")
    got = lock.acquire(timeout=2)
    reports.put(got)
    # Its holder ends meanwhile.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        lock.acquire()
    reports.put([warning.category.__name__ for warning in caught])

def hold(lock, held):
    lock.acquire()
    held.set()
    signal.pause()

if __name__ == "__main__":
    lock, held, reports = context.Lock(), context.Event(), context.Queue()
    # A process of root, which the other does not see.
    holder = context.Process(target=hold, args=(lock, held))
    holder.start()
    held.wait()
    waiter = context.Process(target=take, args=(lock, reports))
    waiter.start()
    print(reports.get(), reports.get())
    holder.kill()
    print(*reports.get())
    waiter.join()
"""


def test_a_hidden_process_keeps_its_lock_until_it_dies(tmp_path, context):
    printed = run(tmp_path, LOCK, ["-m"], HIDE, context.get_start_method())
    assert printed == ["begun", "False", "OwnerDiedWarning"]


DAEMON_AND_POOL = """
def wait(gate, begun):
    become_nobody()
    begun.set()
    gate.wait()

if __name__ == "__main__":
    gate, begun = context.Event(), context.Event()
    daemon = context.Process(target=wait, args=(gate, begun), daemon=True)
    daemon.start()
    begun.wait()
    gate.set()
    daemon.join()
    print(daemon.exitcode)
    with context.Pool(2, become_nobody, maxtasksperchild=1) as pool:
        print(*pool.map_async(abs, range(12), chunksize=1).get())
"""


def test_daemons_and_pools_that_give_up_root_where_processes_are_hidden(tmp_path, context):
    printed = run(tmp_path, DAEMON_AND_POOL, ["-m"], HIDE, context.get_start_method())
    assert printed == [str(number) for number in [0, *range(12)]]


ARGUMENTS = """
# Every user can reach it there.
__file__ = "/mnt/program.py"

def use(queue, lock, value, array):
    with lock:
        queue.put((value.value, array[1]))

if __name__ == "__main__":
    {hide}
    if not os.access(sys.executable, os.X_OK):
        print("unknown")
        raise SystemExit
    queue = context.Queue(abandonable=True)
    shared = context.Lock(), context.Value("i", 2), context.Array("i", 3)
    process = context.Process(target=use, args=(queue, *shared))
    process.start()
    process.join()
    print(process.exitcode, *queue.get())
    try:
        queue.get()
    except procession.Abandoned:
        print("abandoned")
    with context.Pool(2) as pool:
        print(*pool.map(abs, [-3, 4]))
"""


@pytest.mark.parametrize(
    "hide",
    # PR_SET_DUMPABLE
    ["become_nobody()", "import ctypes; ctypes.CDLL(None).prctl(4, 0)"],
    ids=["another user", "not dumpable"],
)
def test_who_hides_its_descriptors_starts_processes(tmp_path, context, hide):
    script = f"mount --bind {tmp_path} /mnt"
    printed = run(tmp_path, ARGUMENTS.replace("{hide}", hide), ["-m"], script, context.get_start_method())
    if printed == ["unknown"]:
        pytest.skip("SKIPPED: other users cannot execute this interpreter")
    assert printed == ["0", "2", "0", "abandoned", "3", "4"]


OBJECTS = """
def use(objects):
    for thing in objects:
        if hasattr(thing, "put"):
            thing.put(1)
        elif hasattr(thing, "acquire"):
            with thing:
                pass

if __name__ == "__main__":
    makers = ["Queue", "JoinableQueue", "SimpleQueue", "Lock", "RLock", "Semaphore", "Condition", "Event"]
    made = []
    for maker in makers:
        # Before Linux 6.11 objects need /proc.
        try:
            made.append(getattr(context, maker)())
        except OSError as error:
            assert "/proc" in str(error), error
            print("0", "7")
            raise SystemExit
    process = context.Process(target=use, args=(made,))
    process.start()
    process.join()
    print(process.exitcode)
    with context.Pool(1) as pool:
        print(pool.apply(abs, (-7,)))
"""


@pytest.mark.parametrize(
    ("unshare", "script"),
    [(["-m"], "umount -l /proc"), (["-p", "-f"], "true")],
    ids=["no /proc", "another /proc"],
)
def test_without_a_proc_of_its_own(tmp_path, unshare, script):
    assert run(tmp_path, OBJECTS, unshare, script) == ["0", "7"]


NAMED = """
import procession.queues

if __name__ == "__main__":
    if {as_nobody}:
        become_nobody()
    try:
        procession.queues.Queue(name="hardened", ctx=context)
    except OSError as error:
        assert "/dev/shm" in str(error), error
        print(error.errno)
    queue = context.Queue()
    queue.put(1)
    print(queue.get())
"""


@pytest.mark.parametrize("user", ["root", "nobody"])
def test_without_dev_shm(tmp_path, user):
    script, number = "mount -t tmpfs -o ro none /dev/shm", errno.EROFS
    if user == "nobody":
        script, number = "mount -t tmpfs -o mode=755 none /dev/shm", errno.EACCES
    printed = run(tmp_path, NAMED.format(as_nobody=user == "nobody"), ["-m"], script)
    assert printed == [str(number), "1"]
