"""What is measured of tasks, in all processes, and who is told."""

from __future__ import annotations

import concurrent.futures
import functools
import gc
import logging
import multiprocessing
import os
import pickle
import threading
import weakref

import pytest

from proxyexec import (
    Policy,
    ProxyAlways,
    ProxyNever,
    ProxySize,
    ProxyType,
    StoreExecutor,
    resolve,
)
from proxyexec._measures import Evicted, Moved, Ran, Resolved
from proxyexec._record import Measured, Record, here
from proxyexec._serialize import Candidate, PickleSerializer
from proxyexec.policy import dismissal_of, is_proxied, reason_of
from tests import functions
from tests.conftest import settle

FORK = multiprocessing.get_context("fork")
BIG = 200_000


def make_base(kind):
    if kind == "thread":
        return concurrent.futures.ThreadPoolExecutor(1)
    return concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context(kind))


@pytest.fixture(params=["thread", "fork", "spawn"])
def kind(request):
    return request.param


@pytest.fixture(params=[True, False], ids=["lazy", "eager"])
def lazy(request):
    return request.param


def told(executor, **options):
    events = []
    executor._measures.observe(events.append, **options)
    return events


def of(events, kind):
    return [event for event in events if type(event) is kind]


def test_what_moves_is_told(kind, lazy):
    with StoreExecutor(make_base(kind), should_proxy=ProxySize("100 kB"), lazy=lazy) as executor:
        events = told(executor)
        future = executor.submit(functions.add, bytes(BIG), b"a")
        assert len(future.result()) == BIG + 1
        resolve(future.result()) if lazy else None
        settle(executor)
        argument, result = of(events, Moved)
        assert (argument.what, argument.name, argument.type) == ("argument", 0, "bytes")
        assert (result.what, result.name, result.type) == ("result", None, "bytes")
        assert argument.path == result.path == "store"
        assert argument.exact
        assert BIG < argument.bytes < BIG + 100
        assert argument.decided_by == f"ProxySize(100000): {argument.bytes} bytes"
        assert argument.put_s > 0 < result.put_s
        assert argument.serialize_s > 0 < result.serialize_s
        first, second = of(events, Resolved)
        assert {first.where, second.where} == {"worker", "client"}
        assert {first.key, second.key} == {argument.key, result.key}
        assert first.get_s > 0 < first.load_s
        (ran,) = of(events, Ran)
        assert ran.moved == (argument, result)
        assert (ran.task, ran.function, ran.state, ran.calls) == (result.task, "add", "done", 1)
        assert ran.run_s > 0 < ran.wait_s
        assert ran.submitted < ran.ended
        assert ran.wait_s + ran.run_s + ran.unpack_s + ran.pack_s == pytest.approx(
            ran.ended - ran.submitted
        )
        del future
        gc.collect()
        executor.store.usage()
        evicted = of(events, Evicted)
        assert {one.key for one in evicted} == {argument.key, result.key}
        assert all(one.resolved for one in evicted)


def test_small_calls_are_told_only_to_who_wants_everything(kind):
    with StoreExecutor(make_base(kind), should_proxy=ProxySize("100 kB")) as executor:
        few, all_ = told(executor), []
        for n in range(5):
            assert executor.submit(functions.add, n, b=1).result() == n + 1
        settle(executor)
        assert not few
        stop = executor._measures.observe(all_.append, every=True)
        assert executor.submit(functions.add, "a", b="b").result() == "ab"
        settle(executor)
        stop()
        executor.submit(functions.add, 1, 1).result()
        settle(executor)
        first, second, result = of(all_, Moved)[:3]
        assert [first.name, second.name, result.what] == [0, "b", "result"]
        assert not first.exact
        assert first.bytes == 1
        assert first.decided_by == "ProxySize(100000): 1 bytes"
        ran = of(all_, Ran)[0]
        assert ran.worker.rpartition(":")[2].isdigit()
        assert ran.started > 0
        assert len(of(all_, Ran)) == 2  # the other one is that which settle() submits


