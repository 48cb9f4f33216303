"""Large objects that are not stored, and go through Dask: their memory is not in a pickle."""

from __future__ import annotations

import functools
import threading

import pytest

pytest.importorskip("distributed")
np = pytest.importorskip("numpy")
pd = pytest.importorskip("pandas")

# Of sockets of its own that Dask leaves to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
import distributed

from proxyexec import ProxySize, ProxyType, StoreExecutor
from tests.conftest import settle


class Nothing:
    """A type that no argument has."""


# Nothing is stored; ProxyNever would have calls pass by.
INLINE = ProxyType(Nothing)

SIZES = [10, 20_000, 300_000]


@pytest.fixture
def nothing_leaks():
    """Connections of Dask are kept for the next message; what is stored is counted here."""
    return


@pytest.fixture(scope="module", params=["processes", "threads"])
def client(request):
    processes = request.param == "processes"
    with (
        distributed.LocalCluster(
            2, threads_per_worker=1, dashboard_address=":0", processes=processes
        ) as cluster,
        distributed.Client(cluster) as one,
    ):
        yield one


@pytest.fixture
def executor(client):
    with StoreExecutor(client, None, INLINE, lazy=False) as one:
        yield one
        settle(one)
        assert one.store.usage() == (0, 0)


def frame(size):
    return pd.DataFrame({"a": np.arange(size, dtype=float), "b": np.ones(size, dtype=np.int32)})


def objects(size):
    read_only = np.arange(size)
    read_only.flags.writeable = False
    return [
        np.arange(size, dtype=np.float32),
        np.asfortranarray(np.arange(2.0 * size).reshape(2, -1)),
        np.arange(3.0 * size)[::3],
        read_only,
        frame(size),
        {"a": np.arange(size), "b": [bytes(size), "x" * size]},
        bytearray(size),
        list(range(size)),
    ]


def equal(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, pd.DataFrame):
        return one.equals(other)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    return type(one) is type(other) and one == other


def identity(obj):
    return obj


def change(array):
    array[:] = -1
    return array


def fail_after_changing(array, path):
    array += 1
    if not path.exists():
        path.touch()
        raise OSError("the first time")
    return array


@pytest.mark.parametrize("size", SIZES)
def test_objects_come_as_they_are(executor, size):
    for number, obj in enumerate(objects(size)):
        result = executor.submit(identity, obj).result()
        assert equal(obj, result), number
        passed = executor.submit(identity, executor.submit(identity, obj))
        assert equal(obj, passed.result()), number


@pytest.mark.parametrize("size", SIZES)
def test_several_at_once(executor, size):
    def pair(first, second, *, third):
        return third, second, first

    first, second, third = np.arange(size), frame(size), np.ones(size)
    found = executor.submit(pair, first, second, third=third).result()
    assert all(map(equal, found, (third, second, first)))
    same = executor.submit(lambda one, other: one is other, first, first)
    assert same.result() is True


@pytest.mark.parametrize("size", SIZES)
def test_tasks_may_write_and_nobody_sees(executor, size):
    array = np.arange(size)
    results = [executor.submit(change, array) for _ in range(4)]
    for result in results:
        assert (result.result() == -1).all()
    assert np.array_equal(array, np.arange(size))
    result = results[0].result()
    result += 1
    assert (results[1].result() == -1).all()


@pytest.mark.parametrize("size", SIZES)
def test_what_the_caller_changes_later_is_not_sent(executor, size):
    array = np.zeros(size)
    futures = []
    for number in range(20):
        array[:] = number
        futures.append(executor.submit(identity, array))
    array[:] = -1
    for number, future in enumerate(futures):
        assert (future.result() == number).all()


@pytest.mark.parametrize("size", SIZES)
def test_a_task_that_is_run_again_gets_what_was_sent(executor, size, tmp_path):
    path = tmp_path / "failed"
    future = executor.submit(fail_after_changing, np.zeros(size), path, retries=1)
    assert (future.result() == 1).all()


@pytest.mark.parametrize("size", SIZES)
def test_callables_that_carry_much(executor, size):
    carried = np.arange(size)
    call = functools.partial(np.add, carried)
    results = list(executor.map(call, [1, 2, 3]))
    assert all(np.array_equal(one, carried + n) for n, one in enumerate(results, 1))
    for chunksize in (2, "auto"):
        results = list(executor.map(identity, [carried, carried + 1], chunksize=chunksize))
        assert all(np.array_equal(one, carried + n) for n, one in enumerate(results))


def test_many_threads_submit(executor):
    def run(number):
        for turn in range(5):
            array = np.full(50_000, number * 10 + turn)
            assert np.array_equal(executor.submit(identity, array).result(), array)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_some_stored_and_some_not(client):
    with StoreExecutor(client, None, ProxySize("1 MB"), lazy=False) as executor:
        small, large = np.arange(20_000), np.arange(500_000)
        one, other = executor.submit(lambda *both: both[::-1], small, large).result()
        assert np.array_equal(one, large) and np.array_equal(other, small)
        settle(executor)
        assert executor.store.usage() == (0, 0)
