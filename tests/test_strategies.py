"""Executors whose functions, arguments and results travel by strategies that were chosen."""

from __future__ import annotations

import concurrent.futures
import functools
import gc
import itertools
import multiprocessing
import os
import pickle
import pickletools
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from proxyexec import (
    PickleSerializer,
    ProxyAlways,
    ProxySize,
    Store,
    StoreExecutor,
    extract,
    is_proxy,
    reference_of,
)
from proxyexec import _payloads
from proxyexec._context import Inline, Stored
from proxyexec._task import blob_of
from proxyexec.aio import AsyncStoreExecutor
from proxyexec.errors import (
    DeserializationError,
    ForeignPayloadError,
    NoStrategyError,
    ObjectMissingError,
)
from proxyexec.serializers import Payload, Serializers, check, encode
from tests import functions, written
from tests.conftest import settle, wait_for_evictions
from tests.test_serializers import Reversed, json_values, registered, types_of  # noqa: F401
from tests.written import Account, Touches

ROOT = Path(__file__).resolve().parent.parent
JSON = Serializers(code="reference", data="json", allowed=["json"])
ANY = Serializers(code="combined", data=["json", "pickle", "cloudpickle"])


def make_base(kind):
    if kind == "thread":
        return concurrent.futures.ThreadPoolExecutor(2)
    return concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context(kind))


def make_executor(kind="fork", policy=None, **options):
    return StoreExecutor(make_base(kind), None, policy, **options)


KINDS = ["thread", "fork", "spawn"]
POLICIES = {"never": None, "always": ProxyAlways(), "size": ProxySize("1 kB")}
SETTINGS = [
    pytest.param((kind, policy, lazy), id=f"{kind}-{policy}-{'lazy' if lazy else 'eager'}")
    for kind, policy, lazy in itertools.product(KINDS, POLICIES, (True, False))
]


@pytest.fixture(scope="module", params=SETTINGS)
def running(request):
    kind, policy, lazy = request.param
    with make_executor(kind, POLICIES[policy], lazy=lazy, serializers=ANY) as executor:
        executor.submit(functions.add, 1, 1).result()
        executor.store.usage()
        yield executor
    wait_for_evictions()


@pytest.fixture
def executor(running):
    yield running
    settle(running)
    gc.collect()
    assert running.store.usage() == (0, 0)


