"""One suite over every kind of base executor, connector and laziness."""

from __future__ import annotations

import concurrent.futures
import gc
import itertools
import multiprocessing
import threading

import pytest

import proxyexec
from proxyexec import ProxyAlways, ProxySize, ProxyType, Store, StoreExecutor, is_proxy
from proxyexec_connectors.file import FileConnector
from proxyexec_connectors.memory import MemoryConnector
from tests import functions
from tests.conftest import settle, wait_for_evictions


def make_base(kind):
    if kind == "thread":
        return concurrent.futures.ThreadPoolExecutor(2)
    return concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context(kind))


MATRIX = [
    pytest.param((base, connector, lazy), id=f"{base}-{connector}-{'lazy' if lazy else 'eager'}")
    for base, connector, lazy in itertools.product(
        ("thread", "fork", "forkserver", "spawn"), ("memory", "file", "redis"), (True, False)
    )
    if connector != "memory" or base == "thread"
]


@pytest.fixture(scope="module", params=MATRIX)
def setting(request):
    """A running executor and its store, shared by the tests of one combination."""
    kind, place, lazy = request.param
    if place == "redis":
        store = Store.from_url(request.getfixturevalue("redis_url"))
    else:
        store = Store("matrix", {"memory": MemoryConnector, "file": FileConnector}[place]())
    with StoreExecutor(make_base(kind), store, ProxyAlways(), lazy=lazy) as executor:
        executor.submit(functions.add, 1, 1).result()  # workers and connections are there now
        store.usage()
        yield executor, lazy
    wait_for_evictions()


@pytest.fixture
def executor(setting):
    executor, _ = setting
    yield executor
    settle(executor)
    if executor.store.usage() != (0, 0):
        gc.collect()  # errors refer to themselves, by way of tracebacks and frames
    assert executor.store.usage() == (0, 0)


@pytest.fixture
def lazy(setting):
    return setting[1]


def test_values_come_back_equal(executor):
    for value in (5, "text", b"bytes", [1, [2]], {"a": {1, 2}}, 2.5, (1, None)):
        result = executor.submit(functions.identity, value).result()
        assert result == value
        assert isinstance(result, type(value))


def test_functions_get_proxies_if_lazy_and_objects_if_not(executor, lazy):
    name, proxy, resolved = executor.submit(functions.kind, [1, 2]).result()
    assert (name == "list") != lazy
    assert proxy is lazy
    assert resolved is False


def test_callers_get_proxies_if_lazy_and_objects_if_not(executor, lazy):
    result = executor.submit(functions.make_list, 5).result()
    assert is_proxy(result) is lazy
    assert result == [0, 1, 2, 3, 4]


def test_the_same_result_each_time(executor):
    future = executor.submit(functions.make_list, 5)
    assert future.result() is future.result()


def test_keywords(executor):
    assert executor.submit(functions.concat, "foobar", num=42).result() == "foobar-42"


def test_arrays_are_writable_and_private(executor):
    np = pytest.importorskip("numpy")
    array = np.arange(50_000.0)
    result = executor.submit(functions.identity, array).result()
    result[0] = 7
    assert array[0] == 0
    assert np.array_equal(result[1:], array[1:])
    assert executor.submit(functions.identity, array).result()[0] == 0


@pytest.mark.parametrize("resolve_first", [False, True])
def test_returned_arguments_are_live(executor, resolve_first):
    function = functions.append if resolve_first else functions.identity
    arguments = ([1, 2, 3], 4) if resolve_first else ([1, 2, 3, 4],)
    result = executor.submit(function, *arguments).result()
    assert result == [1, 2, 3, 4]


def test_arguments_returned_in_a_container_are_live(executor):
    result = executor.submit(functions.pair, [1, 2, 3]).result()
    assert result["x"] == [1, 2, 3]
    assert isinstance(result["x"], list)


def test_tasks_do_not_see_what_others_did_to_an_argument(executor):
    items = [1, 2, 3]
    assert executor.submit(functions.append, items, 4).result() == [1, 2, 3, 4]
    assert executor.submit(functions.append, items, 5).result() == [1, 2, 3, 5]
    assert items == [1, 2, 3]


def test_results_as_arguments(executor):
    first = executor.submit(functions.make_list, 3).result()
    second = executor.submit(functions.append, first, 3).result()
    assert executor.submit(functions.total, second).result() == 6
    assert first == [0, 1, 2]


def test_lambdas_and_closures(executor):
    number = 10
    assert executor.submit(lambda x: x + number, 5).result() == 15
    assert list(executor.map(lambda x: x * number, range(3))) == [0, 10, 20]
    assert executor.submit(functions.identity, lambda x: x + number).result()(1) == 11


def test_exceptions(executor):
    future = executor.submit(functions.boom, [1])
    with pytest.raises(ValueError, match="boom"):
        future.result()
    assert isinstance(future.exception(), ValueError)


