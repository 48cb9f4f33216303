"""What callables carry: judged as arguments are, and stored once for a ``map``."""

from __future__ import annotations

import concurrent.futures
import functools
import gc
import weakref

import pytest

from proxyexec import ProcessPoolExecutor, ProxySize, ProxyType, Store, StoreExecutor, is_proxy
from proxyexec.errors import SerializationError
from proxyexec_connectors.file import FileConnector
from tests import functions
from tests.conftest import settle

DATA = list(range(100))


class Counting(FileConnector):
    """Counts what this process stores."""

    puts = 0

    def put(self, key, frames):
        type(self).puts += 1
        super().put(key, frames)


@pytest.fixture
def executor():
    Counting.puts = 0
    base = concurrent.futures.ProcessPoolExecutor(2)
    store = Store("carried", Counting())
    with StoreExecutor(base, store, ProxyType(list, functions.Carrier), dedupe=False) as executor:
        yield executor
        gc.collect()
        assert store.usage() == (0, 0)


def closure_over(data):
    return lambda x: (is_proxy(data), len(data) + x)


def with_default(x, data=DATA):
    return is_proxy(data), len(data) + x


with_default.__qualname__ = "not found under this name"


CALLABLES = {
    "partial": functools.partial(functions.carried, DATA),
    "keyword": functools.partial(functions.carried, data=DATA),
    "partial of a partial": functools.partial(functools.partial(functions.carried, DATA)),
    "partial of a closure": functools.partial(closure_over(DATA)),
    "closure": closure_over(DATA),
    "default": with_default,
    "global": lambda x: (is_proxy(DATA), len(DATA) + x),
}


@pytest.mark.parametrize("name", CALLABLES)
@pytest.mark.parametrize("chunksize", [1, 3])
def test_what_is_carried_is_stored_once_for_a_map(executor, name, chunksize):
    function = CALLABLES[name]
    if name == "keyword":
        results = list(executor.map(lambda n, f=function: f(x=n), range(8), chunksize=chunksize))
    else:
        results = list(executor.map(function, range(8), chunksize=chunksize))
    assert results == [(True, 100 + n) for n in range(8)]
    assert Counting.puts == 1


@pytest.mark.parametrize("chunksize", [1, 3])
def test_bound_methods_and_callable_objects(executor, chunksize):
    for function in (functions.Carrier(DATA).method, functions.Carrier([*DATA, 5][:-1])):
        executor.store.usage()  # what was carried before is gone
        Counting.puts = 0
        results = list(executor.map(function, range(8), chunksize=chunksize))
        assert results == [(False, False, 100 + n) for n in range(8)]
        assert Counting.puts == 1


def test_methods_of_builtin_objects(executor):
    assert executor.submit([1, 2, 1].count, 1).result() == 2
    assert Counting.puts == 1


def test_submits_carry_too(executor):
    assert executor.submit(CALLABLES["partial"], 1).result() == (True, 101)
    assert executor.submit(CALLABLES["closure"], 1).result() == (True, 101)
    assert Counting.puts == 2


def test_what_the_policy_does_not_want_travels_with_the_callable():
    base = concurrent.futures.ProcessPoolExecutor(1)
    with StoreExecutor(base, should_proxy=ProxyType(dict)) as executor:
        assert executor.submit(CALLABLES["partial"], 1).result() == (False, 101)


def test_only_what_is_carried_itself_is_looked_at_unless_nested():
    for nested in (False, True):
        base = concurrent.futures.ProcessPoolExecutor(1)
        with StoreExecutor(base, should_proxy=ProxyType(list), nested=nested) as executor:
            function = functools.partial(functions.seen, {"a": [1]})
            assert executor.submit(function).result() == {"a": nested}


def test_a_large_callable_is_stored_even_if_nothing_in_it_is():
    Counting.puts = 0
    many = [str(n) for n in range(50_000)]
    store = Store("large", Counting())
    base = concurrent.futures.ProcessPoolExecutor(1)
    with StoreExecutor(base, store, ProxySize(100_000), lazy=False) as executor:
        policy_sees_each = functools.partial(max, *many)
        assert list(executor.map(policy_sees_each, "ab")) == ["a", "b"]
    assert Counting.puts == 1


def test_what_is_carried_goes_with_the_last_task_of_the_map(executor):
    results = executor.map(CALLABLES["partial"], range(4))
    assert next(results) == (True, 100)
    list(results)
    assert executor.store.usage() == (0, 0)


def test_a_map_that_is_abandoned_lets_go_of_what_is_carried(executor):
    results = executor.map(CALLABLES["partial"], range(100), buffersize=2)
    assert next(results) == (True, 100)
    results.close()
    executor.submit(functions.add, 1, 1).result()
    del results