def test_tasks_are_counted_whatever_becomes_of_them(kind):
    with StoreExecutor(make_base(kind), should_proxy=ProxyAlways()) as executor:
        assert executor.submit(functions.add, 1, 1).result() == 2
        with pytest.raises(ValueError, match="boom"):
            executor.submit(functions.boom, bytes(BIG)).result()
        list(executor.map(functions.identity, range(10), chunksize=5))
        list(executor.map(functions.identity, range(10), chunksize="auto"))
        settle(executor)
        counts = executor._measures.settled()
        assert counts.tasks_failed == 1
        assert counts.tasks_done >= 1 + 2 + 1
        assert counts.calls == 2 + 10 + 10
        assert counts.run_s > 0


def test_seconds_of_small_calls_arrive_with_later_ones():
    with StoreExecutor(make_base("fork"), should_proxy=ProxySize("1 MB")) as executor:
        for _ in range(50):
            executor.submit(sum, range(2000)).result()
        settle(executor)
        counts = executor._measures.settled()
        assert counts.run_s > 0
        assert counts.turnaround_s > counts.worker_s >= counts.run_s


def test_content_that_is_there_already_is_found(lazy):
    data = bytes(BIG)
    with StoreExecutor(make_base("fork"), should_proxy=ProxySize("100 kB"), lazy=lazy) as executor:
        events = told(executor, every=True)
        held = executor.submit(functions.identity, bytes(BIG)) if lazy else None
        for result in executor.map(len, [data, data, data]):
            assert result == BIG
        settle(executor)
        arguments = [one for one in of(events, Moved) if one.what == "argument" and one.key]
        paths = [one.path for one in arguments]
        assert paths.count("store") == 1
        assert paths.count("found") == len(paths) - 1
        assert len({one.content for one in arguments}) == 1
        counts = executor._measures.settled()
        assert counts.objects_found == len(paths) - 1
        assert counts.bytes_found == counts.objects_found * arguments[0].bytes
        del held


def test_results_that_are_passed_on_are_references():
    with StoreExecutor(make_base("fork"), should_proxy=ProxySize("100 kB")) as executor:
        events = told(executor)
        made = executor.submit(functions.make_bytes, BIG)
        assert executor.submit(len, made).result() == BIG
        settle(executor)
        (reference,) = [one for one in of(events, Moved) if one.what == "argument"]
        assert (reference.path, reference.put_s) == ("reference", 0.0)
        assert reference.decided_by == "it is stored already"
        assert reference.key == made.result().__reduce_ex__(2)[1][0].key


def test_parts_are_told_beside_the_whole():
    with StoreExecutor(
        make_base("fork"), should_proxy=ProxySize("100 kB"), nested=True
    ) as executor:
        events = told(executor)
        assert executor.submit(len, {"a": bytes(BIG), "b": 1}).result() == 2
        settle(executor)
        whole, part = of(events, Moved)
        assert (whole.path, part.path, part.is_part) == ("inline", "store", True)
        assert whole.bytes < 1000 < BIG < part.bytes
        assert whole.serialize_s >= 0


def test_functions_that_carry_something_are_told_once_as_stored():
    function = functools.partial(functions.add, bytes(BIG))
    with StoreExecutor(make_base("fork"), should_proxy=ProxySize("100 kB")) as executor:
        events = told(executor)
        for result in executor.map(function, [b"a"] * 3):
            assert len(result) == BIG + 1
        settle(executor)
        sent = [one for one in of(events, Moved) if one.what == "function"]
        assert [one.path for one in sent if one.is_part] == ["store", "reference", "reference"]