def test_an_exception_that_carries_an_argument(executor):
    error = executor.submit(functions.raise_with, [1, 2]).exception()
    assert isinstance(error, RuntimeError)
    assert executor.submit(functions.add, 1, 1).result() == 2
    del error


def test_unpicklable_results_fail_their_future_only(executor):
    error = executor.submit(functions.return_unpicklable).exception()
    assert isinstance(error, proxyexec.errors.SerializationError)
    assert "not for sending" in str(error)
    assert executor.submit(functions.add, 1, 1).result() == 2


def test_map(executor):
    assert list(executor.map(functions.add, range(5), [10] * 5)) == [10, 11, 12, 13, 14]


@pytest.mark.parametrize("chunksize", [1, 2, 100])
def test_map_in_chunks(executor, chunksize):
    results = executor.map(functions.make_list, range(5), chunksize=chunksize)
    assert list(results) == [list(range(n)) for n in range(5)]


def test_an_abandoned_map_leaves_nothing(executor):
    results = executor.map(functions.make_list, range(20))
    assert next(results) == []
    results.close()


def test_a_failed_map_leaves_nothing(executor):
    results = executor.map(lambda n: [n] * (1 // (3 - n)), range(6), chunksize=2)
    assert next(results) == [0] * 0
    with pytest.raises(ZeroDivisionError):
        list(results)
    del results


def test_wait_and_as_completed(executor):
    futures = [executor.submit(functions.make_list, n) for n in range(4)]
    done, pending = concurrent.futures.wait(futures, timeout=60)
    assert not pending
    assert {len(one.result()) for one in concurrent.futures.as_completed(done)} == {0, 1, 2, 3}


def test_results_are_kept_alive_by_what_the_caller_has(executor, lazy):
    result = executor.submit(functions.make_list, 4).result()
    assert executor.store.usage().objects == (1 if lazy else 0)
    assert result == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", ["thread", "fork"])
def test_results_are_readable_after_the_with_block(kind):
    policy = ProxyType(list)
    with StoreExecutor(make_base(kind), should_proxy=policy) as executor:
        future = executor.submit(functions.make_list, 3)
        early = executor.submit(functions.make_list, 2).result()
    assert future.result() == [0, 1, 2]
    assert early == [0, 1]


def test_a_cancelled_call_leaves_nothing(tmp_path):
    started, release = tmp_path / "started", tmp_path / "release"
    with StoreExecutor(make_base("thread"), should_proxy=ProxyAlways(), lazy=False) as executor:
        running = [
            executor.submit(functions.touch_then_wait, f"{started}{n}", str(release))
            for n in range(2)
        ]
        future = executor.submit(functions.add, [1], [2])
        assert future.cancel()
        assert future.cancelled()
        release.touch()
        assert [one.result() for one in running] == ["done", "done"]
        with pytest.raises(concurrent.futures.CancelledError):
            future.result()


def test_without_a_policy_calls_pass_untouched():
    marker = object()
    with StoreExecutor(concurrent.futures.ThreadPoolExecutor(1)) as executor:
        assert executor.submit(functions.identity, marker).result() is marker
        assert list(executor.map(functions.identity, [marker], chunksize=5)) == [marker]


def test_the_base_executor_sees_the_functions_name():
    seen = []

    class Watching(concurrent.futures.ThreadPoolExecutor):
        def submit(self, fn, /, *args, **kwargs):
            seen.append((fn.__name__, fn.__qualname__, fn.__module__))
            return super().submit(fn, *args, **kwargs)

    with StoreExecutor(Watching(1), should_proxy=ProxyAlways()) as executor:
        executor.submit(functions.add, 1, 2).result()
    assert seen == [("add", "add", "tests.functions")]


def test_stores_are_taken_in_every_form(tmp_path):
    for store in (None, FileConnector(), f"file://{tmp_path}/objects", Store("s", FileConnector())):
        with StoreExecutor(make_base("thread"), store, ProxyAlways()) as executor:
            assert executor.submit(functions.add, [1], [2]).result() == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((5,), "submit"),
        ((concurrent.futures.ThreadPoolExecutor,), "submit"),
        ((concurrent.futures.ThreadPoolExecutor(1), 5), "store"),
        ((concurrent.futures.ThreadPoolExecutor(1), None, 5), "should_proxy"),
    ],
)
def test_misuse_is_a_type_error_that_says_what_is_missing(arguments, says):
    with pytest.raises(TypeError, match=says):
        StoreExecutor(*arguments)


def test_other_kinds_of_futures_are_followed():
    """An executor whose futures are not the standard library's own class."""

    class Mine(concurrent.futures.Future):
        pass

    class Executor:
        def submit(self, fn, /, *args, **kwargs):
            self.future, self.call = Mine(), lambda: fn(*args, **kwargs)
            return self.future

        def shutdown(self, wait=True, *, cancel_futures=False):
            pass

    base = Executor()
    with StoreExecutor(base, MemoryConnector(), ProxyAlways()) as executor:
        future = executor.submit(functions.add, [1], [2])
        assert isinstance(future, proxyexec.TaskFuture)
        assert not future.done()
        base.future.set_running_or_notify_cancel()
        assert future.running()
        base.future.set_result(base.call())
        assert future.result() == [1, 2]

        future = executor.submit(functions.add, [1], [2])
        assert future.cancel()
        assert future.cancelled()
        assert concurrent.futures.wait([future]).done == {future}

        future = executor.submit(functions.add, [1], [2])
        base.future.set_exception(ValueError("no"))
        assert isinstance(future.exception(), ValueError)
        base.future = base.call = None


