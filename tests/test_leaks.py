"""What ``leaks()`` tells: what is stored, as what, and who holds it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import os
import pickle
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, wait
from contextlib import closing

import pytest

from proxyexec import (
    ProxyAlways,
    ProxySize,
    ProxyType,
    Store,
    StoreExecutor,
    _holders,
    _leaks,
    clone,
    disown,
    is_resolved,
    reference_of,
    resolve,
)
from proxyexec.aio import AsyncStoreExecutor
from proxyexec_connectors.file import FileConnector
from proxyexec_connectors.memory import MemoryConnector
from tests.conftest import settle
from tests.functions import add, append, boom, carried, identity, make_list, total, touch_then_wait

MANY = list(range(1000))

at_module_level = None


@pytest.fixture(params=["memory", "files", "redis"])
def store(request):
    with contextlib.ExitStack() as stack:
        if request.param == "redis":
            pytest.importorskip("redis")
            from proxyexec_connectors.redis import RedisConnector
            from tests.redis_server import redis_server

            connector = RedisConnector(stack.enter_context(redis_server()).url)
        else:
            connector = {"memory": MemoryConnector, "files": FileConnector}[request.param]()
        yield stack.enter_context(closing(Store("mine", connector)))


@pytest.fixture
def executor(store):
    with StoreExecutor(ThreadPoolExecutor(2), store, ProxySize(1000)) as executor:
        yield executor


def the_only(leaks):
    [one] = leaks.objects
    return one


def texts(one):
    return [str(holder) for holder in one.holders]


def kinds(one):
    return sorted(holder.kind for holder in one.holders)


def test_nothing_is_stored(executor):
    leaks = executor.leaks()
    assert (len(leaks), leaks.bytes, leaks.objects) == (0, 0, ())
    assert repr(leaks) == f"0 objects, 0 bytes in {executor.store.connector.url}"
    assert executor.submit(add, 1, 2).result() == 3
    settle(executor)
    assert len(executor.leaks()) == 0


def test_a_result(executor):
    before = time.time()
    future = executor.submit(make_list, 1000)
    wait([future])
    settle(executor)
    one = the_only(executor.leaks())
    assert one.type == "list"
    assert one.bytes == executor.store.usage().bytes
    assert one.stored_as == "result of make_list"
    assert before - 1 <= one.since <= time.time() + 1
    assert 0 <= one.age_seconds < 60
    # Nobody has taken it from the future.
    assert kinds(one) == ["future"]
    assert one.holders[0].name == "make_list"
    result = future.result()
    del future
    one = the_only(executor.leaks())
    assert kinds(one) == ["proxy"]
    assert not is_resolved(result)
    assert one.holders[0].state == "not resolved"
    resolve(result)
    assert the_only(executor.leaks()).holders[0].state == "resolved"
    del result
    assert len(executor.leaks()) == 0


@pytest.mark.parametrize("few", [0, 50])
def test_a_result_that_both_have(executor, monkeypatch, few):
    monkeypatch.setattr(_holders, "_FEW", few)
    future = executor.submit(make_list, 1000)
    mine = [future.result()]
    settle(executor)
    one = the_only(executor.leaks())
    assert kinds(one) == ["future", "proxy"]
    assert "a list" in next(each for each in one.holders if each.kind == "proxy").where
    mine.clear()
    assert kinds(the_only(executor.leaks())) == ["future"]


def test_a_result_that_is_fetched(store):
    with StoreExecutor(ThreadPoolExecutor(1), store, ProxySize(1000), lazy=False) as executor:
        future = executor.submit(make_list, 1000)
        wait([future])
        settle(executor)
        assert kinds(the_only(executor.leaks())) == ["future"]
        assert future.result() == MANY
        assert len(executor.leaks()) == 0


@pytest.mark.parametrize("few", [0, 50])
def test_where_proxies_are_kept(executor, monkeypatch, few):
    global at_module_level
    monkeypatch.setattr(_holders, "_FEW", few)

    class Model:
        pass

    def captured():
        return in_closure

    def suspended():
        in_generator = executor.submit(make_list, 1005).result()
        yield
        del in_generator

    model, generator = Model(), suspended()
    model.weights = executor.submit(make_list, 1001).result()
    in_list = [executor.submit(make_list, 1002).result()]
    in_dict = {"weights": executor.submit(make_list, 1003).result()}
    in_closure = executor.submit(make_list, 1004).result()
    next(generator)
    at_module_level = executor.submit(make_list, 1006).result()
    local = executor.submit(make_list, 1007).result()
    settle(executor)
    for _ in range(2):  # looking changes nothing of what is seen
        leaks = executor.leaks()
        found = {one.holders[0].where for one in leaks}
        assert {kind for one in leaks for kind in kinds(one)} == {"proxy"}
        assert len(leaks) == 7
        names = {place for where in found for place in where}
        model_name = f"{__name__}.test_where_proxies_are_kept.<locals>.Model.weights"
        assert model_name in names
        assert f"{__name__}.at_module_level" in names
        assert "a list" in names
        assert "a dict, at 'weights'" in names
        assert "a variable that a function has captured" in names
        assert any(name.startswith("a variable of") and "suspended" in name for name in names)
        assert any(name.startswith("a variable of ") for name in names)
    at_module_level = None
    assert len(in_list) + len(in_dict) == 2
    assert local is not None
    assert captured() is not None
    generator.close()


def test_holders_that_do_not_let_anybody_look(executor):
    class Kind(type):
        def __eq__(self, other):
            raise AssertionError("nobody compares")

    class Odd(metaclass=Kind):
        __slots__ = ("kept",)

        @property
        def __dict__(self):
            raise RuntimeError("nobody looks")

        def __getattribute__(self, name):
            raise AssertionError("nobody looks")

        def __eq__(self, other):
            raise AssertionError("nobody compares")

        __hash__ = None

        __class__ = property(lambda self: 1 / 0)

    odd = Odd()
    Odd.kept.__set__(odd, executor.submit(make_list, 1000).result())
    settle(executor)
    one = the_only(executor.leaks())
    assert kinds(one) == ["proxy"]
    assert "Odd" in one.holders[0].where[0]


def test_arguments(executor):
    started, release = threading.Event(), threading.Event()

    def hold(first, *, second):
        started.set()
        release.wait()

    future = executor.submit(hold, MANY, second=MANY[:500])
    assert started.wait(30)
    try:
        found = {one.stored_as: one for one in executor.leaks()}
        name = hold.__qualname__
        assert set(found) == {f"argument 0 of {name}", f"argument 'second' of {name}"}
        for one in found.values():
            tasks = [each for each in one.holders if each.kind == "task"]
            assert [(task.name, task.state) for task in tasks] == [(name, "running")]
            assert one.type == "list"
    finally:
        release.set()
    wait([future])
    settle(executor)
    assert len(executor.leaks()) == 0


def test_one_object_for_many_tasks(executor):
    release = threading.Event()

    def hold(items):
        release.wait()

    futures = [executor.submit(hold, MANY) for _ in range(5)]
    try:
        one = the_only(executor.leaks())
        assert [each.kind for each in one.holders].count("task") == 5
        states = {each.state for each in one.holders if each.kind == "task"}
        assert states <= {"running", "pending"}
        assert "pending" in states
        assert f"task {hold.__qualname__} (pending)" in repr(executor.leaks())
    finally:
        release.set()
    wait(futures)


def test_a_task_of_another_process(store, tmp_path):
    if store.connector.url.startswith("memory"):
        pytest.skip("not for processes")
    started, release = tmp_path / "started", tmp_path / "release"
    with StoreExecutor(ProcessPoolExecutor(1), store, ProxySize(1000)) as executor:
        waiting = executor.submit(touch_then_wait, str(started), str(release))
        future = executor.submit(total, MANY)
        one = the_only(executor.leaks())
        assert one.stored_as == "argument 0 of total"
        assert [(each.kind, each.name) for each in one.holders] == [("task", "total")]
        release.touch()
        assert waiting.result() == "done"
        assert future.result() == sum(MANY)
        result = executor.submit(append, MANY, 5).result()
        settle(executor)
        one = the_only(executor.leaks())
        assert one.stored_as == "result of append"
        assert len(result) == 1001


def test_a_result_that_is_on_its_way(store):
    """A worker has stored it; the client does not know yet that the task has ended."""
    stored, release = threading.Event(), threading.Event()
    put = store.connector.put

    def slow(key, frames):
        put(key, frames)
        stored.set()
        release.wait()

    with StoreExecutor(ThreadPoolExecutor(1), store, ProxySize(1000)) as executor:
        store.connector.put = slow
        try:
            future = executor.submit(make_list, 1000)
            assert stored.wait(30)
            one = the_only(executor.leaks())
            assert one.stored_as == "result of make_list"
            assert texts(one) == ["task make_list (running)"]
        finally:
            release.set()
            del store.connector.put
        wait([future])


def test_what_nobody_holds(executor):
    reference = executor.store.put(MANY)
    [one] = executor.leaks().unheld
    assert (one.key, one.holders, one.stored_as) == (reference.key, (), "")
    assert repr(executor.leaks()).endswith("nobody")
    disowned = disown(executor.store.proxy(MANY[1:]))
    assert len(executor.leaks().unheld) == 2
    del disowned
    assert len(executor.leaks().unheld) == 2


def test_proxies_that_users_make(executor):
    one = executor.store.proxy(MANY)
    other = clone(one)
    held = the_only(executor.leaks())
    assert held.stored_as == "Store.proxy()"
    assert kinds(held) == ["proxy", "proxy"]
    assert len(one) == 1000
    del one, other
    assert len(executor.leaks()) == 0


def test_objects_that_hold_others(executor):
    inner = executor.store.proxy(MANY)
    outer = executor.store.proxy([inner, "x" * 2000])
    del inner
    found = {one.type: one for one in executor.leaks()}
    assert len(found) == 1  # both are lists
    leaks = executor.leaks()
    assert len(leaks) == 2
    assert sorted(kind for one in leaks for kind in kinds(one)) == ["object", "proxy"]
    [key] = [each.name for one in leaks for each in one.holders if each.kind == "object"]
    assert key == next(one.key for one in leaks if kinds(one) == ["proxy"])
    del outer
    assert len(executor.leaks()) == 0


def test_the_callable_of_a_map(store):
    if store.connector.url.startswith("memory"):
        pytest.skip("not for processes")
    with StoreExecutor(ProcessPoolExecutor(1), store, ProxyType(list)) as executor:
        function = functools.partial(carried, MANY)
        results = executor.map(function, range(9), buffersize=1)
        assert next(results)[1] == 1000
        settle(executor)
        one = the_only(executor.leaks())
        assert one.stored_as == "in the callable partial(carried)"
        assert [(each.kind, each.name) for each in one.holders] == [("map", "partial(carried)")]
        results.close()
        settle(executor)
        assert len(executor.leaks()) == 0


def test_results_of_chunks(store):
    if store.connector.url.startswith("memory"):
        pytest.skip("not for processes")
    with StoreExecutor(ProcessPoolExecutor(1), store, ProxySize(1000)) as executor:
        results = executor.map(make_list, [1000, 1001, 1002, 1003], chunksize=2)
        first = next(results)
        settle(executor)
        leaks = executor.leaks()
        assert len(leaks) == 4
        assert {one.stored_as for one in leaks} == {"result of make_list"}
        assert all(one.holders for one in leaks)
        assert "other" not in {kind for one in leaks for kind in kinds(one)}
        assert len(first) == 1000
        results.close()


def test_failed_and_cancelled_calls(executor):
    with pytest.raises(ValueError, match="boom"):
        executor.submit(boom, MANY).result()
    settle(executor)
    assert len(executor.leaks()) == 0


def test_a_store_that_is_closed():
    executor = StoreExecutor(ThreadPoolExecutor(1), MemoryConnector(), ProxyAlways())
    with executor:
        result = executor.submit(make_list, 10).result()
    # The store outlives the executor as long as results do.
    assert kinds(the_only(executor.leaks())) == ["proxy"]
    del result
    assert len(executor.leaks()) == 0
    assert len(executor.leaks()) == 0


def test_what_is_held_since_a_moment_ago(executor, monkeypatch):
    """A task ends when futures have been looked at, and something holds its result."""
    kept, put = executor.store.proxy(MANY), executor.store.put(MANY[1:])
    monkeypatch.setattr(_leaks, "holders_of", lambda leases: ({}, []))
    found = {one.key: texts(one) for one in executor.leaks()}
    assert found == {put.key: [], reference_of(kept).key: ["other"]}


def test_other_stores_are_not_told_of(executor):
    with closing(Store("other", MemoryConnector())) as other:
        one, two = other.proxy(MANY), executor.store.proxy(MANY)
        assert len(executor.leaks()) == len(other.leaks()) == 1
        assert one == two


def test_asking_keeps_nothing(executor):
    result = executor.submit(make_list, 1000).result()
    settle(executor)
    leaks = executor.leaks()
    references = sys.getrefcount(result)
    for _ in range(3):
        executor.leaks()
    assert sys.getrefcount(result) == references
    assert not is_resolved(result)
    del result
    assert executor.store.usage().objects == 0
    assert len(leaks) == 1  # what was told stays


def test_asking_while_others_work(executor):
    stop = threading.Event()

    def work():
        while not stop.is_set():
            executor.submit(append, MANY, 1).result()

    with ThreadPoolExecutor(2) as threads:
        working = [threads.submit(work) for _ in range(2)]
        try:
            for _ in range(10):
                for one in executor.leaks():
                    assert one.bytes
                    assert str(one.holders)
        finally:
            stop.set()
        for each in working:
            each.result()
    settle(executor)
    gc.collect()
    assert len(executor.leaks()) == 0


def test_notes_go_with_their_objects(executor):
    leases = executor.store._leases
    for _ in range(20):
        executor.submit(append, MANY, 1).result()
    settle(executor)
    executor.store.usage()
    assert leases.notes == {}
    assert not leases._counts
    kept = executor.store.proxy(MANY)
    assert list(leases.notes) == list(leases._counts)
    disown(kept)
    executor.store.usage()
    assert leases.notes == {}


def test_a_forked_child_owns_nothing(store):
    from proxyexec_connectors.testing import _in_a_fork

    with pytest.raises(ValueError, match="owned by another process"):
        _in_a_fork(store.leaks)


def test_a_connector_that_does_not_tell():
    class Silent:
        """Has what every connector has, and no more."""

        is_remote = False

        def __init__(self):
            self._kept = MemoryConnector()

        def __getattr__(self, name):
            if name in ("objects", "listing"):
                raise AttributeError(name)
            return getattr(self._kept, name)

    with closing(Store("mine", Silent())) as store:
        kept = store.proxy(MANY)
        one = the_only(store.leaks())
        assert (one.bytes, one.stored_as, one.type) == (None, "Store.proxy()", "list")
        assert one.since is one.age_seconds is None
        assert kinds(one) == ["proxy"]
        assert "1 object, 0 bytes" in repr(store.leaks())
        assert len(kept) == 1000


def test_the_table(executor):
    small, large = executor.store.proxy(MANY[:300]), executor.store.proxy(MANY)
    summary, head, first, second = repr(executor.leaks()).splitlines()
    assert summary.startswith("2 objects, ")
    assert head.split() == ["KEY", "TYPE", "BYTES", "AGE", "STORED", "AS", "HELD", "BY"]
    keys = [one.key for one in executor.leaks()]
    assert [line.split()[0] for line in (first, second)] == keys
    assert int(first.split()[2].replace(",", "")) > int(second.split()[2].replace(",", ""))
    page = executor.leaks()._repr_html_()
    assert page.count("<tr>") == 3
    assert keys[0] in page
    assert len(small) + len(large) == 1300


def test_a_table_is_escaped(store):
    with StoreExecutor(ThreadPoolExecutor(1), store, ProxySize(1000)) as executor:
        release = threading.Event()

        def hold(**kwargs):
            release.wait()

        future = executor.submit(hold, **{"<b>\x1b[31m": MANY})
        leaks = executor.leaks()
        release.set()
        wait([future])
        assert "<b>" not in leaks._repr_html_()
        assert "&lt;b&gt;" in leaks._repr_html_()
        assert "\x1b" not in repr(leaks)


def test_many_rows(store):
    kept = [store.proxy([number]) for number in range(100)]
    assert repr(store.leaks()).splitlines()[-1] == "... and 40 more"
    assert "and 40 more" in store.leaks()._repr_html_()
    assert len(store.leaks()) == len(kept)


def test_answers_can_be_kept(executor):
    kept = executor.store.proxy(MANY)
    leaks = executor.leaks()
    assert pickle.loads(pickle.dumps(leaks)) == leaks
    assert kept


def test_task_groups(tmp_path):
    url = (tmp_path / "groups").as_uri()
    with StoreExecutor(ThreadPoolExecutor(1), url, ProxySize(1000), task_group="g") as executor:
        result = executor.submit(identity, MANY).result()
        found = {one.stored_as for one in executor.leaks()}
        assert {"a call of the group", "an outcome of the group"} <= found
        assert all(one.holders for one in executor.leaks())
        assert len(result) == 1000
        del result


def test_coroutines():
    async def program():
        async with AsyncStoreExecutor(
            ThreadPoolExecutor(1), MemoryConnector(), ProxySize(1000)
        ) as executor:
            handle = executor.submit(make_list, 1000)
            await handle
            one = the_only(await asyncio.to_thread(executor.store.leaks))
            assert one.stored_as == "result of make_list"
            assert one.holders
            del handle

    asyncio.run(program())


def test_a_server_that_is_gone():
    pytest.importorskip("redis")
    from proxyexec.errors import ConnectorUnavailableError
    from proxyexec_connectors.redis import RedisConnector
    from tests.redis_server import redis_server

    with redis_server() as server:
        store = Store("mine", RedisConnector(server.url, timeout=0.2))
        store.put(MANY)
        server.stop()
        with pytest.raises(ConnectorUnavailableError):
            store.leaks()
        store.close_or_log()
    assert os.getpid()
