"""The package in the place of multiprocessing."""

import pathlib
import signal
import subprocess
import sys
import textwrap

import pytest
from processes import METHODS

WATCHDOG = 120
# What each process finds: whether a name that was bound before is ours.
CHECK = """
import multiprocessing
from multiprocessing import Lock, Pool, Process, Queue, get_context

def kinds():
    made = (
        Queue(), Lock(), multiprocessing.SimpleQueue(), get_context("spawn").Event(),
        multiprocessing.Value("i").get_lock(), multiprocessing.queues.JoinableQueue(ctx=get_context()),
    )
    return {type(thing).__module__.partition(".")[0] for thing in made}
"""


def run(*arguments, check=True, cwd=None):
    """The lines that Python prints with these arguments."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=WATCHDOG,
        stdin=subprocess.DEVNULL,
        cwd=cwd,
    )
    if check:
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()
    return done


def program(directory, text, name="program.py"):
    path = pathlib.Path(directory, name)
    path.write_text(textwrap.dedent(text))
    return path


FAMILY = (
    CHECK
    + """
def grandchild(queue):
    queue.put(("grandchild", kinds(), __name__, sys.argv[1:]))

def child(queue):
    queue.put(("child", kinds(), __name__, sys.argv[1:]))
    process = Process(target=grandchild, args=(queue,))
    process.start()
    process.join()

import sys

if __name__ == "__main__":
    INSTALL
    multiprocessing.set_start_method(sys.argv[1])
    queue = Queue()
    print(kinds(), sys.argv[1:])
    process = Process(target=child, args=(queue,))
    process.start()
    print(*queue.get())
    print(*queue.get())
    process.join()
    with Pool(2) as pool:
        print(pool.map(abs, [-1, 2]))
"""
)


def expected(method):
    name = "__main__" if method == "fork" else "__mp_main__"
    return [
        f"{{'procession'}} ['{method}', '-m', 'x']",
        f"child {{'procession'}} {name} ['{method}', '-m', 'x']",
        f"grandchild {{'procession'}} {name} ['{method}', '-m', 'x']",
        "[1, 2]",
    ]


@pytest.mark.parametrize("method", METHODS)
def test_install_reaches_children(tmp_path, method):
    text = FAMILY.replace("INSTALL", "import procession; procession.install(); procession.install()")
    assert run(program(tmp_path, text), method, "-m", "x") == expected(method)


@pytest.mark.parametrize("method", METHODS)
def test_a_script(tmp_path, method):
    path = program(tmp_path, FAMILY.replace("INSTALL", "pass"))
    assert run("-m", "procession", path, method, "-m", "x") == expected(method)


@pytest.mark.parametrize("method", METHODS)
def test_a_module(tmp_path, method):
    program(tmp_path, FAMILY.replace("INSTALL", "pass"))
    assert run("-m", "procession", "-m", "program", method, "-m", "x", cwd=tmp_path) == expected(method)


@pytest.mark.parametrize("method", METHODS)
def test_code(method):
    code = """
import sys, multiprocessing
multiprocessing.set_start_method(sys.argv[1])
queue = multiprocessing.Queue()
multiprocessing.Process(target=queue.put, args=(queue,)).start()
print(type(queue.get()).__module__, sys.argv)
"""
    assert run("-m", "procession", "-c", code, method) == [f"procession.queues ['-c', '{method}']"]


MAIN = """
    import sys, __main__
    print(__name__, __file__, sys.argv, sys.path[0], __package__)
    print(__main__.__spec__ and __main__.__spec__.name)
    print(sorted(vars()))
