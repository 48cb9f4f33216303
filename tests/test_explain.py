"""``executor.explain(future)``: what was sent for a call, which way, why, and what it cost."""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import gc
import html
import multiprocessing
import threading
import weakref

import pytest

import proxyexec
from proxyexec import ProxyAlways, ProxySize, ProxyType, StoreExecutor
from proxyexec.aio import AsyncStoreExecutor
from proxyexec.errors import name_of
from proxyexec.metrics import Explanation
from tests import functions
from tests.conftest import settle

BIG = 200_000


def make_base(kind="fork"):
    if kind == "thread":
        return concurrent.futures.ThreadPoolExecutor(1)
    return concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context(kind))


@pytest.mark.parametrize("kind", ["thread", "fork", "spawn"])
@pytest.mark.parametrize("lazy", [True, False])
def test_a_call_is_explained(kind, lazy):
    policy = ProxyType(bytes, list) & ProxySize("100 kB")
    with StoreExecutor(make_base(kind), should_proxy=policy, lazy=lazy) as executor:
        future = executor.submit(functions.add, bytes(BIG), b=b"a")
        assert len(future.result()) == BIG + 1
        settle(executor)
        explanation = executor.explain(future)
        assert (explanation.function, explanation.state) == ("add", "done")
        argument, result = explanation.moved
        assert (argument.what, argument.name, argument.path) == ("argument", 0, "store")
        assert (result.what, result.type, result.path) == ("result", "bytes", "store")
        assert argument.decided_by == (
            f"ProxyType(list, bytes): bytes and ProxySize(100000): {argument.bytes} bytes"
        ).replace("list, bytes", "bytes, list")
        assert argument.put_s > 0 < result.put_s
        assert explanation.call_seconds > 0 < explanation.wait_seconds
        assert explanation.pack_seconds >= result.put_s
        assert explanation.bytes_resolved == argument.bytes
        assert explanation.resolve_seconds > 0
        assert "glance" in explanation.note


def test_the_term_that_kept_something_inline_is_named():
    policy = ProxySize("1 kB") & ~ProxyType(functions.Carrier)
    with StoreExecutor(make_base(), should_proxy=policy) as executor:
        future = executor.submit(functions.kind, functions.Carrier(bytes(BIG)))
        assert future.result() == ("Carrier", False, False)
        (argument,) = executor.explain(future).moved
        assert argument.path == "inline"
        assert argument.decided_by == "~ProxyType(tests.functions.Carrier): tests.functions.Carrier"
        assert BIG < argument.bytes < BIG + 1000


def test_results_and_parts_are_explained():
    with StoreExecutor(make_base(), should_proxy=ProxySize("100 kB"), nested=True) as executor:
        made = executor.submit(functions.make_bytes, BIG)
        future = executor.submit(functions.are_one, made, [bytes(BIG)])
        assert future.result() is False
        # The call may have waited for the result of the other one; what was there is packed first.
        moved = executor.explain(future).moved
        (first,) = [one for one in moved if one.name == 0]
        whole, part = [one for one in moved if one.name == 1]
        assert (first.path, first.decided_by) == ("reference", "it is stored already")
        assert (whole.name, whole.path, part.name, part.is_part) == (1, "inline", 1, True)
        assert part.path == "store"
        assert "part of argument 1" in repr(executor.explain(future))


def test_what_is_small_is_listed_while_a_trace_is_written(tmp_path):
    with StoreExecutor(make_base(), should_proxy=ProxySize("100 kB")) as executor:
        plain = executor.submit(functions.add, 1, b=2)
        assert plain.result() == 3
        settle(executor)
        explanation = executor.explain(plain)
        assert explanation.moved == ()
        assert explanation.state == "done"
        with executor.trace(tmp_path / "run.jsonl"):
            traced = executor.submit(functions.add, 1, b=2)
            assert traced.result() == 3
            settle(executor)
        first, second, result = executor.explain(traced).moved
        assert [first.name, second.name, result.what] == [0, "b", "result"]
        assert not first.exact
        assert executor.explain(traced).note == "All objects are listed."


def test_calls_that_pass_untouched_are_told_of(tmp_path):
    with proxyexec.ThreadPoolExecutor(1) as executor:
        future = executor.submit(functions.add, 1, 1)
        future.result()
        assert "no policy" in executor.explain(future).note
        with executor.trace(tmp_path / "run.jsonl"):
            future = executor.submit(functions.add, 1, 1)
            future.result()
            settle(executor)
        assert len(executor.explain(future).moved) == 3


