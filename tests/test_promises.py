"""What executors with proxies are known to get wrong, and this one has to get right.

Each test is named for what goes wrong elsewhere. Most run with everything proxied over a pool of
processes, where it goes wrong most easily, and with the drop-in pool.
"""

from __future__ import annotations

import concurrent.futures
import gc
import sys
import threading

import pytest

from proxyexec import (
    ProcessPoolExecutor,
    ProxyAlways,
    ProxyType,
    Store,
    StoreExecutor,
    is_resolved,
    reference_of,
)
from proxyexec._ownership import Leases
from proxyexec.errors import ObjectMissingError, ProxyExecError, SerializationError
from proxyexec_connectors.file import FileConnector
from proxyexec_connectors.memory import MemoryConnector
from tests import functions
from tests.conftest import settle


class Counting(FileConnector):
    """Counts what this process stores."""

    puts = 0

    def put(self, key, frames):
        type(self).puts += 1
        super().put(key, frames)


def always(workers=1, connector=FileConnector, **options):
    base = concurrent.futures.ProcessPoolExecutor(workers)
    store = Store("promises", connector())
    return StoreExecutor(base, store, ProxyAlways(), **options)


@pytest.fixture(params=["lazy", "eager", "nested", "drop-in"])
def executor(request):
    """One worker, so that tasks follow each other in one process."""
    if request.param == "drop-in":
        executor = ProcessPoolExecutor(1)
    else:
        executor = always(lazy=request.param != "eager", nested=request.param == "nested")
    with executor:
        yield executor
        settle(executor)
        gc.collect()
        assert executor.store.usage() == (0, 0)


@pytest.fixture
def gate():
    gate = threading.Event()
    yield gate
    gate.set()


def test_a_returned_argument_is_live(executor):
    items = [1, 2, 3]
    same = executor.submit(lambda x: x, items)
    inside = executor.submit(lambda x: {"x": x}, items)
    assert same.result() == items
    same.result().append(4)
    assert inside.result()["x"] == items == [1, 2, 3]
    inside.result()["x"].append(5)
    assert inside.result()["x"] == [1, 2, 3, 5]


def test_a_changed_argument_comes_back_changed_and_nobody_else_sees_it(executor):
    items = [1, 2, 3]
    assert executor.submit(functions.append, items, 4).result() == [1, 2, 3, 4]
    assert executor.submit(functions.identity, items).result() == [1, 2, 3]
    assert items == [1, 2, 3]


def test_an_exception_that_carries_a_proxy_does_not_break_the_pool(executor):
    error = executor.submit(functions.raise_with, [1, 2]).exception()
    assert isinstance(error, RuntimeError)
    assert error.args == ([1, 2],) or is_resolved(error.args[0]) is False
    assert executor.submit(functions.add, 1, 1).result() == 2


def test_an_exception_of_a_store_does_not_break_the_pool(executor):
    def miss():
        raise ObjectMissingError("key", "file:///place")

    error = executor.submit(miss).exception()
    assert isinstance(error, ObjectMissingError)
    assert (error.key, error.url) == ("key", "file:///place")
    assert executor.submit(functions.add, 1, 1).result() == 2


def test_an_object_that_went_missing_does_not_break_the_pool(gate):
    with always(close_store=False) as executor:
        proxy = executor.store.proxy([1, 2])
        executor.store.evict(proxy)
        error = executor.submit(functions.total, proxy).exception()
        assert isinstance(error, ProxyExecError)
        assert executor.submit(functions.add, 1, 1).result() == 2
    executor.store.close()


def test_a_result_that_is_passed_on_is_not_uploaded_again():
    Counting.puts = 0
    with always(connector=Counting, close_store=False) as executor:
        first = executor.submit(functions.make_list, 3).result()
        second = executor.submit(functions.identity, first).result()
        third = executor.submit(functions.total, second).result()
        assert Counting.puts == 1  # the argument of the first task
        assert reference_of(second) == reference_of(first)
        assert not is_resolved(first) and not is_resolved(second)
        assert (first, third) == ([0, 1, 2], 3)  # the handle is still good
        del first, second, third
        settle(executor)
        assert executor.store.usage() == (0, 0)
    executor.store.close()


def test_the_handle_of_a_result_may_go_while_a_pending_task_uses_it(gate):
    base = concurrent.futures.ThreadPoolExecutor(1)
    with StoreExecutor(base, MemoryConnector(), ProxyType(list)) as executor:
        result = executor.submit(functions.make_list, 3).result()
        blocker = executor.submit(gate.wait, 60)
        future = executor.submit(functions.total, result)
        del result
        gc.collect()
        assert executor.store.usage().objects == 1
        gate.set()
        assert (blocker.result(), future.result()) == (True, 3)
        settle(executor)
        assert executor.store.usage() == (0, 0)