def test_executors_that_cannot_cancel_when_shut_down():
    class Executor:
        def __init__(self, pool):
            self.submit, self.pool = pool.submit, pool

        def shutdown(self, wait=True):
            self.pool.shutdown(wait)

    base = Executor(concurrent.futures.ThreadPoolExecutor(1))
    with StoreExecutor(base, MemoryConnector()) as executor:
        future = executor.submit(functions.add, 1, 2)
    assert future.result() == 3
    with pytest.raises(RuntimeError, match="after shutdown"):
        base.pool.submit(functions.add, 1, 2)


@pytest.mark.parametrize("use", ["result", "map", "exception"])
@pytest.mark.parametrize("kind", ["unpicklable", "policy"])
def test_what_is_wrong_with_the_data_reaches_the_caller_by_every_way(use, kind):
    def policy(obj):
        if kind == "policy":
            raise KeyError("picky")
        return False

    expected = {
        "unpicklable": proxyexec.errors.SerializationError,
        "policy": proxyexec.errors.PolicyError,
    }[kind]
    with StoreExecutor(make_base("fork"), should_proxy=policy) as executor:
        argument = functions.Unpicklable()
        if use == "exception":
            assert isinstance(executor.submit(functions.identity, argument).exception(), expected)
            return
        with pytest.raises(expected, match="argument 0 of identity"):
            if use == "map":
                list(executor.map(functions.identity, [argument]))
            else:
                executor.submit(functions.identity, argument).result()


def test_an_object_passed_twice_is_one_object(executor):
    items = [1]
    appended, same = executor.submit(functions.append_and_compare, items, items).result()
    assert appended == [1, 5]
    assert same is True
    appended, same = executor.submit(functions.append_and_compare, items, b=items).result()
    assert same is True
    assert [pair[1] for pair in executor.map(functions.append_and_compare, [items], [items])] == [
        True
    ]


def test_threads_pass_on_what_cannot_be_pickled():
    lock = threading.Lock()
    with StoreExecutor(make_base("thread"), should_proxy=ProxySize(100)) as executor:
        assert executor.submit(functions.identity, lock).result() is lock
        result = executor.submit(functions.append, list(range(100)), lock).result()
        assert result[-1] is lock


def test_without_a_policy_callables_are_pickled_once_and_fail_by_their_future():
    with StoreExecutor(make_base("fork")) as executor:
        error = executor.submit(functions.UnpicklableCallable()).exception()
        assert isinstance(error, proxyexec.errors.SerializationError)
        counting = functions.CountingCallable()
        assert executor.submit(counting, 1).result() == 1
        assert counting.pickled == 1


def test_a_worker_that_closes_its_store_goes_on():
    with StoreExecutor(make_base("spawn"), should_proxy=ProxyType(list)) as executor:
        executor.submit(functions.close, executor.store).result()
        assert executor.submit(functions.total, [1, 2]).result() == 3


def test_a_store_closes_after_the_last_executor_that_uses_it():
    store = Store("shared", MemoryConnector())
    first = StoreExecutor(make_base("thread"), store, ProxyType(list))
    second = StoreExecutor(make_base("thread"), store, ProxyType(list))
    first.shutdown()
    store._leases.flush()
    assert second.submit(functions.total, [1, 2]).result() == 3
    second.shutdown()
    with pytest.raises(proxyexec.errors.StoreClosedError):
        store.usage()


def test_what_asyncio_reads_is_the_result():
    with StoreExecutor(make_base("fork"), should_proxy=ProxyType(list), lazy=False) as executor:
        future = executor.submit(functions.make_list, 3)
        assert future._get_snapshot() in [
            (False, False, None, None),
            (True, False, [0, 1, 2], None),
        ]
        assert future.result() == [0, 1, 2]
        assert future._get_snapshot() == (True, False, [0, 1, 2], None)
        future = executor.submit(functions.boom)
        assert isinstance(future.exception(), ValueError)
        assert isinstance(future._get_snapshot()[3], ValueError)


def test_chunks_that_pass_untouched_have_the_functions_name():
    seen = []

    class Watching(concurrent.futures.ProcessPoolExecutor):
        def submit(self, fn, /, *args, **kwargs):
            seen.append((fn.__name__, fn.__module__))
            return super().submit(fn, *args, **kwargs)

    with StoreExecutor(Watching(1)) as executor:
        assert list(executor.map(functions.add, [1, 2], [3, 4], chunksize=2)) == [4, 6]
    assert seen == [("add", "tests.functions")]