"""


def test_the_program_finds_what_it_finds_without(tmp_path):
    path = program(tmp_path, MAIN)
    package = tmp_path / "package"
    package.mkdir()
    program(package, MAIN, "__main__.py")
    program(package, "", "__init__.py")
    for arguments in (
        [path, "-a"],
        ["program.py"],
        [package],
        ["-m", "package", "b"],
        ["-m", "program"],
        ["-c", "import sys; print(sys.argv, sys.path[0], __name__, sorted(vars()))", "-c", "x"],
    ):
        plain = run(*arguments, cwd=tmp_path)
        with_ours = run("-m", "procession", *arguments, cwd=tmp_path)
        assert with_ours == plain


def test_a_traceback_is_the_program_s(tmp_path):
    path = program(tmp_path, "def f():\n    raise KeyError('gone')\nf()\n")
    plain = run(path, check=False)
    with_ours = run("-m", "procession", path, check=False)
    assert (with_ours.returncode, with_ours.stdout, with_ours.stderr) == (1, "", plain.stderr)


def test_exit_codes(tmp_path):
    assert run("-m", "procession", "-c", "raise SystemExit(7)", check=False).returncode == 7
    done = run("-m", "procession", "-c", "import sys; sys.exit('bad luck')", check=False)
    assert (done.returncode, done.stderr) == (1, "bad luck\n")
    code = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"
    assert run("-m", "procession", "-c", code, check=False).returncode == -signal.SIGINT
    done = run("-m", "procession", tmp_path / "nothing.py", check=False)
    assert done.returncode == 2 and f"can't open file '{tmp_path}/nothing.py': [Errno 2]" in done.stderr
    done = run("-m", "procession", "-m", "nothing", check=False)
    assert (done.returncode, done.stderr) == (1, f"{sys.executable}: No module named nothing\n")


def test_the_command_line():
    done = run("-m", "procession", check=False)
    assert done.returncode == 2
    assert "usage: python -m procession" in done.stderr
    assert any("usage: python -m procession" in line for line in run("-m", "procession", "--help"))
    for arguments in (["-c"], ["-m"], ["--nothing"]):
        done = run("-m", "procession", *arguments, check=False)
        assert done.returncode == 2
        assert "error:" in done.stderr


def test_daemons_and_interrupt_of_multiprocessing_s_own_classes(tmp_path):
    text = """
        import multiprocessing, os, sys, time
        import procession

        def parent(method, writer):
            context = multiprocessing.get_context(method)
            daemon = context.Process(target=time.sleep, args=(1000,), daemon=True)
            daemon.start()
            writer.send(daemon.pid)
            os.kill(os.getpid(), 9)

        def wait(writer):
            writer.send(True)
            # A signal that comes just before a sleep ends only the next one.
            while True:
                time.sleep(0.01)

        def is_running(pid):
            try:
                with open(f"/proc/{pid}/stat") as file:
                    return file.read().rpartition(")")[2].split()[0] not in "ZX"
            except FileNotFoundError:
                return False

        if __name__ == "__main__":
            procession.install()
            for method in multiprocessing.get_all_start_methods():
                reader, writer = multiprocessing.Pipe(False)
                process = multiprocessing.get_context("spawn").Process(target=parent, args=(method, writer))
                process.start()
                pid = reader.recv()
                process.join()
                while is_running(pid):
                    time.sleep(0.01)
            reader, writer = multiprocessing.Pipe(False)
            process = multiprocessing.Process(target=wait, args=(writer,))
            process.start()
            reader.recv()
            process.interrupt()
            process.join()
            print(process.exitcode)
    """
    # It has ended by KeyboardInterrupt.
    assert run(program(tmp_path, text)) == ["1"]


def test_modules_that_had_their_names_before(tmp_path):
    program(tmp_path, "from multiprocessing import Manager, Queue, Pool, Value\n", "library.py")
    text = """
        import library, procession
        procession.install()
        print(type(library.Queue()).__module__, type(library.Value("i").get_lock()).__module__)
        with library.Manager() as manager, library.Pool(1) as pool:
            print(type(manager.Queue()).__module__, type(pool).__module__)
    """
    path = program(tmp_path, text)
    assert run(path) == ["procession.queues procession.synchronize", "procession.managers procession.pool"]


@pytest.mark.parametrize("base", ["multiprocessing.queues", "procession.queues"])
def test_an_executor_and_a_thread_pool(tmp_path, base):
    """Of an executor whose queue derives from CPython's, as it was there before, and from ours."""
    text = """
        import multiprocessing, multiprocessing.pool, os, sys
        if sys.argv[1] == "multiprocessing.queues":
            import concurrent.futures.process
        import procession
        procession.install()
        import concurrent.futures.process as futures

        class Stubborn:
            def __reduce__(self):
                raise RuntimeError("no pickle")

        if __name__ == "__main__":
            assert futures._SafeQueue.__mro__[1].__module__ == sys.argv[1]
            with multiprocessing.pool.ThreadPool(2) as pool:
                print(pool.map(abs, [-1]))
            for method in multiprocessing.get_all_start_methods():
                context = multiprocessing.get_context(method)
                with futures.ProcessPoolExecutor(2, mp_context=context) as executor:
                    print(list(executor.map(abs, range(-3, 0))))
                    error = executor.submit(abs, Stubborn()).exception()
                    print(type(error).__name__, error)
                    print(type(executor.submit(os._exit, 1).exception()).__name__)
    """
    lines = run(program(tmp_path, text), base)
    assert lines == ["[1]"] + ["[3, 2, 1]", "RuntimeError no pickle", "BrokenProcessPool"] * 3


