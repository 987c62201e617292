"""mpire: worker pools with shared objects, worker state, insights and failing tasks."""

import sys

import mpire


def scale(shared, state, number):
    state["seen"] = state.get("seen", 0) + 1
    return shared["factor"] * number


def begin(_shared, state):
    state["seen"] = 0


def fail(number):
    if number == 7:
        raise ValueError(f"number {number}")
    return number


def main():
    method = sys.argv[1]
    with mpire.WorkerPool(
        2, shared_objects={"factor": 3}, use_worker_state=True, start_method=method
    ) as pool:
        doubled = pool.map(scale, range(100), worker_init=begin, chunk_size=5)
        assert doubled == [3 * number for number in range(100)]
        assert sorted(pool.imap_unordered(scale, range(20))) == [3 * number for number in range(20)]
    with mpire.WorkerPool(2, start_method=method, enable_insights=True) as pool:
        assert list(pool.imap(abs, range(-10, 10), max_tasks_active=4)) == [abs(n) for n in range(-10, 10)]
        assert sum(pool.get_insights()["n_completed_tasks"]) == 20
    with mpire.WorkerPool(2, start_method=method) as pool:
        try:
            pool.map(fail, range(20), chunk_size=1)
        except ValueError as error:
            assert "number 7" in str(error)
        else:
            raise AssertionError("no error")
    with mpire.WorkerPool(2, start_method=method, keep_alive=True) as pool:
        results = [pool.apply_async(pow, (2, power)) for power in range(10)]
        assert [result.get(60) for result in results] == [2**power for power in range(10)]
    print("as expected")


if __name__ == "__main__":
    main()