def test_objects_that_nobody_fetches_are_counted():
    with StoreExecutor(make_base("fork"), should_proxy=ProxySize("100 kB")) as executor:
        assert executor.submit(functions.kind, bytes(BIG)).result() == ("Proxy", True, False)
        executor.submit(functions.make_bytes, BIG).result()
        # Not what the first one was, which may be held still, and found.
        assert executor.submit(len, b"1" * BIG).result() == BIG
        settle(executor)
        gc.collect()
        executor.store.usage()
        live = executor.store.live
        assert (live.unread, live.evicted, live.bytes) == (2, 3, 0)
        assert 2 * BIG < live.unread_bytes < 2 * BIG + 200
        assert live.peak_bytes >= BIG


def test_what_a_failed_task_has_fetched_is_not_known():
    with StoreExecutor(make_base("fork"), should_proxy=ProxySize("100 kB")) as executor:
        executor.submit(functions.boom, bytes(BIG)).exception()
        within = [executor.store.proxy(bytes([n]) * BIG) for n in range(2)]
        executor.submit(functions.boom, [bytes(BIG), *within]).exception()
        settle(executor)
        del within
        gc.collect()
        executor.store.usage()
        assert executor.store.live.unread == 0


def test_an_observer_that_fails_is_logged_once_and_no_more(caplog):
    with StoreExecutor(make_base("fork"), should_proxy=ProxyAlways()) as executor:
        calls = []

        def fails(event):
            calls.append(event)
            raise RuntimeError("not mine")

        executor._measures.observe(fails)
        with caplog.at_level(logging.ERROR, "proxyexec"):
            assert executor.submit(functions.total, [1, 2]).result() == 3
            settle(executor)
        assert len(calls) > 2
        assert len(caplog.records) == 1


def test_observing_ends():
    with StoreExecutor(make_base("fork"), should_proxy=ProxyAlways()) as executor:
        events = []
        stop = executor._measures.observe(events.append, every=True)
        assert executor._measures.every
        stop()
        executor.submit(functions.total, [1, 2]).result()
        settle(executor)
        assert not events
        assert not executor._measures.observed
        assert not executor._measures.every


def test_policies_that_learn_are_handed_the_executor_once():
    attached = []

    class Learns(Policy):
        def judge(self, candidate):
            return False

        def attach(self, executor):
            attached.append((self, executor))
            executor._measures.observe(attached.append)

    one, other = Learns(), Learns()
    policy = (one & ProxySize(1)) | ~(other | one) & (lambda obj: False)
    with StoreExecutor(make_base("thread"), should_proxy=policy) as executor:
        assert {term for term, _ in attached} == {one, other}
        assert len(attached) == 2
        assert all(given is executor for _, given in attached)


class Compound(Policy):
    """Asks others in its turn."""

    def __init__(self, inner):
        self.inner = inner

    def judge(self, candidate):
        return self.inner.judge(candidate)


@pytest.mark.parametrize(
    ("policy", "obj", "reason"),
    [
        (ProxySize(10) & ProxyType(str), "abc", "ProxyType(str): str"),
        (ProxySize(10**6) & ProxyType(str), "a" * 99, "ProxySize(1000000): {size} bytes"),
        (ProxyType(list) | ProxySize(1), [1], "ProxyType(list): list"),
        (ProxyType(str) | ProxySize(1), [1], "ProxySize(1): {size} bytes"),
        (
            ProxyType(str) | ProxySize(10**6),
            [1],
            "ProxyType(str): list and ProxySize(1000000): {size} bytes",
        ),
        (~ProxyType(str) & ProxyAlways(), "a", "~ProxyType(str): str"),
        (ProxyNever(), [1], "ProxyNever(): not wanted"),
        (Compound(ProxyType(str) & ProxySize(1)) | ProxyType(list), [1], "ProxyType(list): list"),
        (ProxyAlways(), None, "NoneType: never proxied"),
    ],
)
def test_the_term_that_decided_is_named(policy, obj, reason):
    candidate = Candidate(obj, PickleSerializer())
    is_proxied(policy, candidate)
    size = len(candidate.frames) and candidate.size
    kind = type(obj).__name__
    said = reason_of(policy, candidate.answers, kind, size)
    assert said == reason.format(size=size) or (
        obj == "abc" and said == f"ProxySize(10): {size} bytes and {reason}"
    )