def test_callables_are_told_apart_by_identity(executor):
    """``Carrier`` raises when it is compared or hashed."""
    one, other = functions.Carrier([1]), functions.Carrier([1, 2])
    assert list(executor.map(one, [0])) == [(False, False, 1)]
    assert list(executor.map(other, [0])) == [(False, False, 2)]
    assert executor.submit(one.method, 0).result() == (False, False, 1)
    assert executor.submit(functools.partial(other), 0).result() == (False, False, 2)


def test_callables_that_change_are_sent_as_they_are(executor):
    carrier = functions.Carrier([1])
    first = executor.submit(carrier.method, 0).result()
    carrier.data.append(2)
    assert (first[2], executor.submit(carrier.method, 0).result()[2]) == (1, 2)
    (third,) = executor.map(carrier, [0])
    assert third[2] == 2


@pytest.mark.parametrize("chunksize", [1, 2])
def test_callables_may_change_while_items_are_drawn(executor, chunksize):
    carrier = functions.Carrier([0])

    def items():
        for n in range(4):
            carrier.data = [0] * (n + 1)
            yield 0

    lengths = [
        length for _, _, length in executor.map(carrier.method, items(), chunksize=chunksize)
    ]
    with concurrent.futures.ProcessPoolExecutor(1) as pool:
        assert len(list(pool.map(carrier.method, items(), chunksize=chunksize))) == len(lengths)
    assert lengths == ([1, 2, 3, 4] if chunksize == 1 else [2, 2, 4, 4])


@pytest.mark.parametrize(
    ("items", "options", "times"),
    [
        (lambda: [0, 1, 2, 3], {}, 1),
        (lambda: range(4), {"chunksize": 2}, 1),
        (lambda: iter(range(4)), {}, 4),
        (lambda: [0, 1, 2, 3], {"buffersize": 1}, 4),
    ],
    ids=["list", "chunks", "iterator", "buffer"],
)
def test_a_callable_is_pickled_once_where_nothing_can_change_it(
    executor, monkeypatch, items, options, times
):
    monkeypatch.setattr(functions.CountsPickling, "times", 0)
    assert list(executor.map(functions.CountsPickling(), items(), **options)) == [0, 1, 2, 3]
    assert functions.CountsPickling.times == times


@pytest.mark.parametrize("chunksize", [1, 5])
@pytest.mark.parametrize("function", [len, functools.partial(len)])
def test_map_goes_by_way_of_submit(chunksize, function):
    """Subclasses may have changed it, and the standard library's pools do so."""

    class Watched(ProcessPoolExecutor):
        submits = 0

        def submit(self, fn, /, *args, **kwargs):
            self.submits += 1
            return super().submit(fn, *args, **kwargs)

    with Watched(1) as pool:
        assert list(pool.map(function, ["a"] * 10, chunksize=chunksize)) == [1] * 10
        assert pool.submits == 10 // chunksize


@pytest.mark.parametrize("how", ["submit", "map", "chunks"])
def test_callables_are_not_kept_alive(executor, how):
    carrier = functions.Carrier([1])
    dropped = weakref.ref(carrier)
    if how == "submit":
        executor.submit(carrier.method, 0).result()
    else:
        list(executor.map(carrier, range(3), chunksize=1 if how == "map" else 2))
    del carrier
    settle(executor)  # the pool, too, drops a task only after its result can be read
    gc.collect()
    assert dropped() is None


def test_a_callable_that_cannot_be_pickled_fails_each_task_of_a_map(executor):
    function = functools.partial(functions.carried, DATA, functions.Unpicklable())
    results = executor.map(function, range(3))
    with pytest.raises(SerializationError, match="not for sending"):
        next(results)


def test_tasks_do_not_see_what_others_did_to_what_is_carried(executor):
    append = functools.partial(functions.append, [1])
    assert [list(one) for one in executor.map(append, [2, 3])] == [[1, 2], [1, 3]]


def test_a_large_callable_that_cannot_be_stored_leaves_nothing():
    class Full(FileConnector):
        puts = 0

        def put(self, key, frames):
            type(self).puts += 1
            if self.puts == 2:
                raise RuntimeError("full")
            super().put(key, frames)

    data, many = bytes(200_000), [str(n) for n in range(50_000)]
    base = concurrent.futures.ProcessPoolExecutor(1)
    with StoreExecutor(base, Store("full", Full()), ProxySize(100_000)) as executor:
        future = executor.submit(lambda: (data, many))
        error = future.exception()
        assert "full" in str(error)
        # While the error, hence its traceback, is still there.
        assert executor.store.usage() == (0, 0)
