"""``ProxyAdaptive``: takes the cheaper path, by what is known of the costs."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import gc
import itertools
import multiprocessing
import pickle
import re
import threading
import weakref

import pytest

np = pytest.importorskip("numpy")

from proxyexec import (
    ProxyAdaptive,
    ProxyNever,
    ProxySize,
    ProxyType,
    Store,
    StoreExecutor,
    is_proxy,
)
from proxyexec import _calibrations
from proxyexec._calibrate import Calibration, calibrate
from proxyexec._costs import CostModel
from proxyexec._events import Moved
from proxyexec._history import History
from proxyexec._limits import DEFAULT, NEVER, limits_of_arguments, limits_of_results
from proxyexec._serialize import Candidate, PickleSerializer
from proxyexec.policy import is_proxied
from proxyexec_connectors.file import FileConnector
from tests import functions
from tests.conftest import settle
from tests.test_costs import MS, PER_MB, model

# With these costs, from somewhere above 200 kB on.
LIMIT = limits_of_arguments(model(), 2.0).buffers
PASSED_LIMIT = limits_of_results(model(), 1.0).buffers


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def pool(method="fork", workers=1):
    context = multiprocessing.get_context(method)
    return concurrent.futures.ProcessPoolExecutor(workers, context)


def adaptive(executor):
    return executor._learner


def with_costs(base, costs=None, policy=None, store=None, **options):
    """An executor for which costs were measured before, by another program."""
    policy = ProxyAdaptive() if policy is None else policy
    with StoreExecutor(pool(), store, ProxyNever()) as like:
        setting = _calibrations.setting_of(like)
    options.setdefault("lazy", False)
    executor = StoreExecutor(base, store, policy, **options)
    setting = executor._learner._setting if executor._learner is not None else setting
    if executor._crosses:
        executor._learner._keep(Calibration(CostModel((costs or model()).curves, setting), True))
    return executor


def moves(executor):
    events = []
    executor._measures.observe(lambda event: type(event) is Moved and events.append(event))
    return events


def paths(events, what):
    return [event.path for event in events if event.what == what]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_the_cheaper_path_is_taken_both_ways(method):
    with with_costs(pool(method)) as executor:
        events = moves(executor)
        for size in (LIMIT // 2, 2 * LIMIT):
            data = bytearray(size)
            assert executor.submit(functions.identity, data).result() == data
        settle(executor)
        assert paths(events, "argument") == ["inline", "store"]
        # What a worker judges at a glance is not told of.
        assert paths(events, "result") == ["inline", "store"]


def test_what_was_measured_before_is_used_at_once():
    with with_costs(pool()) as executor:
        known = executor._learner.model
    policy = ProxyAdaptive()
    assert policy.costs is None
    with StoreExecutor(pool(), None, policy, lazy=False) as executor:
        assert policy.costs == known
        assert policy.smallest <= LIMIT
        # Nothing is measured again.
        executor.submit(functions.identity, bytearray(2 * LIMIT)).result()
        assert policy.costs is known or policy.costs == known


def test_the_first_large_object_has_costs_measured():
    policy = ProxyAdaptive()
    with StoreExecutor(pool(), None, policy, lazy=False) as executor:
        assert executor.submit(functions.add, 1, 2).result() == 3
        assert executor.submit(functions.identity, bytearray(1000)).result() == bytearray(1000)
        assert policy.costs is None
        settle(executor)
        executor.submit(functions.identity, bytearray(100_000)).result()
        assert policy.costs is not None
        # On a busy machine, it is for this program only.
        assert _calibrations.load(policy.costs.setting) in (policy.costs, None)


def test_not_while_others_are_under_way(tmp_path):
    policy = ProxyAdaptive()
    with StoreExecutor(pool(), None, policy, lazy=False) as executor:
        started, release = tmp_path / "started", tmp_path / "release"
        busy = executor.submit(functions.touch_then_wait, str(started), str(release))
        future = executor.submit(functions.identity, bytearray(100_000))
        assert policy.costs is None
        release.touch()
        busy.result(), future.result()
        settle(executor)
        executor.submit(functions.identity, bytearray(100_000)).result()
        assert policy.costs is not None


def test_not_in_other_threads_nor_in_coroutines():
    policy = ProxyAdaptive()
    with StoreExecutor(pool(), None, policy, lazy=False) as executor:
        call = functools.partial(executor.submit, functions.identity, bytearray(100_000))
        with concurrent.futures.ThreadPoolExecutor(1) as other:
            other.submit(call).result().result()
        settle(executor)

        async def coroutine():
            return call()

        asyncio.run(coroutine()).result()
        assert policy.costs is None


def test_a_calibration_that_fails_fails_no_call(caplog):
    store = Store("small", FileConnector(), max_bytes=100_000, full_timeout=0.1)
    policy = ProxyAdaptive()
    with StoreExecutor(pool(), store, policy, lazy=False) as executor, caplog.at_level("INFO"):
        for _ in range(3):
            data = bytearray(60_000)
            assert executor.submit(functions.identity, data).result() == data
            settle(executor)
        with pytest.raises(RuntimeError, match="could not be measured|could not measure"):
            policy.calibrate()
    assert policy.costs is None or caplog.records == []


def test_without_calibrating():
    policy = ProxyAdaptive(calibrate=False)
    with StoreExecutor(pool(), None, policy, lazy=False) as executor:
        events = moves(executor)
        for size in (100_000, 800_000):
            executor.submit(len, bytearray(size)).result()
        assert policy.costs is None
        assert paths(events, "argument") == ["inline", "store"]
        policy.calibrate()
        assert policy.costs is not None


def test_calibrating_by_hand_replaces_what_was_known():
    policy = ProxyAdaptive()
    with pytest.raises(ValueError, match="executor"):
        policy.calibrate()
    with with_costs(pool(), policy=policy) as executor:
        before = policy.costs
        policy.calibrate()
        assert policy.costs != before
        assert _calibrations.load(before.setting) in (policy.costs, before)
        assert executor.submit(functions.add, 1, 2).result() == 3


def test_threads_share_their_memory():
    policy = ProxyAdaptive()
    with StoreExecutor(concurrent.futures.ThreadPoolExecutor(1), None, policy) as executor:
        data = bytearray(10_000_000)
        assert executor.submit(functions.identity, data).result() is data
        with pytest.raises(RuntimeError, match="nothing to measure"):
            policy.calibrate()
        assert policy.frozen()(data) is False


def test_what_travels_is_small_and_judges_alike():
    with with_costs(pool()) as executor:
        policy = executor._context.policy
        pickled = pickle.dumps(policy, protocol=5)
        assert len(pickled) < 200
        there = pickle.loads(pickled)
        limit = limits_of_results(policy.costs, 0.0).buffers
        assert there(bytearray(limit)) and not there(bytearray(limit - 100))
        assert not is_proxied(there, Candidate(None, PickleSerializer()))
        assert there.smallest == min(limits_of_results(policy.costs, 0.0))


def test_in_combinations():
    policy = ProxyAdaptive() & ~ProxyType(bytearray)
    with StoreExecutor(pool(), None, policy, lazy=False) as executor:
        executor._learner._keep(Calibration(CostModel(model().curves), True))
        events = moves(executor)
        executor.submit(len, bytearray(2 * LIMIT)).result()
        executor.submit(len, np.zeros(LIMIT)).result()
        assert paths(events, "argument") == ["inline", "store"]


def test_one_executor_at_a_time():
    policy = ProxyAdaptive()
    with StoreExecutor(pool(), None, policy):
        other = pool()
        with pytest.raises(ValueError, match="one executor"):
            StoreExecutor(other, None, policy)
        other.shutdown()
    with StoreExecutor(pool(), None, policy) as executor:
        assert executor._learner is policy._learner


def test_executors_that_are_dropped_go():
    policy = ProxyAdaptive()
    executor = with_costs(pool(), policy=policy)
    assert executor.submit(len, bytearray(2 * LIMIT)).result() == 2 * LIMIT
    settle(executor)
    base, gone = executor._base, weakref.ref(executor)
    gc.disable()
    try:
        del executor
        assert gone() is None
    finally:
        gc.enable()
        base.shutdown()


DEAR = model(store=(2 * MS, 2.5 * PER_MB), found=(0.05 * MS, 0.01 * PER_MB))


def test_what_is_sent_again_and_again_is_stored(tmp_path):
    with with_costs(pool(), DEAR) as executor:
        events = moves(executor)
        started, release = tmp_path / "started", tmp_path / "release"
        busy = executor.submit(functions.touch_then_wait, str(started), str(release))
        shared, others = bytearray(5_000_000), [bytearray([n]) * 5_000_000 for n in range(1, 4)]
        futures = [executor.submit(len, data) for data in (shared, *others, shared, shared, shared)]
        release.touch()
        busy.result()
        assert [future.result() for future in futures] == [5_000_000] * 7
        settle(executor)
        sent = [one.path for one in events if one.what == "argument" and one.bytes > 1_000_000]
        assert sent == ["inline"] * 4 + ["store", "found", "found"]


def test_what_never_comes_again_is_not_stored_for_long():
    with with_costs(pool(), DEAR) as executor:
        events = moves(executor)
        for number in range(60):
            for _ in range(2):  # each twice, one after the other: nothing is ever found
                executor.submit(len, bytearray([number]) * 3_000_000).result()
                settle(executor)
        sent = paths(events, "argument")
        assert "found" not in sent
        assert sent.count("store") <= 5
        assert sent[-20:] == ["inline"] * 20


def test_without_dedupe_nothing_is_found():
    with with_costs(pool(), DEAR, dedupe=False) as executor:
        events = moves(executor)
        data = bytearray(5_000_000)
        for future in [executor.submit(len, data) for _ in range(4)]:
            future.result()
        assert paths(events, "argument") == ["inline"] * 4


def test_what_a_mapped_callable_carries_is_shared():
    with with_costs(pool(), DEAR) as executor:
        events = moves(executor)
        carried = bytearray(5_000_000)
        call = functools.partial(functions.carried, carried)
        assert len(list(executor.map(call, range(3)))) == 3
        settle(executor)
        assert "inline" not in {one.path for one in events if one.bytes > 1_000_000}


def produce(number, size):
    return bytearray([number]) * size


@pytest.mark.parametrize("wait", [True, False], ids=["done", "pending"])
def test_results_that_are_passed_on_are_stored(wait):
    size = (PASSED_LIMIT + limits_of_results(model(), 0.0).buffers) // 2
    with with_costs(pool()) as executor:
        events = moves(executor)
        for number in range(3):
            future = executor.submit(produce, number, size)
            if wait:
                concurrent.futures.wait([future])
            assert executor.submit(len, future).result() == size
            settle(executor)
        assert paths(events, "result")[0] == "inline"
        assert paths(events, "result")[1:] == ["store", "store"]
        # And no more when that has ended.
        for number in range(200):
            executor.submit(produce, number % 250, size).result()
        settle(executor)
        assert paths(events, "result")[-1] == "inline"


def test_a_cap_on_what_is_stored(tmp_path):
    size = 2 * LIMIT
    policy = ProxyAdaptive(max_live_bytes=3 * size)
    with with_costs(pool(), policy=policy) as executor:
        assert executor.submit(produce, 8, size).result() == produce(8, size)
        settle(executor)
        executor.store.usage()
        events = moves(executor)
        held = [executor.store.proxy(bytearray([n]) * size) for n in range(2)]
        assert executor.submit(len, bytearray(size - 1000)).result()
        settle(executor)
        held.append(executor.store.proxy(bytearray([2]) * (size // 2)))
        assert executor.submit(len, bytearray(size - 1000)).result()
        result = executor.submit(produce, 9, size)
        assert result.result() == produce(9, size)
        assert executor.store.live.bytes <= 3 * size
        settle(executor)
        held.clear()
        executor.store.usage()
        assert executor.submit(len, bytearray(size - 1000)).result()
        assert paths(events, "argument") == ["store", "inline", "store"]


def test_results_are_sent_inline_when_too_much_is_stored():
    size = 2 * LIMIT
    policy = ProxyAdaptive(max_live_bytes="10 MB")
    with with_costs(pool(), policy=policy) as executor:
        events = moves(executor)
        results = []
        for number in range(60):
            results.append(executor.submit(produce, number, size))
            concurrent.futures.wait(results)
            settle(executor)
        assert executor.store.live.bytes <= 10_000_000
        assert paths(events, "result")[0] == "store"
        assert paths(events, "result")[-1] == "inline"
        assert [future.result()[0] for future in results] == list(range(60))


@pytest.mark.parametrize("most", [None, 1])
def test_workers_go_by_what_was_measured_before_from_the_first_task_on(most):
    with with_costs(pool()):
        pass  # what is known is on disk now
    with StoreExecutor(pool(), None, ProxyAdaptive(most), lazy=False) as executor:
        learner = adaptive(executor)
        assert learner.model is not None
        sizes = learner.limits_of_results
        assert sizes.buffers != DEFAULT.buffers
        events = moves(executor)
        # Nobody knows yet how large results are: there seems to be room.
        for size in (sizes.buffers // 2, 2 * sizes.buffers, 2 * sizes.buffers):
            assert len(executor.submit(produce, 1, size).result()) == size
            settle(executor)
        stored = "inline" if most else "store"
        assert paths(events, "result") == ["inline", "store", stored]


@pytest.mark.parametrize("wrong", [-1, "much"])
def test_what_is_no_cap(wrong):
    with pytest.raises(ValueError):
        ProxyAdaptive(max_live_bytes=wrong)


def test_explained():
    policy = ProxyAdaptive()
    before = policy.explain(bytearray(800_000))
    assert before.stored and before.inline_seconds is None and before.limit_bytes == 700_000
    with with_costs(pool(), policy=policy):
        small, large = policy.explain(bytearray(1000)), policy.explain(bytearray(5_000_000))
        assert (small.stored, large.stored) == (False, True)
        assert small.kind == large.kind == "buffers"
        assert large.bytes > 5_000_000 > large.limit_bytes == small.limit_bytes == LIMIT
        assert large.store_seconds < large.inline_seconds
        assert small.store_seconds > small.inline_seconds
        assert str(large) == large.reason
        assert f"{LIMIT:,} bytes" in str(small) and "inline" in str(small)
        words = policy.explain({"a": "x" * 10}, "result")
        assert (words.side, words.kind, words.stored) == ("result", "pickle", False)
        assert not policy.explain(None).stored


def test_reasons_name_the_policy():
    with with_costs(pool()) as executor:
        events = moves(executor)
        executor.submit(len, bytearray(2 * LIMIT)).result()
        [one] = [event for event in events if event.what == "argument"]
        assert one.decided_by == f"ProxyAdaptive(): {one.bytes} bytes, cheaper to store"


def test_frozen():
    policy = ProxyAdaptive()
    assert repr(policy.frozen()) == "ProxySize(700000)"
    with with_costs(pool(), policy=policy) as executor:
        for _ in range(3):
            executor.submit(len, bytearray(2 * LIMIT)).result()
        settle(executor)
        frozen = policy.frozen()
        again = eval(repr(frozen), {"ProxySize": ProxySize, "ProxyType": ProxyType})
        for one in (frozen, again):
            assert one(bytearray(2 * LIMIT)) and not one(bytearray(LIMIT // 2))
        assert "Adaptive" not in repr(frozen)
    with with_costs(pool(), model(store=(9 * MS, 9 * PER_MB)), ProxyAdaptive()) as executor:
        assert repr(executor._context.policy.frozen()) == "ProxyNever()"


def test_what_is_mapped_is_frozen_by_its_type():
    policy = ProxyAdaptive()
    with with_costs(pool(), DEAR, policy) as executor:
        call = functools.partial(functions.carried, bytearray(5_000_000))
        assert len(list(executor.map(call, range(3)))) == 3
        settle(executor)
        frozen = policy.frozen()
        assert re.fullmatch(r"\(ProxyType\(bytearray\) & ProxySize\(\d+\)\)", repr(frozen))
    with StoreExecutor(pool(), should_proxy=frozen, lazy=False) as other:
        events = moves(other)
        assert len(list(other.map(call, range(3)))) == 3
        settle(other)
        assert {one.path for one in events if one.bytes > 1_000_000} == {"store", "reference"}
    # Of a type that other arguments have as well, it would be those, too.
    with with_costs(pool(), DEAR, policy) as executor:
        assert len(list(executor.map(call, range(3)))) == 3
        assert executor.submit(len, bytearray(5_000_000)).result() == 5_000_000
        settle(executor)
        assert repr(policy.frozen()) == "ProxyNever()"


def test_what_is_seen_while_it_is_frozen_is_no_harm():
    history = History()
    history.add_argument("buffers", bytes, LIMIT)

    class Kind(str):
        """Has another thread's object come whenever it is looked at."""

        __slots__ = ()
        __hash__ = str.__hash__

        def __eq__(self, other):
            history.add_argument("pickle", dict, 1 << next(bits))
            return str.__eq__(self, other)

    bits = itertools.count()
    kind = Kind("buffers")
    assert history.best(model(), kind, [1, NEVER], directly=False, pickling=1.0) == 1
    assert next(bits) > 1