@pytest.mark.parametrize(
    "value",
    [
        5,
        "text",
        b"bytes",
        [1, [2]],
        {"a": {1, 2}},
        (1, None),
        Account(3),
        [1] * 5000,
        b"x" * 50_000,
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_come_back_equal(executor, value):
    result = extract(executor.submit(functions.identity, value).result())
    assert result == value
    assert type(result) is type(value)
    assert result is not value or type(value) in (int, str)  # with threads, too


@pytest.mark.parametrize(
    ("function", "argument"),
    [
        (written.plain, 4.5),
        (lambda x: x + 1, 1),
        (written.outer(4)[0], 1),
        (written.outer(4)[1], 1),
        (functools.partial(written.in_a_dict), 1),
        (functools.partial(pow, 2), 3),
        (Account(1).__eq__, 1),
        (Account.of, 3),
        (len, "abc"),
        (str, 3),
    ],
    ids=lambda value: getattr(value, "__qualname__", type(value).__name__),
)
def test_functions_of_all_kinds_are_called(executor, function, argument):
    assert extract(executor.submit(function, argument).result()) == function(argument)


@pytest.mark.parametrize("chunksize", [1, 3, "auto"])
@pytest.mark.parametrize("function", [written.in_a_dict, lambda x: [x, x]], ids=["named", "lambda"])
def test_maps_have_the_results_in_order(executor, chunksize, function):
    results = executor.map(function, [0, 1, [1] * 2000, (1,), None] * 3, chunksize=chunksize)
    expected = [function(x) for x in [0, 1, [1] * 2000, (1,), None] * 3]
    assert [extract(one) for one in results] == expected
    del results


def test_results_are_arguments(executor):
    first = executor.submit(functions.make_list, 1000)
    second = executor.submit(functions.append, first, 5)
    third = executor.submit(written.in_a_dict, x=second)
    assert third.result()["x"][-2:] == [999, 5]
    assert len(first.result()) == 1000


def test_an_error_of_a_task_arrives(executor):
    with pytest.raises(ValueError, match="boom"):
        executor.submit(functions.boom, 3).result()
    with pytest.raises(ValueError, match="boom"):
        list(executor.map(functions.boom, [1, 2], chunksize="auto"))


def test_one_argument_twice_is_one_object(executor):
    shared = [1]
    assert executor.submit(lambda a, b: a is b, shared, shared).result() is True


def test_tasks_do_not_see_what_the_caller_has(executor):
    mine = [1]
    assert extract(executor.submit(functions.append, mine, 2).result()) == [1, 2]
    assert mine == [1]


# What travels.


class Intercepted(concurrent.futures.ProcessPoolExecutor):
    """Keeps what it is given, in the form in which it travels."""

    sent: list
    came_back: list

    def submit(self, fn, /, *args, **kwargs):
        self.__dict__.setdefault("sent", []).append((fn, args, kwargs))
        future = super().submit(fn, *args, **kwargs)
        self.__dict__.setdefault("came_back", []).append(future)
        return future


def header_of(travelled):
    assert type(travelled) is Inline
    from proxyexec_connectors._layout import split

    return Payload.from_frames(split(travelled.blob)).strategy


def names_in(data):
    """The globals that a pickle mentions."""
    found, strings = set(), []
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in ("SHORT_BINUNICODE", "BINUNICODE"):
            strings.append(argument)
        elif opcode.name == "STACK_GLOBAL":
            found.add(strings[-2])
        elif opcode.name == "GLOBAL":
            found.add(argument.split()[0])
    return found


def test_every_part_is_a_payload_and_nothing_of_it_is_pickled_by_the_pool():
    pool = Intercepted(1, multiprocessing.get_context("spawn"))
    results = ["json", "pickle"]
    serializers = Serializers(code=["reference", "source"], data="json", results=results)
    with StoreExecutor(pool, serializers=serializers) as executor:
        executor.submit(written.in_a_dict, None).result()
        executor.submit(written.outer(1)[1], x=0).result()
        executor.submit(written.of_kind, "set").result()
        for (task, args, kwargs), future in zip(pool.sent, pool.came_back, strict=True):
            sent = pickle.dumps((task, args, kwargs))
            assert names_in(sent) <= {"proxyexec._task", "proxyexec._context"}
            assert b"written" not in sent.replace(task._travels.blob, b"")
            for value in (*args, *kwargs.values()):
                assert header_of(value) == "json"
            assert type(future._result) is not Inline  # it has been opened
        assert [header_of(task._travels) for task, _, _ in pool.sent] == [
            "reference",
            "source",
            "reference",
        ]


@pytest.mark.parametrize("chunksize", [3, "auto"])
def test_so_is_every_part_of_a_map(chunksize):
    pool = Intercepted(1)
    with StoreExecutor(pool, serializers=JSON) as executor:
        assert list(executor.map(written.in_a_dict, range(9), chunksize=chunksize))
        for task, chunk, kwargs in pool.sent:
            assert header_of(task._travels) == "reference"
            assert kwargs == {}
            assert {header_of(value) for one in chunk for value in one} == {"json"}


def test_results_travel_as_payloads():
    with make_executor("thread", serializers=JSON) as executor:
        context = executor._context
        deliver = functools.partial(context.deliver, key="k", what=lambda: "it")
        assert header_of(deliver(None)) == header_of(deliver([1])) == "json"
    stored = StoreExecutor(make_base("thread"), None, ProxyAlways(), serializers=JSON)
    with stored as executor:
        outcome = executor._context.deliver([1], "key", lambda: "it")
        assert type(outcome) is Stored
        (header, body) = executor.store.fetch(outcome.reference)
        assert bytes(body) == b"[1]"
        assert bytes(header).startswith(b"Pxpayload json 1 ")


def test_stored_arguments_are_payloads():
    with make_executor(policy=ProxySize("1 kB"), serializers=JSON) as executor:
        future = executor.submit(functions.identity, [1] * 1000)
        proxy = future.result()
        assert is_proxy(proxy)
        header, body = executor.store.fetch(reference_of(proxy))
        assert bytes(header).startswith(b"Pxpayload json 1 ")
        assert bytes(body) == b"[" + b",".join([b"1"] * 1000) + b"]"
        del future, proxy


def test_without_serializers_what_travels_is_what_it_was():
    with make_executor() as executor:
        assert type(executor._context).__name__ == "Context"
        assert type(pickle.loads(blob_of(executor._context))) is tuple
        assert executor.submit(functions.identity, (1, 2)).result() == (1, 2)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(json_values)
def test_any_json_comes_back_as_it_was(obj):
    with make_executor("thread", serializers=JSON) as executor:
        arrived = executor.submit(functions.identity, obj).result()
    assert arrived == obj
    assert types_of(arrived) == types_of(obj)


# Lists of strategies.


@pytest.mark.parametrize("kind", KINDS)
def test_results_are_tried_in_order_in_the_worker(kind):
    serializers = Serializers(data="json", results=["json", "pickle", "cloudpickle"])
    with make_executor(kind, serializers=serializers) as executor:
        results = {name: executor.submit(written.of_kind, name) for name in ("list", "set")}
        assert {name: future.result() for name, future in results.items()} == {
            "list": [1, 2],
            "set": {1, 2},
        }
        assert executor.submit(written.of_kind, "lambda").result()() == 5
        assert executor.submit(written.of_kind, "none").result() is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunksize", [None, 2, "auto"])
def test_if_none_can_write_a_result_the_error_lists_all_reasons(kind, chunksize):
    serializers = Serializers(data="json", results=["json", "pickle", "cloudpickle"])
    with make_executor(kind, serializers=serializers) as executor:
        with pytest.raises(NoStrategyError) as caught:
            if chunksize is None:
                executor.submit(written.of_kind, "lock").result()
            else:
                list(executor.map(written.of_kind, ["lock"] * 2, chunksize=chunksize))
        error = caught.value
        assert error.what == "the result of of_kind"
        assert [name for name, _ in error.reasons] == ["json", "pickle", "cloudpickle"]
        for name, reason in error.reasons:
            assert f"{name}: {reason}" in str(error)
        assert executor.submit(written.of_kind, "list").result() == [1, 2]


@pytest.mark.parametrize("kind", KINDS)
def test_an_argument_that_cannot_travel_fails_its_call_alone(kind):
    with make_executor(kind, serializers=JSON) as executor:
        bad = executor.submit(functions.add, 1, b=(2,))
        with pytest.raises(NoStrategyError, match="argument 'b' of add, of type tuple, .* json: "):
            bad.result()
        with pytest.raises(NoStrategyError, match=r"the function .*<lambda>, .* reference: "):
            executor.submit(lambda: 1).result()
        auto = executor.map(functions.identity, [1, (2,), 3], chunksize="auto")
        assert next(auto) == 1
        with pytest.raises(NoStrategyError, match="argument 0 of identity"):
            next(auto)
        assert executor.submit(functions.add, 1, 2).result() == 3


# Proxies and references.


@pytest.mark.parametrize("kind", KINDS)
def test_proxies_in_arguments_travel_as_references(kind):
    serializers = Serializers(data="pickle")
    with make_executor(kind, ProxySize("1 kB"), serializers=serializers) as executor:
        proxy = executor.store.proxy([1] * 1000)
        objects, _ = executor.store.usage()
        seen = executor.submit(lambda d: (is_proxy(d["x"]), len(d["x"])), {"x": proxy}).result()
        assert seen == (True, 1000)
        result = executor.submit(written.in_a_dict, proxy).result()
        assert is_proxy(result["x"])
        assert reference_of(result["x"]) == reference_of(proxy)
        assert executor.store.usage()[0] == objects
        del proxy, result


@pytest.mark.parametrize("kind", KINDS)
def test_proxies_are_arguments_of_their_own_with_json_and_nothing_else(kind):
    with make_executor(kind, ProxySize("1 kB"), serializers=JSON) as executor:
        proxy = executor.store.proxy([1] * 1000)
        assert executor.submit(functions.total, proxy).result() == 1000
        assert executor.submit(functions.identity, proxy).result() == proxy
        with pytest.raises(NoStrategyError, match="no proxies in JSON; pass the proxy as an argum"):
            executor.submit(functions.identity, {"x": proxy}).result()
        with pytest.raises(NoStrategyError, match="the result of in_a_dict.* no proxies in JSON"):
            executor.submit(written.in_a_dict, proxy).result()
        del proxy


def test_a_changed_proxy_that_is_returned_is_what_it_is_now():
    with make_executor("fork", ProxySize("1 kB"), serializers=JSON) as executor:
        proxy = executor.store.proxy([1] * 1000)
        assert executor.submit(functions.append, proxy, 2).result()[-1] == 2
        assert proxy[-1] == 1
        del proxy


def test_a_large_function_is_stored_and_evicted():
    numbers = bytes(range(256)) * 1000
    with make_executor("fork", ProxySize("1 kB"), serializers=ANY) as executor:
        function = lambda x: numbers[x]  # noqa: E731
        with pytest.raises(NoStrategyError):
            encode(function, "reference", code=True)
        assert list(executor.map(function, range(4), chunksize=2)) == [0, 1, 2, 3]
        assert executor.submit(function, 7).result() == 7
        settle(executor)
        gc.collect()
        assert executor.store.usage() == (0, 0)


def test_a_proxy_of_a_function_is_called():
    with make_executor("thread", ProxyAlways(), serializers=ANY) as executor:
        proxy = executor.store.proxy(written.in_a_dict)
        assert executor.submit(proxy, 1).result() == {"x": 1}
        del proxy


def test_without_ownership_results_stay():
    store = Store.from_url("file://")
    with store:
        pool = make_base("fork")
        with StoreExecutor(
            pool, store, ProxyAlways(), ownership=False, serializers=ANY
        ) as executor:
            reference = reference_of(executor.submit(functions.make_list, 3).result())
        assert store.get(reference) == [0, 1, 2]


def test_a_result_that_cannot_be_delivered_leaves_nothing():
    serializers = Serializers(data="pickle", results="json")
    with make_executor("fork", ProxyAlways(), serializers=serializers) as executor:
        with pytest.raises(NoStrategyError):
            executor.submit(written.of_kind, "set").result()
        settle(executor)
        gc.collect()
        assert executor.store.usage() == (0, 0)


# Refused.


@pytest.mark.parametrize("policy", [None, ProxyAlways()], ids=["inline", "stored"])
@pytest.mark.parametrize("lazy", [True, False])
def test_the_client_does_not_load_what_it_does_not_allow(tmp_path, policy, lazy):
    path = tmp_path / "loaded"
    pool = concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    with StoreExecutor(pool, None, policy, lazy=lazy, serializers=JSON) as executor:
        future = executor.submit(written.forge, str(path))
        with pytest.raises(ForeignPayloadError, match="'pickle', and only json is allowed here"):
            len(future.result())
        assert not path.exists()
        del future
    pool = concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    unrestricted = Serializers(data="json")
    with StoreExecutor(pool, None, policy, lazy=lazy, serializers=unrestricted) as executor:
        extract(executor.submit(written.forge, str(path)).result())
        assert path.exists()  # or nothing was shown


@pytest.mark.parametrize("policy", [None, ProxyAlways()], ids=["inline", "stored"])
def test_workers_do_not_load_what_is_not_allowed(tmp_path, monkeypatch, policy):
    path = tmp_path / "loaded"
    forged = encode(Touches(path), "pickle")
    with make_executor("spawn", policy, serializers=JSON) as executor:
        encoded = _payloads._encoded
        monkeypatch.setattr(
            _payloads,
            "_encoded",
            lambda obj, chosen, what: forged if obj == "x" else encoded(obj, chosen, what),
        )
        with pytest.raises(ForeignPayloadError, match="'pickle', and only json is allowed here"):
            executor.submit(len, "x").result()
        assert not path.exists()


@pytest.mark.parametrize("kind", KINDS)
def test_workers_take_functions_by_the_strategies_of_code_alone(tmp_path, monkeypatch, kind):
    path = tmp_path / "loaded"
    forged = encode(Touches(path), "pickle")
    with make_executor(kind, serializers=JSON) as executor:
        encoded = _payloads._encoded
        monkeypatch.setattr(
            _payloads,
            "_encoded",
            lambda obj, chosen, what: forged if obj is len else encoded(obj, chosen, what),
        )
        with pytest.raises(
            ForeignPayloadError, match="the function was not loaded: it is 'pickle'"
        ):
            executor.submit(len, "x").result()
        assert not path.exists()


@pytest.mark.parametrize("kind", ["fork", "spawn"])
def test_workers_do_not_load_what_another_python_wrote(tmp_path, monkeypatch, kind):
    path = tmp_path / "loaded"
    with make_executor(kind, serializers=Serializers(code="reference", data="pickle")) as executor:
        assert executor.submit(functions.add, 1, 1).result() == 2  # workers are there
        monkeypatch.setattr(_payloads, "PYTHON", "3.1")
        with pytest.raises(ForeignPayloadError, match="argument 0 .* Python 3.1 wrote it"):
            executor.submit(written.name_of_kind, Touches(path)).result()
        assert not path.exists()


def other_pythons():
    """Interpreters of another minor version that can import this library."""
    for minor in range(10, 20):
        for directory in os.environ.get("PATH", "").split(os.pathsep):
            found = os.path.join(directory, f"python3.{minor}")
            if minor != sys.version_info.minor and os.access(found, os.X_OK):
                done = subprocess.run(
                    [found, "-c", "import proxyexec"], capture_output=True, cwd=ROOT, check=False
                )
                if done.returncode == 0:
                    yield minor, found
                    break


def test_payloads_of_another_python_that_there_is(tmp_path):
    others = list(other_pythons())
    if not others:
        pytest.skip("no other Python here has what the library needs")
    for minor, other in others:
        program = (
            "import json, sys\n"
            "from proxyexec.serializers import encode\n"
            "from tests import functions, written\n"
            "pickled = encode(written.Touches(sys.argv[1]), 'pickle')\n"
            "parts = [encode([1], 'json'), encode(functions.add, 'reference', code=True),\n"
            "         encode(functions.add, 'source', code=True), pickled]\n"
            "print(json.dumps([one.to_json() for one in parts]))\n"
        )
        path = tmp_path / f"loaded-{minor}"
        done = subprocess.run(
            [other, "-c", program, path], capture_output=True, text=True, cwd=ROOT, check=True
        )
        import json

        numbers, reference, source, pickled = map(Payload.from_json, json.loads(done.stdout))
        assert _payloads.decode(numbers) == [1]
        assert _payloads.decode(reference) is functions.add
        assert _payloads.decode(source)(1, 2) == 3
        with pytest.raises(ForeignPayloadError, match=f"Python 3.{minor} wrote it as 'pickle'"):
            _payloads.decode(pickled)
        assert not path.exists()


# Stores.


def test_a_store_that_is_restricted_reads_nothing_else(tmp_path):
    with Store.from_url("file://") as store:
        before = store.put(Touches(tmp_path / "loaded"))
        options = {"close_store": False, "serializers": JSON}
        with StoreExecutor(make_base("fork"), store, ProxyAlways(), **options) as executor:
            assert executor.submit(functions.identity, [1]).result() == [1]
            with pytest.raises(ForeignPayloadError, match="does not say which strategy"):
                store.get(before)
            assert store.get(store.put([2])) == [2]
            gc.collect()
        assert not (tmp_path / "loaded").exists()


def test_a_store_that_is_not_reads_what_was_there_before():
    with Store.from_url("file://") as store:
        proxy = store.proxy({1, 2})
        options = {"close_store": False, "serializers": ANY}
        with StoreExecutor(make_base("spawn"), store, ProxyAlways(), **options) as executor:
            assert executor.submit(functions.total, proxy).result() == 3
        with StoreExecutor(make_base("spawn"), store, ProxyAlways(), close_store=False) as executor:
            assert executor.submit(functions.total, proxy).result() == 3
            assert type(store.serializer) is PickleSerializer
        del proxy


@pytest.mark.parametrize("order", [1, -1])
def test_executors_with_and_without_serializers_share_a_pool_and_a_store(order):
    with Store.from_url("file://") as store, make_base("fork") as pool:
        options = {"close_store": False}
        executors = [
            StoreExecutor(pool, store, ProxyAlways(), **options, serializers=given)
            for given in (None, ANY, Serializers(data="pickle"))
        ][::order]
        values = [executor.submit(functions.make_list, 3).result() for executor in executors]
        for executor in executors:
            for value in values:
                assert executor.submit(functions.total, value).result() == 3
        del values, value


def test_serializers_that_do_not_go_with_the_store_are_refused():
    class Own:
        dumps = loads = None

    with Store.from_url("memory://", serializer=Own()) as store, make_base("thread") as pool:
        with pytest.raises(ValueError, match="serializer of its own"):
            StoreExecutor(pool, store, serializers=ANY)
    with Store.from_url("memory://", serializer=JSON) as store, make_base("thread") as pool:
        with pytest.raises(ValueError, match="allow json, and the executor's anything"):
            StoreExecutor(pool, store, serializers=ANY)
        with StoreExecutor(pool, store, ProxyAlways(), serializers=JSON) as executor:
            assert executor.submit(functions.identity, [1]).result() == [1]
    with make_base("thread") as pool:
        with pytest.raises(TypeError, match="must be Serializers"):
            StoreExecutor(pool, serializers="json")
        with pytest.raises(TypeError, match="nested"):
            StoreExecutor(pool, nested=True, serializers=ANY)


# Third parties', Dask, asyncio.


@pytest.mark.parametrize("kind", ["fork", "spawn"])
def test_workers_get_a_strategy_of_ones_own(kind, registered):  # noqa: F811
    with make_executor(kind, ProxySize("1 kB"), serializers=Serializers(data="reversed")) as one:
        assert one.submit(functions.identity, [1, 2]).result() == [1, 2]
        assert one.submit(functions.total, [1] * 1000).result() == 1000


def test_coroutines_can_choose_strategies_too():
    import asyncio

    async def main():
        base = make_base("fork")
        async with AsyncStoreExecutor(base, None, ProxySize("1 kB"), serializers=JSON) as executor:
            assert await executor.submit(functions.identity, [1]) == [1]
            handle = executor.submit(functions.make_list, 1000)
            assert await executor.submit(functions.total, handle) == sum(range(1000))
            assert [x async for x in executor.map(functions.identity, range(3))] == [0, 1, 2]
            with pytest.raises(NoStrategyError, match="argument 0 of identity"):
                await executor.submit(functions.identity, (1,))
            del handle

    asyncio.run(main())


# Checking calls.


@pytest.mark.parametrize("isolated", [False, True], ids=["here", "isolated"])
class TestCheck:
    @pytest.mark.parametrize("code", ["reference", "source", "pickle", "cloudpickle", "combined"])
    def test_what_arrived_is_returned(self, isolated, code):
        arrived = check(
            functions.add, [1], b={"c": (2,)}, isolated=isolated, serializers=Serializers(code=code)
        )
        assert arrived.args == ([1],)
        assert arrived.kwargs == {"b": {"c": (2,)}}
        assert arrived.function([1], [2]) == [1, 2]
        assert (arrived.function is functions.add) == (code != "source")

    def test_json_does_too(self, isolated):
        value = [1, {"a": 2.5, "ä": None}, -(10**30)]
        assert check(functions.add, value, serializers=JSON, isolated=isolated).args == (value,)

    def test_large_arrays_do(self, isolated):
        numpy = pytest.importorskip("numpy")
        array = numpy.arange(100_000.0)
        arrived = check(functions.add, array, isolated=isolated).args[0]
        assert (arrived == array).all()
        assert arrived.flags.writeable
        assert not numpy.shares_memory(arrived, array)

    def test_dill_does_too(self, isolated):
        pytest.importorskip("dill")
        by = Serializers(code="dill", data="dill")
        arrived = check(written.outer(2)[0], Account(3), isolated=isolated, serializers=by)
        assert arrived.function(3) == 5
        assert arrived.args == (Account(3),)

    @pytest.mark.parametrize(
        ("call", "why"),
        [
            (lambda f: f(threading.Lock), "^(?!)"),
            (lambda f: f(functions.add, threading.Lock()), "^argument 0 of add, of type .*lock"),
            (lambda f: f(functions.add, 1, b=threading.Lock()), "^argument 'b' of add, of type"),
            (
                lambda f: f(threading.Lock().acquire),
                "^the function lock.acquire.*reference: .*pickle: ",
            ),
        ],
    )
    def test_the_error_names_what_cannot_be_sent_and_why(self, isolated, call, why):
        by = Serializers(code=["reference", "cloudpickle"])
        checked = functools.partial(check, isolated=isolated, serializers=by)
        if why == "^(?!)":
            assert call(checked).function is threading.Lock
        else:
            with pytest.raises(NoStrategyError, match=why):
                call(checked)

    def test_the_error_names_what_does_not_arrive(self, isolated):
        class Unloadable:
            def __reduce__(self):
                return eval, ("1/0",)

        with pytest.raises(DeserializationError, match="argument 'y' of add.*ZeroDivisionError"):
            check(functions.add, 1, y=Unloadable(), isolated=isolated)

    def test_what_json_loses_is_an_error(self, isolated):
        with pytest.raises(NoStrategyError, match="argument 1 of add.*json: TypeError: keys"):
            check(functions.add, {}, {1: 2}, serializers=JSON, isolated=isolated)

    def test_arguments_with_the_names_of_its_own_are_given_by_position(self, isolated):
        function = functools.partial(written.seconds_argument, isolated=1, serializers=2)
        arrived = check(function, 0, isolated=isolated)
        assert arrived.function(*arrived.args) == (0, 1, 2)

    def test_a_strategy_of_ones_own(self, isolated, registered):  # noqa: F811
        by = Serializers(data="reversed")
        assert check(functions.add, [1], isolated=isolated, serializers=by).args == ([1],)

    def test_the_function_is_not_called(self, isolated, tmp_path):
        check(Path.touch, tmp_path / "called", isolated=isolated)
        assert not (tmp_path / "called").exists()


PROGRAM = """
from proxyexec.serializers import Serializers, check
from proxyexec.errors import DeserializationError, NoStrategyError

FACTOR = 3

def needs_global(x):
    return x * FACTOR

def alone(x):
    return x + 1

class Point:
    def __init__(self, x):
        self.x = x

for code in {strategies}:
    arrived = check(needs_global, Point(2), isolated=True, serializers=Serializers(code=code, data="cloudpickle"))
    assert arrived.function(2) == 6, code
    assert arrived.args[0].x == 2
assert check(alone, isolated=True, serializers=Serializers(code="source")).function(1) == 2
try:
    check(alone, isolated=True, serializers=Serializers(code="pickle"))
except DeserializationError as error:
    assert "the function alone cannot be unpickled: in a fresh interpreter" in str(error), error
else:
    raise SystemExit("it was found")
try:
    check(alone, serializers=Serializers(code="reference"))
except NoStrategyError as error:
    assert "alone is in __main__" in str(error), error
assert check(alone, serializers=Serializers(code="pickle")).function is alone
print("done")
"""


def test_functions_of_main(tmp_path):
    strategies = ["cloudpickle", "combined"]
    try:
        import dill  # noqa: F401

        strategies.append("dill")
    except ImportError:
        pass
    script = tmp_path / "script.py"
    script.write_text(PROGRAM.format(strategies=strategies))
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.stdout == "done\n", done.stderr


def test_a_part_that_ends_the_fresh_interpreter_is_named():
    class Ends:
        def __reduce__(self):
            return os._exit, (7,)

    with pytest.raises(DeserializationError, match="argument 1 of add.* ended with status 7"):
        check(functions.add, 0, Ends(), isolated=True)


def test_a_part_that_does_not_come_back_is_named(tmp_path):
    """What is there depends on where it is loaded."""

    class Changes:
        def __reduce__(self):
            program = (
                "__import__('threading').Lock() if 'pytest' not in __import__('sys').modules else 5"
            )
            return eval, (program,)

    assert check(functions.add, Changes()).args == (5,)
    with pytest.raises(NoStrategyError, match="argument 0 of add, back from a fresh interpreter"):
        check(functions.add, Changes(), isolated=True)


def test_what_the_fresh_interpreter_prints_is_no_answer():
    class Prints:
        def __reduce__(self):
            return print, ("hello",)

    assert check(functions.add, Prints(), 2, isolated=True).args == (None, 2)


@pytest.mark.parametrize("kind", ["thread", "fork"])
def test_what_a_call_was_given_is_let_go_of_when_it_has_ended(kind):
    """Also if the first strategies could not: what they raised refers to what they were given."""
    with make_executor(kind, serializers=ANY) as executor:
        gc.disable()
        try:
            given = Account(1)
            gone = weakref.ref(given)
            assert executor.submit(lambda one: one.balance, given).result() == 1
            with pytest.raises(NoStrategyError):
                encode(given, ["json"])
            settle(executor)
            del given
            assert gone() is None
        finally:
            gc.enable()