def test_results_are_readable_after_the_with_block():
    with always() as executor:
        futures = [executor.submit(functions.make_list, n) for n in range(3)]
        mapped = executor.map(functions.make_list, range(3))
    assert [future.result() for future in futures] == [[], [0], [0, 1]]
    assert list(mapped) == [[], [0], [0, 1]]


def test_pending_tasks_finish_after_a_shutdown_that_does_not_wait():
    executor = always()
    futures = [executor.submit(functions.append, [n], n) for n in range(5)]
    executor.shutdown(wait=False)
    assert [future.result() for future in futures] == [[n, n] for n in range(5)]


@pytest.mark.parametrize("nested", [False, True])
def test_a_submit_that_fails_half_way_leaves_nothing_stored(nested):
    with always(nested=nested, close_store=False) as executor:
        future = executor.submit(functions.add, [1], functions.Unpicklable())
        assert isinstance(future.exception(), SerializationError)
        # While the error, hence its traceback, is still there.
        assert executor.store.usage() == (0, 0)
        with pytest.raises(concurrent.futures.BrokenExecutor):
            executor.submit(functions.die).result()
        settle_broken(executor)
        with pytest.raises(concurrent.futures.BrokenExecutor):
            executor.submit(functions.add, [1], [2])
        assert executor.store.usage() == (0, 0)
    with pytest.raises(RuntimeError):
        executor.submit(functions.add, [1], [2])
    assert executor.store.usage() == (0, 0)
    executor.store.close()


def settle_broken(executor):
    """Wait until a pool knows that it is broken."""
    executor._base._executor_manager_thread.join(30)


@pytest.mark.parametrize("chunksize", [1, 3, "auto"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("end", ["fails", "is closed", "is dropped", "is dropped unread"])
def test_a_map_that_ends_early_leaves_nothing(end, chunksize, nested):
    def reciprocals(n):
        return {"items": [1 / (5 - n)]}

    with always(2, nested=nested, close_store=False) as executor:
        results = executor.map(reciprocals, range(20), chunksize=chunksize)
        if end == "fails":
            with pytest.raises(ZeroDivisionError):
                list(results)
        elif end == "is closed":
            assert next(results)["items"] == [0.2]
            results.close()
        elif end == "is dropped":
            assert next(results)["items"] == [0.2]
        del results
        executor.shutdown()
        gc.collect()
        assert executor.store.usage() == (0, 0)
    executor.store.close()


class Blocking(MemoryConnector):
    """A store of which one operation takes until it is let go on."""

    def __init__(self, operation):
        super().__init__()
        self.operation = operation
        self.entered, self.released = threading.Event(), threading.Event()
        self.armed = False

    def _perhaps_block(self, operation):
        if self.armed and operation == self.operation and not self.entered.is_set():
            self.entered.set()
            assert self.released.wait(60)

    def put(self, key, frames):
        self._perhaps_block("put")
        super().put(key, frames)

    def get(self, key):
        self._perhaps_block("get")
        return super().get(key)

    def evict(self, keys):
        self._perhaps_block("evict")
        super().evict(keys)


@pytest.mark.parametrize("lazy", [True, False])
@pytest.mark.parametrize("operation", ["put", "get", "evict"])
def test_a_slow_store_delays_only_who_needs_it(operation, lazy):
    """No lock is held over I/O: while one operation hangs, everything else goes on."""
    connector = Blocking(operation)
    base = concurrent.futures.ThreadPoolExecutor(3)
    with StoreExecutor(base, connector, ProxyType(list), lazy=lazy) as executor:
        chain = executor.submit(functions.make_list, 2)
        assert len(chain.result()) == 2
        connector.armed = True
        hanging = threading.Thread(
            target=lambda: executor.submit(functions.total, [1, 2, 3]).result()
        )
        hanging.start()
        assert connector.entered.wait(60)
        try:
            futures = [executor.submit(functions.append, [n], n) for n in range(5)]
            after = executor.submit(functions.append, futures[0], 9)
            assert [list(future.result(60)) for future in futures] == [[n, n] for n in range(5)]
            assert list(after.result(60)) == [0, 0, 9]
            assert sum(executor.map(functions.total, [[1], [2]], chunksize=1)) == 3
            del futures, after
        finally:
            connector.released.set()
            hanging.join(60)


def test_freeing_many_results_costs_each_what_freeing_few_does():
    """Counted in calls, which do not depend on the machine."""

    def calls_of(number):
        home = object.__new__(type("Home", (), {}))
        leases = Leases("many", lambda keys: None, home)
        held = [leases.take(str(key)) for key in range(number)]
        messages = [lease.key for lease in held]
        calls = 0

        def count(frame, event, arg):
            nonlocal calls
            calls += event in ("call", "c_call")

        sys.setprofile(count)
        try:
            keys, *_ = leases._count(messages)
        finally:
            sys.setprofile(None)
        assert len(keys) == number
        for lease in held:
            lease._leases = None
        return calls / number

    assert calls_of(40_000) <= 1.1 * calls_of(1_000)
