"""The drop-in pools: the standard library's signatures and behaviour, real objects throughout."""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import multiprocessing
import sys
import weakref
from concurrent.futures.process import BrokenProcessPool

import pytest

import proxyexec
from proxyexec import is_proxy
from proxyexec.errors import ArrivalError, SerializationError
from proxyexec.pools import STORED_FROM
from tests import functions


@pytest.mark.parametrize("name", ["ProcessPoolExecutor", "ThreadPoolExecutor"])
def test_signatures_are_the_standard_librarys(name):
    ours = inspect.signature(getattr(proxyexec, name)).parameters
    theirs = inspect.signature(getattr(concurrent.futures, name)).parameters
    for parameter, (kind, default) in {
        key: (one.kind, one.default) for key, one in theirs.items() if key != "ctxkwargs"
    }.items():
        assert ours[parameter].kind == kind
        assert ours[parameter].default == default
    newer = set(ours) - set(theirs)
    assert not newer or sys.version_info < (3, 11)


@pytest.fixture(scope="module", params=["fork", "forkserver", "spawn"])
def pool(request):
    context = multiprocessing.get_context(request.param)
    with proxyexec.ProcessPoolExecutor(1, mp_context=context) as pool:
        pool.submit(functions.add, 1, 1).result()
        yield pool


@pytest.mark.parametrize("size", [10, STORED_FROM - 1, STORED_FROM, 3_000_000])
def test_objects_in_and_objects_out(pool, size):
    value = bytes(range(256)) * (size // 256 + 1)
    assert pool.submit(functions.kind, value).result() == ("bytes", False, False)
    result = pool.submit(functions.identity, value).result()
    assert type(result) is bytes
    assert result == value
    assert not is_proxy(result)


def test_arrays_are_writable_and_nobody_elses(pool):
    np = pytest.importorskip("numpy")
    for size in (10, 1_000_000):
        array = np.arange(size)
        results = list(pool.map(functions.identity, [array, array]))
        results[0][:] = 0
        assert np.array_equal(results[1], array)
        assert type(results[1]) is np.ndarray


def test_a_large_object_in_the_store_is_found_by_its_size_only(pool):
    np = pytest.importorskip("numpy")
    future = pool.submit(functions.identity, np.zeros(1_000_000))
    assert future.result().nbytes == 8_000_000
    del future
    assert pool.store.usage() == (0, 0)


def test_lambdas_and_their_results(pool):
    assert list(pool.map(lambda x: (lambda y: x + y)(1), range(3))) == [1, 2, 3]


def test_initializers():
    with proxyexec.ProcessPoolExecutor(1, None, _set_up, (5,)) as pool:
        assert pool.submit(_what_was_set_up).result() == 5
    with proxyexec.ThreadPoolExecutor(1, "name", _set_up, (6,)) as pool:
        assert pool.submit(_what_was_set_up).result() == 6


_value = None


def _set_up(value):
    global _value
    _value = value


def _what_was_set_up():
    return _value


def test_a_worker_that_dies_breaks_the_pool_and_leaves_nothing():
    np = pytest.importorskip("numpy")
    with proxyexec.ProcessPoolExecutor(1) as pool:
        future = pool.submit(functions.die, np.zeros(1_000_000))
        with pytest.raises(concurrent.futures.process.BrokenProcessPool):
            future.result()


@pytest.mark.parametrize(
    ("function", "error"),
    [
        (functions.return_unpicklable, SerializationError),
        (functions.return_breaking, ArrivalError),
        (functions.return_exiting, ArrivalError),
    ],
    ids=["unpicklable", "breaking", "exiting"],
)
@pytest.mark.parametrize("stored", [False, True])
def test_results_that_cannot_travel_fail_their_future_only(pool, function, error, stored):
    future = pool.submit(functions.with_data, function, 300_000 if stored else 1)
    assert isinstance(future.exception(), error)
    with pytest.raises(error):
        future.result()
    # As the standard library's pool says, which breaks of it.
    assert isinstance(future.exception(), BrokenProcessPool) == (error is ArrivalError)
    assert pool.submit(functions.add, 1, 1).result() == 2


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        (functions.Unpicklable, SerializationError),
        (functions.BreaksOnArrival, ArrivalError),
        (functions.ExitsOnArrival, ArrivalError),
    ],
)
@pytest.mark.parametrize("stored", [False, True])
def test_arguments_that_cannot_travel_fail_their_future_only(pool, kind, error, stored):
    argument = [kind(), *map(str, range(50_000 if stored else 1))]
    future = pool.submit(functions.identity, argument)
    assert isinstance(future.exception(), error)
    assert "argument 0" in str(future.exception())
    assert pool.submit(functions.add, 1, 1).result() == 2


def test_threads_see_what_tasks_do_to_their_arguments():
    np = pytest.importorskip("numpy")
    shared = np.zeros(1_000_000)
    with proxyexec.ThreadPoolExecutor(2) as pool:
        list(pool.map(shared.__setitem__, range(5), [1.0] * 5))
        assert pool.submit(functions.identity, shared).result() is shared
    assert shared.sum() == 5


def test_asyncio_runs_in_our_pools():
    async def program():
        with proxyexec.ProcessPoolExecutor(1) as pool:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(pool, functions.make_list, 100_000)

    assert len(asyncio.run(program())) == 100_000


def test_cancel_futures():
    with proxyexec.ProcessPoolExecutor(1) as pool:
        futures = [pool.submit(functions.make_bytes, STORED_FROM) for _ in range(20)]
        pool.shutdown(cancel_futures=True)
    assert all(future.done() for future in futures)
    assert any(future.cancelled() for future in futures)
    assert len(futures[0].result()) == STORED_FROM


def test_they_are_pools_of_the_standard_library():
    with proxyexec.ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as processes:
        assert isinstance(processes, concurrent.futures.ProcessPoolExecutor)
        assert processes._max_workers == 2
        assert processes._mp_context.get_start_method() == "spawn"
    with proxyexec.ThreadPoolExecutor(2) as threads:
        assert isinstance(threads, concurrent.futures.ThreadPoolExecutor)
        asyncio.run(use_by_default(threads))


async def use_by_default(pool):
    loop = asyncio.get_running_loop()
    loop.set_default_executor(pool)
    assert await asyncio.to_thread(functions.add, 1, 2) == 3


def test_they_can_take_the_place_of_the_standard_librarys(monkeypatch):
    for name in ("ProcessPoolExecutor", "ThreadPoolExecutor"):
        monkeypatch.setattr(concurrent.futures, name, getattr(proxyexec, name))
        with getattr(concurrent.futures, name)(1) as pool:
            assert pool.submit(functions.add, 1, 2).result() == 3


def test_a_pool_that_is_dropped_ends():
    other = proxyexec.ProcessPoolExecutor(1)
    assert other.submit(functions.add, 1, 2).result() == 3
    manager = other._executor_manager_thread
    dropped = weakref.ref(other)
    del other
    assert dropped() is None
    manager.join(60)
    assert not manager.is_alive()