def test_proxies_where_these_are_asked_for():
    with with_costs(pool(), lazy=True) as executor:
        assert not is_proxy(executor.submit(produce, 1, LIMIT // 4).result())
        result = executor.submit(produce, 1, 4 * LIMIT).result()
        assert is_proxy(result)
        assert executor.submit(len, result).result() == 4 * LIMIT


def test_parts_of_containers():
    with with_costs(pool(), nested=True) as executor:
        shared = np.ones(LIMIT)
        value = executor.submit(functions.identity, {"a": shared, "b": [1, shared]}).result()
        assert value["a"] is value["b"][1]
        assert np.array_equal(value["a"], shared)
        settle(executor)
        assert executor.store.usage().objects == 0


def test_many_threads_at_once():
    with with_costs(pool(workers=2)) as executor:
        barrier = threading.Barrier(4)

        def run(number):
            barrier.wait()
            for turn in range(20):
                size = LIMIT // 2 if turn % 2 else 2 * LIMIT
                data = executor.submit(produce, number, size)
                assert executor.submit(len, data).result() == size

        with concurrent.futures.ThreadPoolExecutor(4) as threads:
            list(threads.map(run, range(4)))
        settle(executor)
        assert executor.store.usage().objects == 0


def test_costs_are_measured_again_when_storing_takes_something_else(monkeypatch):
    quick = model(put=(1e-9, 1e-15), get=(1e-9, 1e-15))
    policy, measured = ProxyAdaptive(), []

    def counted(executor, **options):
        measured.append(calibrate(executor, seconds=0.05, **options))
        return measured[-1]

    monkeypatch.setattr("proxyexec._learning.calibrate", counted)
    with with_costs(pool(), quick, policy) as executor:
        before = policy.costs
        while not measured:
            executor.submit(len, bytearray(2 * LIMIT)).result()
            settle(executor)
        # On a busy machine, what is known is the better guess.
        if any(one.is_steady for one in measured):
            assert policy.costs.curves == measured[-1].model.curves
        else:
            assert policy.costs is before


def test_what_was_measured_on_a_busy_machine_is_not_for_others():
    policy = ProxyAdaptive()
    with StoreExecutor(pool(), None, policy) as executor:
        executor._learner._keep(Calibration(model(), False))
        assert policy.costs.curves == model().curves
        assert _calibrations.load(policy.costs.setting) is None
        executor._learner._keep(Calibration(model(), True))
        assert _calibrations.load(policy.costs.setting) == policy.costs