def test_what_is_pending_failed_or_cancelled_is_explained_as_far_as_known():
    with StoreExecutor(make_base("thread"), should_proxy=ProxySize("100 kB")) as executor:
        started, release = threading.Event(), threading.Event()

        def wait(data):
            started.set()
            release.wait()

        running = executor.submit(wait, bytes(BIG))
        started.wait()
        pending = executor.submit(functions.boom, bytes(BIG))
        cancelled = executor.submit(functions.boom, bytes(BIG))
        assert cancelled.cancel()
        assert executor.explain(running).state == "running"
        assert executor.explain(pending).state == "pending"
        assert [one.path for one in executor.explain(pending).moved] == ["found"]
        assert executor.explain(pending).wait_seconds is None
        release.set()
        assert pending.exception()
        settle(executor)
        failed = executor.explain(pending)
        assert (failed.state, failed.error, failed.call_seconds) == ("failed", "ValueError", None)
        assert failed.wait_seconds > 0
        assert executor.explain(cancelled).state == "cancelled"
        assert "failed with ValueError" in repr(failed)


def test_all_that_was_fetched_is_summed_up():
    with StoreExecutor(make_base(), should_proxy=ProxyType(list)) as executor:
        proxies = [executor.store.proxy([n]) for n in range(300)]
        future = executor.submit(functions.lengths, proxies)
        concurrent.futures.wait([future])
        settle(executor)
        explanation = executor.explain(future)
        assert explanation.bytes_resolved == executor.stats().bytes_resolved
        assert explanation.resolve_seconds == pytest.approx(executor.stats().resolve_seconds)


def test_a_call_whose_data_cannot_be_sent_is_explained():
    with StoreExecutor(make_base(), should_proxy=ProxySize("100 kB")) as executor:
        future = executor.submit(functions.identity, functions.Unpicklable())
        explanation = executor.explain(future)
        assert (explanation.function, explanation.state) == ("identity", "failed")
        assert explanation.error == name_of(type(future.exception()))
        assert explanation.error in repr(explanation)


def test_names_are_escaped_in_notebooks():
    with StoreExecutor(make_base("thread"), should_proxy=ProxySize("100 kB")) as executor:
        future = executor.submit(lambda data: len(data), bytes(BIG))
        assert future.result() == BIG
        explanation = executor.explain(future)
    assert explanation._repr_html_().startswith(f"<p>{html.escape(explanation.function)}: ")
    assert "<lambda>" not in explanation._repr_html_()


def test_others_futures_are_refused():
    with (
        StoreExecutor(make_base("thread"), should_proxy=ProxyAlways()) as one,
        StoreExecutor(make_base("thread"), should_proxy=ProxyAlways()) as other,
    ):
        future = one.submit(functions.total, [1])
        with pytest.raises(ValueError, match="another executor"):
            other.explain(future)
        with pytest.raises(TypeError, match="future of a call"):
            other.explain(concurrent.futures.Future())
        with pytest.raises(TypeError, match="int"):
            other.explain(1)
        assert future.result() == 1


def test_calls_of_a_group_are_told_of(tmp_path):
    place = f"file://{tmp_path}/groups"
    with StoreExecutor(make_base(), place, ProxySize("1 kB"), task_group=True) as executor:
        future = executor.submit(functions.add, 1, 1)
        assert future.result() == 2
        explanation = executor.explain(future)
        assert (explanation.function, explanation.state) == ("add", "done")
        assert "task group" in explanation.note


def test_handles_are_explained():
    async def main():
        async with AsyncStoreExecutor(make_base(), should_proxy=ProxySize("100 kB")) as executor:
            handle = executor.submit(len, bytes(BIG))
            cancelled = executor.submit(len, b"")
            cancelled.cancel()
            with pytest.raises(ValueError, match="not packed"):
                executor.explain(cancelled)
            assert await handle == BIG
            return executor.explain(handle)

    explanation = asyncio.run(main())
    assert [one.path for one in explanation.moved] == ["store"]


def test_explaining_fetches_nothing_and_keeps_nothing():
    with StoreExecutor(
        make_base("thread"), should_proxy=ProxySize("100 kB"), lazy=False
    ) as executor:
        future = executor.submit(functions.make_bytes, BIG)
        concurrent.futures.wait([future])
        settle(executor)
        explanation = executor.explain(future)
        assert executor.stats().objects_resolved == 0
        gone = weakref.ref(future)
        del future
        gc.collect()
        assert gone() is None
        executor.store.usage()
        assert executor.stats().objects_live == 0
        assert explanation.moved


def test_an_explanation_is_a_table():
    with StoreExecutor(make_base(), should_proxy=ProxySize("100 kB")) as executor:
        future = executor.submit(len, bytes(BIG))
        assert future.result() == BIG
        settle(executor)
        explanation = executor.explain(future)
    summary, columns, row, note = repr(explanation).splitlines()
    assert summary.startswith("len: done; ")
    assert columns.split() == ["type", "bytes", "went", "serialized", "stored", "as"]
    assert row.startswith("argument 0  bytes")
    assert f"{BIG // 1000} kB" in row
    assert row.endswith(f"ProxySize(100000): {explanation.moved[0].bytes} bytes")
    assert note == explanation.note
    assert explanation._repr_html_().count("<tr>") == 2
    assert isinstance(explanation, Explanation)
    with pytest.raises(dataclasses.FrozenInstanceError):
        explanation.state = "pending"
