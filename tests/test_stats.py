"""``executor.stats()``: counts, bytes and times over all processes."""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import gc
import multiprocessing
import os
import threading

import pytest

import proxyexec
from proxyexec import ProxyAlways, ProxySize, StoreExecutor
from proxyexec._chunk_call import TimedChunkCall
from proxyexec._mapped import MappedFunction
from proxyexec.aio import AsyncStoreExecutor
from proxyexec.metrics import Stats
from tests import functions
from tests.conftest import settle

FORK = multiprocessing.get_context("fork")
BIG = 200_000


def make_base(kind="fork"):
    if kind == "thread":
        return concurrent.futures.ThreadPoolExecutor(1)
    return concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context(kind))


@pytest.mark.parametrize("kind", ["thread", "fork", "spawn"])
@pytest.mark.parametrize("lazy", [True, False])
def test_everything_is_counted(kind, lazy):
    with StoreExecutor(make_base(kind), should_proxy=ProxySize("100 kB"), lazy=lazy) as executor:
        futures = [executor.submit(functions.add, bytes(BIG), bytes([n])) for n in range(3)]
        assert {len(one.result()) for one in futures} == {BIG + 1}
        executor.submit(functions.add, [1], [2]).result()
        executor.submit(functions.boom).exception()
        settle(executor)
        stats = executor.stats()
        assert (stats.tasks_submitted, stats.tasks_done, stats.tasks_failed) == (6, 5, 1)
        assert stats.tasks_in_flight == stats.tasks_cancelled == 0
        assert stats.calls_done == 5
        stored = stats.objects_stored + stats.objects_deduplicated
        assert stored == 6
        assert stats.bytes_stored + stats.bytes_deduplicated > 6 * BIG
        if kind == "thread":  # which are given what is not stored as it is
            assert (stats.objects_inline, stats.bytes_inline) == (0, 0)
        else:  # of the small results, the worker may not have told yet
            assert stats.objects_inline in (5, 6)
        assert stats.objects_resolved == 6
        assert stats.bytes_resolved > 6 * BIG
        for name in ("serialize", "put", "wait", "resolve", "call"):
            assert getattr(stats, f"{name}_seconds") > 0, name
        if not lazy:
            assert stats.unpack_seconds > 0
        del futures
        gc.collect()
        executor.store.usage()
        stats = executor.stats()
        assert (stats.objects_live, stats.bytes_live) == (0, 0)
        assert stats.bytes_peak > BIG
        assert stats.evictions == stats.objects_stored
        assert stats.bytes_evicted == stats.bytes_stored
        assert stats.objects_never_resolved == 0
        assert stats.eviction_failures == 0


def test_what_is_sent_inline_is_counted():
    with StoreExecutor(make_base(), should_proxy=ProxySize("1 MB")) as executor:
        assert len(executor.submit(functions.add, [b"a"], [bytes(BIG)]).result()) == 2
        settle(executor)
        stats = executor.stats()
        assert stats.objects_inline == 3
        assert 2 * BIG < stats.bytes_inline < 2 * BIG + 1000
        assert stats.objects_stored == 0


@pytest.mark.parametrize("policy", [None, ProxySize("1 MB")])
def test_so_is_what_passes_at_a_glance(policy):
    with StoreExecutor(make_base(), should_proxy=policy) as executor:
        for n in range(10):
            assert executor.submit(functions.add, bytes(BIG), b=b"a").result()[-1:] == b"a"
            assert executor.submit(functions.add, n, n).result() == 2 * n
        settle(executor)
        stats = executor.stats()
        assert stats.objects_inline == 30
        assert stats.bytes_inline == 10 * (BIG + 1 + BIG + 1)


@pytest.mark.parametrize("kind", ["thread", "fork"])
def test_so_is_what_a_policy_has_looked_at(kind):
    def wanted(obj):
        return type(obj) is list

    with StoreExecutor(make_base(kind), should_proxy=wanted) as executor:
        assert len(executor.submit(functions.add, bytes(BIG), b"a").result()) == BIG + 1
        assert executor.submit(functions.add, 1, 1).result() == 2
        settle(executor)
        stats = executor.stats()
        if kind == "thread":  # which is given them as they are
            assert (stats.objects_inline, stats.bytes_inline) == (0, 0)
        else:
            assert (stats.objects_inline, stats.bytes_inline) == (3, BIG + 1 + BIG + 1)