USES = """
import abc, functools, inspect, multiprocessing, multiprocessing.pool, multiprocessing.queues, operator, pickle
import multiprocessing.sharedctypes, multiprocessing.synchronize, types, unittest.mock
import procession
procession.install()

def check(name, make):
    cls = operator.attrgetter(name)(multiprocessing)
    thing = make()
    kind = functools.singledispatch(lambda thing: None)
    kind.register(cls, lambda thing: name)
    class Registered(abc.ABC):
        pass
    Registered.register(cls)
    assert inspect.isclass(cls) and type(thing) is cls and cls.__name__ in name
    assert kind(thing) == name and isinstance(thing, Registered)
    match thing:
        case cls():
            pass
        case _:
            raise AssertionError(name)
    assert pickle.loads(pickle.dumps(cls)) is cls
    assert isinstance(cls | None, types.UnionType)
    with unittest.mock.patch(f"multiprocessing.{name}.noted", 5, create=True):
        assert thing.noted == 5
    assert not hasattr(thing, "noted")
"""


def test_names_are_classes(tmp_path):
    text = """
        with multiprocessing.Pool(1) as pool:
            for name, make in {
                "queues.Queue": multiprocessing.Queue,
                "queues.JoinableQueue": multiprocessing.JoinableQueue,
                "queues.SimpleQueue": multiprocessing.SimpleQueue,
                "pool.Pool": lambda: pool,
                "synchronize.Lock": multiprocessing.Lock,
                "synchronize.RLock": multiprocessing.RLock,
                "synchronize.Semaphore": multiprocessing.Semaphore,
                "synchronize.BoundedSemaphore": multiprocessing.BoundedSemaphore,
                "synchronize.Condition": multiprocessing.Condition,
                "synchronize.Event": multiprocessing.Event,
                "synchronize.Barrier": lambda: multiprocessing.Barrier(1),
                "sharedctypes.Synchronized": lambda: multiprocessing.Value("i"),
                "sharedctypes.SynchronizedArray": lambda: multiprocessing.Array("i", 1),
                "sharedctypes.SynchronizedString": lambda: multiprocessing.Array("c", 1),
            }.items():
                check(name, make)
        Queue = multiprocessing.queues.Queue
        with unittest.mock.patch("multiprocessing.queues.Queue.get", return_value=7):
            assert multiprocessing.Queue().get_nowait() == multiprocessing.Queue().get(timeout=1) == 7
        with multiprocessing.pool.ThreadPool(1) as threads:
            assert isinstance(threads, multiprocessing.pool.Pool)
            assert isinstance(threads.apply_async(abs, (1,)), multiprocessing.pool.AsyncResult)
        print(Queue[int], Queue | None)
    """
    lines = run(program(tmp_path, USES + textwrap.dedent(text)))
    assert lines == ["procession.queues.Queue[int] procession.queues.Queue | None"]


def test_classes_derived_from_the_queues(tmp_path):
    """One that was defined before, one that uses private parts of CPython's, and any other."""
    text = """
        import multiprocessing.queues, sys
        CPYTHONS = multiprocessing.queues.JoinableQueue
        class Before(CPYTHONS):
            pass
        import procession
        procession.install()
        class Counted(multiprocessing.queues.JoinableQueue):
            def __init__(self, maxsize=0, *, ctx=None):
                super().__init__(maxsize, ctx=ctx)
            def put(self, *arguments):
                super().put(*arguments)
        class Feeding(multiprocessing.queues.JoinableQueue):
            fed = False
            def __getstate__(self):
                return *super().__getstate__(), self.fed
            def __setstate__(self, state):
                super().__setstate__(state[:-1])
                self.fed = state[-1]
            def _start_thread(self):
                self.fed = True
                super()._start_thread()
        class Reading(multiprocessing.queues.SimpleQueue):
            def get(self):
                with self._rlock:
                    return multiprocessing.reduction.ForkingPickler.loads(self._reader.recv_bytes())
        def use(queue):
            assert queue.get() == "from the parent"
            if hasattr(queue, "task_done"):
                queue.task_done()
            queue.put("from the child")
        if __name__ == "__main__":
            for method in multiprocessing.get_all_start_methods():
                context = multiprocessing.get_context(method)
                for cls in Before, Counted, Feeding, Reading:
                    queue = cls(ctx=context)
                    queue.put("from the parent")
                    process = context.Process(target=use, args=(queue,))
                    process.start()
                    process.join(60)
                    is_theirs = hasattr(queue, "_rlock")
                    print(cls.__name__, process.exitcode, queue.get(), is_theirs, isinstance(queue, CPYTHONS))
            feeding = Feeding(ctx=context)
            feeding.put_nowait(1)
            assert feeding.fed and feeding.get() == 1
            assert isinstance(feeding, multiprocessing.queues.JoinableQueue)
    """
    expected = [
        "Before 0 from the child True True",
        "Counted 0 from the child False True",
        "Feeding 0 from the child True True",
        "Reading 0 from the child True False",
    ]
    assert run(program(tmp_path, text)) == expected * len(METHODS)


