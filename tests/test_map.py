"""``map`` does what the standard library's does, on every version."""

from __future__ import annotations

import concurrent.futures
import gc
import itertools
import threading

import pytest

import proxyexec
from proxyexec import ProxyAlways, StoreExecutor
from tests import functions


@pytest.fixture
def executor():
    base = concurrent.futures.ThreadPoolExecutor(1)
    with StoreExecutor(base, should_proxy=ProxyAlways(), lazy=False) as executor:
        yield executor


@pytest.fixture(scope="module")
def pool():
    with proxyexec.ProcessPoolExecutor(2) as pool:
        pool.submit(functions.add, 1, 1).result()
        pool.submit(functions.add, 1, 1).result()
        yield pool


def counting(drawn):
    for number in itertools.count():
        drawn.append(number)
        yield number


def test_everything_is_submitted_at_once_without_a_buffersize(executor):
    drawn = []
    results = executor.map(functions.identity, itertools.islice(counting(drawn), 10))
    assert drawn == list(range(10))
    assert list(results) == drawn


def test_endless_iterables_are_drawn_as_results_are_consumed(executor):
    drawn = []
    results = executor.map(functions.identity, counting(drawn), buffersize=3)
    assert drawn == [0, 1, 2]
    assert next(results) == 0
    assert drawn == [0, 1, 2, 3]
    assert [next(results) for _ in range(5)] == [1, 2, 3, 4, 5]
    assert len(drawn) == 9
    results.close()
    assert len(drawn) == 9


def test_buffersize_counts_chunks_as_tasks(pool):
    drawn = []
    results = pool.map(functions.identity, counting(drawn), buffersize=2, chunksize=5)
    assert len(drawn) == 10
    assert next(results) == 0
    results.close()


@pytest.mark.parametrize("chunksize", [1, 3, "auto"])
def test_several_iterables_end_with_the_shortest(pool, chunksize):
    results = pool.map(functions.add, range(10), itertools.count(100), chunksize=chunksize)
    assert list(results) == [100 + 2 * n for n in range(10)]
    assert list(pool.map(functions.add, [], [1], chunksize=chunksize)) == []
    assert list(pool.map(functions.add, chunksize=chunksize)) == []


@pytest.mark.parametrize("chunksize", [0, -1])
def test_chunksizes_below_one_are_refused(pool, chunksize):
    with pytest.raises(ValueError, match="chunksize must be >= 1"):
        pool.map(functions.identity, [1], chunksize=chunksize)


def test_buffersizes_are_checked_before_anything_is_submitted(executor):
    drawn = []
    with pytest.raises(ValueError, match="buffersize must be None or > 0"):
        executor.map(functions.identity, counting(drawn), buffersize=0)
    with pytest.raises(TypeError, match="buffersize must be an integer or None"):
        executor.map(functions.identity, counting(drawn), buffersize="5")
    assert drawn == []


def test_an_iterable_that_raises_leaves_nothing(executor):
    def broken():
        yield [1]
        raise KeyError("broken")

    with pytest.raises(KeyError, match="broken"):
        executor.map(functions.identity, broken())
    results = executor.map(functions.identity, broken(), buffersize=1)
    with pytest.raises(KeyError, match="broken"):
        next(results)


@pytest.mark.parametrize("chunksize", [1, 2, "auto"])
def test_errors_come_in_their_place(pool, chunksize):
    results = pool.map(pow, [1, 2, 0, 3], [1, 1, -1, 1], chunksize=chunksize)
    assert next(results) == 1
    assert next(results) == 2
    with pytest.raises(ZeroDivisionError):
        next(results)
    with pytest.raises(StopIteration):
        next(results)


def test_timeouts(executor):
    release = threading.Event()
    results = executor.map(lambda n: release.wait(30), range(2), timeout=0)
    with pytest.raises(concurrent.futures.TimeoutError):
        next(results)
    release.set()


@pytest.mark.parametrize("end", ["close", "close half-way", "drop half-way", "drop unread"])
def test_closing_cancels_what_has_not_started(executor, end):
    started, gates = threading.Event(), [threading.Event() for _ in range(10)]
    ran = []

    def run(n):
        started.set()
        assert gates[n].wait(30)
        ran.append(n)

    results = executor.map(run, range(10))
    assert started.wait(30)
    if "half-way" in end:
        gates[0].set()
        next(results)
    if "close" in end:
        results.close()
    del results
    gc.collect()
    for gate in gates:
        gate.set()
    assert executor.submit(functions.add, 1, 1).result() == 2
    if end == "drop unread":  # as with the standard library: map is called for its effects
        assert ran == list(range(10))
    else:
        # The one that was running, and the next one if it had been taken up by then.
        assert ran in ([0], [0, 1])


@pytest.mark.parametrize("chunksize", [1, 2, "auto"])
def test_results_are_freed_as_they_are_consumed(pool, chunksize):
    results = pool.map(functions.make_bytes, [300_000] * 6, chunksize=chunksize)
    consumed = [len(result) for result in results]
    assert consumed == [300_000] * 6
    assert pool.store.usage() == (0, 0)