@pytest.mark.parametrize("chunksize", [1, 5, "auto"])
@pytest.mark.parametrize("policy", [None, ProxySize("1 MB")])
def test_so_are_items_of_maps(policy, chunksize):
    texts = [str(n) * BIG for n in range(10)]
    with StoreExecutor(make_base(), should_proxy=policy) as executor:
        assert list(executor.map(functions.identity, texts, chunksize=chunksize)) == texts
        settle(executor)
        stats = executor.stats()
        assert stats.objects_inline == 20
        assert 20 * BIG <= stats.bytes_inline < 21 * BIG


def test_calls_that_a_chunk_has_left_to_others_are_counted_once():
    chunks = [*["a"] * 5, "b" * 3_000_000, *["a"] * 5]
    with StoreExecutor(make_base(), should_proxy=ProxySize("1 GB")) as executor:
        submit = MappedFunction(
            functions.identity, executor._tasks, TimedChunkCall, may_change=False
        )
        future = executor.submit(submit, *((one,) for one in chunks))
        assert future.result().results == chunks[:6]
        settle(executor)
        assert executor.stats().calls_done == 6 + 1  # with that of settle()


def test_tasks_in_flight_are_counted(tmp_path):
    with StoreExecutor(make_base(), should_proxy=ProxySize("1 MB")) as executor:
        started, release = tmp_path / "started", tmp_path / "release"
        future = executor.submit(functions.touch_then_wait, started, release)
        assert executor.stats().tasks_in_flight == 1
        release.touch()
        future.result()
        settle(executor)
        assert executor.stats().tasks_in_flight == 0


def test_cancelled_tasks_are_counted():
    with StoreExecutor(make_base("thread"), should_proxy=ProxySize("1 MB")) as executor:
        release = threading.Event()
        futures = [executor.submit(release.wait) for _ in range(9)]
        cancelled = sum(one.cancel() for one in futures[4:])
        release.set()
        concurrent.futures.wait(futures)
        settle(executor)
        stats = executor.stats()
        assert stats.tasks_cancelled == cancelled == 5
        assert stats.tasks_done == 5
        assert stats.tasks_submitted == 10


def test_calls_that_pass_untouched_are_counted():
    with proxyexec.ThreadPoolExecutor(1) as executor:
        assert list(executor.map(functions.identity, range(10))) == list(range(10))
        executor.submit(functions.boom).exception()
        settle(executor)
        stats = executor.stats()
        assert (stats.tasks_done, stats.tasks_failed) == (11, 1)
        assert stats.wait_seconds > 0


def test_calls_of_a_group_are_counted(tmp_path):
    with StoreExecutor(
        make_base(), f"file://{tmp_path}/groups", ProxySize("100 kB"), task_group=True
    ) as executor:
        assert executor.submit(len, bytes(BIG)).result() == BIG
        assert executor.submit(functions.boom).exception()
        concurrent.futures.wait([executor.submit(functions.add, 1, 1)])
        stats = executor.stats()
        assert stats.tasks_done >= 1
        assert stats.tasks_failed == 1
        assert stats.objects_stored == 1


def test_asynchronous_executors_have_stats():
    async def main():
        async with AsyncStoreExecutor(make_base(), should_proxy=ProxySize("100 kB")) as executor:
            assert await executor.submit(len, bytes(BIG)) == BIG
            return executor.stats()

    stats = asyncio.run(main())
    assert stats.objects_stored == 1
    assert stats.tasks_submitted == 1


def test_stats_are_a_table():
    zeros = {one.name: 0 for one in dataclasses.fields(Stats)}
    stats = Stats(**{**zeros, "tasks_done": 7, "bytes_stored": 1_500_000, "put_seconds": 0.0021})
    text = repr(stats)
    assert "7 done" in text
    (stored,) = [line for line in text.splitlines() if line.startswith("stored  ")]
    assert stored.split() == ["stored", "0", "1.5", "MB", "2.1", "ms"]
    html = stats._repr_html_()
    assert html.count("<tr>") == len(text.splitlines()) - 1
    assert "1.5 MB" in html
    with pytest.raises(dataclasses.FrozenInstanceError):
        stats.tasks_done = 8


def test_a_forked_child_has_stats_of_its_own():
    with StoreExecutor(make_base("thread"), should_proxy=ProxyAlways()) as executor:
        executor.submit(functions.total, [1]).result()
        pid = os.fork()
        if not pid:
            try:
                os._exit(0 if executor.stats().bytes_live == 0 else 1)
            finally:
                os._exit(2)
        assert os.waitpid(pid, 0)[1] == 0