def test_callables_are_asked_once_and_named():
    asked = []

    def wants(obj):
        asked.append(obj)
        return True

    candidate = Candidate([1], PickleSerializer())
    policy = ProxyType(list) & wants
    assert is_proxied(policy, candidate)
    reason = reason_of(policy, candidate.answers, "list", None)
    assert reason == f"ProxyType(list): list and {wants.__qualname__}: wanted"
    assert len(asked) == 1


def test_what_dismisses_at_a_glance_is_named():
    assert dismissal_of(ProxySize(1000), b"a", 33) == "ProxySize(1000): 33 bytes"
    policy = ProxySize(1) & ProxyType(str)
    assert dismissal_of(policy, b"a", 33) == "ProxyType(str): bytes"
    both = ProxyType(str) | ProxySize(1000)
    assert dismissal_of(both, 1, 33) == "ProxyType(str): int and ProxySize(1000): 33 bytes"


class Speechless(Policy):
    def judge(self, candidate):
        return True

    def dismisses(self, obj, bound):
        if self.asked:
            raise RuntimeError("dismisses")
        self.asked = True
        return True

    def reason(self, kind, size, wanted):
        raise RuntimeError("reason")

    def __repr__(self):
        raise RuntimeError("repr")

    asked = False


def test_nothing_fails_for_want_of_words():
    with StoreExecutor(make_base("thread"), should_proxy=Speechless() & ProxySize(1)) as executor:
        events = told(executor, every=True)
        assert executor.submit(functions.add, 1, 1).result() == 2
        assert executor.submit(functions.total, [[1][0]] * 999).result() == 999
        settle(executor)
        name = f"{__name__}.Speechless"
        assert {one.decided_by.partition(":")[0] for one in of(events, Moved)} >= {name}


def test_reports_survive_pickling():
    record = Record()
    record.begin()
    record.run_s = 1.5
    record.more = (3, 4, 5.0, 6.0)
    measured = record.outcome({"a": 1}, "memory:", {})
    copy = pickle.loads(pickle.dumps(measured))
    assert type(copy) is Measured
    assert copy.outcome == {"a": 1}
    assert copy.report == measured.report


def test_only_so_many_fetches_are_told_one_by_one(kind):
    with StoreExecutor(make_base(kind), should_proxy=ProxyType(list)) as executor:
        proxies = [executor.store.proxy([n]) for n in range(300)]
        assert executor.submit(functions.lengths, proxies).result() == [1] * 300
        settle(executor)
        counts = executor._measures.settled()
        assert counts.objects_resolved == 301  # and the list of them
        assert counts.bytes_resolved > 300 * 10
        assert here.mine.record is None
        del proxies
        gc.collect()
        executor.store.usage()
        live = executor.store.live
        assert (live.unread, len(live)) == (0, 0)


class Held:
    def __init__(self):
        self.data = bytes(BIG)


def test_nothing_is_kept_alive_by_being_measured():
    with StoreExecutor(make_base("thread"), should_proxy=ProxySize(1)) as executor:
        told(executor, every=True)
        argument = Held()
        gone = weakref.ref(argument)
        future = executor.submit(functions.kind, argument)
        assert future.result() == ("Proxy", True, False)
        settle(executor)
        del argument
        gc.collect()
        assert gone() is None


def test_a_child_is_not_kept_waiting_by_a_lock_of_its_parents_threads():
    with StoreExecutor(make_base("thread"), should_proxy=ProxyAlways()) as executor:
        measures = executor._measures
        held, release = threading.Event(), threading.Event()

        def hold():
            with measures.lock:
                held.set()
                release.wait()

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait()
        pid = os.fork()
        if not pid:
            free = measures.lock.acquire(timeout=20)
            os._exit(0 if free else 1)
        release.set()
        thread.join()
        assert os.waitpid(pid, 0)[1] == 0