POOLS = """
        class {when}Recording(multiprocessing.pool.Pool):
            calls = 0
            def apply_async(self, func, args=(), kwds={{}}, callback=None, error_callback=None):
                self.calls += 1
                return super().apply_async(func, args, kwds, callback, error_callback)
        class {when}Queues(multiprocessing.pool.Pool):
            calls = "queues"
            def _setup_queues(self):
                super()._setup_queues()
                self.was_set_up = True
"""


def test_classes_derived_from_the_pool(tmp_path):
    """One that overrides what is public and one that has queues of its own, before and
    afterwards."""
    text = f"""
        import multiprocessing, multiprocessing.pool
        {POOLS.format(when="Before")}
        import procession
        procession.install()
        {POOLS.format(when="After")}
        if __name__ == "__main__":
            for method in multiprocessing.get_all_start_methods():
                for cls in BeforeRecording, BeforeQueues, AfterRecording, AfterQueues:
                    with cls(1, context=multiprocessing.get_context(method)) as pool:
                        assert isinstance(pool, multiprocessing.pool.Pool)
                        print(pool.apply(abs, (-1,)), pool.map(abs, [-2]), pool.calls, hasattr(pool, "was_set_up"))
    """
    assert run(program(tmp_path, text)) == ["1 [2] 1 False", "1 [2] queues True"] * 6


def test_blocks_that_were_there_before_are_removed(tmp_path):
    text = """
    from multiprocessing import shared_memory
    import procession

    made = shared_memory.SharedMemory(create=True, size=10)
    opened = shared_memory.SharedMemory(made.name)
    items = shared_memory.ShareableList(["one"])
    procession.install()
    items[0] = "two"
    print(*items)
    for block in opened, made, items.shm:
        block.close()
    made.unlink()
    items.shm.unlink()
    """
    done = run(program(tmp_path, text), check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "two\n", "")


@pytest.mark.parametrize("method", METHODS)
def test_objects_that_were_made_before_go_to_children(tmp_path, method):
    text = """
    import multiprocessing
    import sys

    def child(queue, tasks, simple, locks, event, barrier, value, array, end):
        for lock in locks:
            with lock:
                value.value += 1
        array[0] = queue.get(timeout=60)
        assert tasks.get(timeout=60) == "task"
        tasks.task_done()
        simple.put({type(thing).__module__ for thing in (queue, tasks, simple, event, barrier, *locks)})
        event.set()
        barrier.wait(60)
        end.send("sent")

    if __name__ == "__main__":
        context = multiprocessing.get_context(sys.argv[1])
        queue, tasks, simple = context.Queue(3), context.JoinableQueue(), context.SimpleQueue()
        locks = [
            getattr(context, name)()
            for name in ("Lock", "RLock", "Semaphore", "BoundedSemaphore", "Condition")
        ]
        event, barrier = context.Event(), context.Barrier(2)
        value, array = context.Value("i"), context.Array("i", 1)
        ours, theirs = context.Pipe()

        import procession

        procession.install()
        arguments = queue, tasks, simple, locks, event, barrier, value, array, theirs
        process = multiprocessing.get_context(sys.argv[1]).Process(target=child, args=arguments)
        process.start()
        queue.put(7)
        tasks.put("task")
        tasks.join()
        print(simple.get())
        event.wait(60)
        barrier.wait(60)
        print(ours.recv(), value.value, array[0])
        process.join()
        print(process.exitcode)
    """
    modules, *rest = run(program(tmp_path, text), method)
    assert "procession" not in modules
    assert rest == ["sent 5 7", "0"]
