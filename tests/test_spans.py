"""Spans of OpenTelemetry, with its real SDK: in the client, and in workers that write theirs down."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import multiprocessing
import os
import pickle
import subprocess
import sys

import pytest

import proxyexec
from proxyexec import ProxySize, StoreExecutor, _spans, spans
from proxyexec._task import Task
from proxyexec.aio import AsyncStoreExecutor
from proxyexec.errors import MissingExtraError
from tests import functions, spanned
from tests.spanned import Spans

pytest.importorskip("opentelemetry.sdk")
from opentelemetry import baggage, context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


@pytest.fixture
def seen(tmp_path):
    """Spans are on, and seen."""
    directory = tmp_path / "spans"
    directory.mkdir()
    one = Spans(directory)
    spans.enable(one.provider)
    try:
        yield one
    finally:
        spans.disable()
        one.provider.shutdown()


@pytest.fixture(params=["fork", "spawn"])
def pool(request, seen):
    with concurrent.futures.ProcessPoolExecutor(
        1,
        multiprocessing.get_context(request.param),
        initializer=spanned.export_to,
        initargs=(str(seen.directory),),
    ) as one:
        yield one


@pytest.fixture
def forked(seen):
    """A pool in which all that matters is the same, and which is started faster."""
    with concurrent.futures.ProcessPoolExecutor(
        1,
        multiprocessing.get_context("fork"),
        initializer=spanned.export_to,
        initargs=(str(seen.directory),),
    ) as one:
        yield one


@pytest.fixture(params=["files", "redis"])
def store(request, tmp_path, redis_url):
    return redis_url if request.param == "redis" else f"file://{tmp_path}/store"


def test_what_is_done_for_a_call_is_one_trace(seen, pool, store):
    with StoreExecutor(pool, store, ProxySize("1 kB")) as executor:
        with seen.tracer.start_as_current_span("pipeline"):
            future = executor.submit(spanned.double, bytes(5000))
            result = future.result()
            assert len(result) == 10_000  # which fetches it
    pipeline = seen.one("pipeline")
    submit = seen.one("submit double")
    run = seen.one("run double")
    assert {one["trace"] for one in seen.all()} == {pipeline["trace"]}
    assert set(seen.below(pipeline)) == {"submit double", "resolve"}
    assert set(seen.below(submit)) == {"put", "run double"}
    assert set(seen.below(run)) == {"doubling", "put"}
    assert set(seen.below(seen.one("doubling"))) == {"resolve"}
    assert run["process"] != submit["process"] == os.getpid()
    assert (submit["kind"], run["kind"]) == ("PRODUCER", "CONSUMER")
    key = proxyexec.reference_of(result).key
    assert (
        submit["attributes"]
        == run["attributes"]
        == {
            "proxyexec.function": "double",
            "proxyexec.key": key,
        }
    )
    sent, arrived = seen.below(submit)["put"], seen.below(seen.one("doubling"))["resolve"]
    assert sent["attributes"] == arrived["attributes"]
    assert sent["attributes"]["proxyexec.type"] == "bytes"
    assert 5000 < sent["attributes"]["proxyexec.bytes"] < 5100
    stored, fetched = seen.below(run)["put"], seen.below(pipeline)["resolve"]
    assert stored["attributes"] == fetched["attributes"]
    assert stored["attributes"]["proxyexec.key"] == key
    assert 10_000 < stored["attributes"]["proxyexec.bytes"] < 10_100
    assert stored["attributes"]["proxyexec.store"] == executor.store.connector.url
    assert {one["status"] for one in seen.all()} == {"UNSET"}


def test_without_a_span_around_it_each_call_is_a_trace(seen, forked):
    with StoreExecutor(forked) as executor:
        for number in range(3):
            assert executor.submit(functions.add, number, 1).result() == number + 1
    submits = seen.named("submit add")
    assert len({one["trace"] for one in submits}) == 3
    assert sorted(one["parent"] for one in seen.named("run add")) == sorted(
        one["id"] for one in submits
    )


def test_errors_are_said_where_they_are_raised(seen, forked):
    with StoreExecutor(forked, should_proxy=ProxySize("1 kB")) as executor:
        with pytest.raises(RuntimeError, match="wrong"):
            executor.submit(functions.raise_with, "wrong").result()
        assert executor.submit(functions.identity, functions.Unpicklable()).exception()
    submit, run = seen.one("submit raise_with"), seen.one("run raise_with")
    assert submit["status"] == "UNSET"
    assert (run["status"], run["said"], run["events"]) == (
        "ERROR",
        "RuntimeError: wrong",
        ["exception"],
    )
    refused = seen.one("submit identity")
    assert refused["status"] == "ERROR"
    assert refused["said"].startswith("SerializationError: ")
    assert not seen.named("run identity")


def test_an_executor_that_is_shut_down_says_so(seen):
    pool = proxyexec.ThreadPoolExecutor(1)
    pool.shutdown()
    with pytest.raises(RuntimeError):
        pool.submit(len, "abc")
    assert seen.one("submit len")["status"] == "ERROR"


@pytest.mark.parametrize("policy", [None, ProxySize("1 kB")])
@pytest.mark.parametrize("buffersize", [None, 2])
@pytest.mark.parametrize("chunksize", [1, 3, "auto"])
def test_calls_of_a_map_belong_to_where_it_was_called(seen, forked, chunksize, buffersize, policy):
    options = {"chunksize": chunksize, "buffersize": buffersize}
    with StoreExecutor(forked, should_proxy=policy) as executor:
        with seen.tracer.start_as_current_span("pipeline"):
            results = executor.map(functions.add, range(10), range(10), **options)
        # Some are submitted here, and some by threads that deliver results.
        assert list(results) == list(range(0, 20, 2))
    pipeline = seen.one("pipeline")
    submits, runs = seen.named("submit add"), seen.named("run add")
    assert {one["parent"] for one in submits} == {pipeline["id"]}
    assert sorted(one["parent"] for one in runs) == sorted(one["id"] for one in submits)
    assert {one["trace"] for one in seen.all()} == {pipeline["trace"]}
    calls = [one["attributes"].get("proxyexec.calls", 1) for one in runs]
    if chunksize == 1:
        assert calls == [1] * 10
    elif chunksize == 3:
        assert calls == [3, 3, 3, 1]
    else:
        assert sum(calls) >= 10  # what a worker leaves is sent again


def test_errors_of_calls_that_travel_together_are_said(seen, forked):
    with StoreExecutor(forked, should_proxy=ProxySize("1 kB")) as executor:
        results = executor.map(functions.odd_only, [1, 2, 3], chunksize="auto")
        with pytest.raises(ValueError, match="2 is even"):
            list(results)
    failed = [one for one in seen.named("run odd_only") if one["status"] == "ERROR"]
    [said] = {one["said"] for one in failed}
    assert said == "ValueError: 2 is even"


def test_a_call_that_waits_for_another_belongs_to_where_it_was_submitted(seen, forked, tmp_path):
    started, release = str(tmp_path / "started"), str(tmp_path / "release")
    with StoreExecutor(forked, should_proxy=ProxySize("1 kB")) as executor:
        first = executor.submit(functions.touch_then_wait, started, release)
        with seen.tracer.start_as_current_span("pipeline"):
            second = executor.submit(functions.add, first, "!")
        open(release, "x").close()
        assert second.result() == "done!"
    pipeline, submit = seen.one("pipeline"), seen.one("submit add")
    assert submit["parent"] == pipeline["id"]
    assert seen.one("run add")["parent"] == submit["id"]


@pytest.mark.parametrize("policy", [None, ProxySize("1 kB")])
def test_tasks_of_threads_are_in_the_trace(seen, policy):
    with StoreExecutor(concurrent.futures.ThreadPoolExecutor(1), should_proxy=policy) as executor:
        with seen.tracer.start_as_current_span("pipeline"):
            assert executor.submit(functions.add, [1], [2]).result() == [1, 2]
        with seen.tracer.start_as_current_span("other"):
            assert list(executor.map(functions.add, [1, 2], [3, 4])) == [4, 6]
    submit = seen.below(seen.one("pipeline"))["submit add"]
    assert set(seen.below(submit)) == {"run add"}
    assert len(seen.named("run add")) == 3


def test_calls_that_pass_untouched_do_so_with_spans(seen):
    with proxyexec.ThreadPoolExecutor(2) as pool:
        items, first = [], pool.submit(len, "abc")
        assert pool.submit(functions.append, items, 1).result() is items
        assert pool.submit(functions.identity, first).result() is first
    assert len(seen.named("run append")) == 1
    with proxyexec.ProcessPoolExecutor(1) as pool:
        assert pool.submit(functions.identity, [1]).result() == [1]


@pytest.mark.parametrize("chunksize", [1, 3])
def test_calls_that_pass_are_in_the_trace_while_one_is_written(seen, forked, tmp_path, chunksize):
    with StoreExecutor(forked) as executor, executor.trace(tmp_path / "run.jsonl"):
        results = executor.map(functions.add, range(6), range(6), chunksize=chunksize)
        assert list(results) == list(range(0, 12, 2))
    submits, runs = seen.named("submit add"), seen.named("run add")
    assert sorted(one["parent"] for one in runs) == sorted(one["id"] for one in submits)
    calls = [one["attributes"].get("proxyexec.calls", 1) for one in runs]
    assert calls == [chunksize] * (6 // chunksize)


def test_a_task_that_uses_an_executor_goes_on_with_the_trace(seen):
    with proxyexec.ThreadPoolExecutor(1) as pool:
        assert pool.submit(spanned.submit_inside, "abc").result() == 3
    outer = seen.one("run submit_inside")
    inner = seen.below(outer)["submit len"]
    assert set(seen.below(inner)) == {"run len"}
    assert len({one["trace"] for one in seen.all()}) == 1


def test_submit_of_a_subclass_is_called_once(seen):
    class Own(proxyexec.ThreadPoolExecutor):
        submitted = 0

        def submit(self, fn, /, *args, **kwargs):
            self.submitted += 1
            return super().submit(fn, *args, **kwargs)

    with Own(1) as pool:
        assert pool.submit(len, "abc").result() == 3
        assert list(pool.map(len, ["a", "bc"])) == [1, 2]
        assert pool.submitted == 3
    assert len(seen.named("submit len")) == 3


def test_baggage_travels(seen, forked):
    with StoreExecutor(forked, should_proxy=ProxySize("1 kB")) as executor:
        token = context.attach(baggage.set_baggage("user", "me"))
        try:
            assert executor.submit(spanned.baggage, "user").result() == "me"
        finally:
            context.detach(token)
        assert executor.submit(spanned.baggage, "user").result() is None


def test_calls_of_a_task_group_are_in_the_trace(seen, forked, tmp_path):
    with StoreExecutor(forked, f"file://{tmp_path}/groups", task_group="spans") as executor:
        with seen.tracer.start_as_current_span("pipeline"):
            assert executor.submit(functions.add, 1, 2).result() == 3
            assert executor.submit(functions.raise_with, "wrong").exception()
            assert list(executor.map(len, ["a", "bc"])) == [1, 2]
    submits = {one["id"] for one in seen.all() if one["name"].startswith("submit ")}
    runs = [one for one in seen.all() if one["name"].startswith("run ")]
    assert len(submits) == len(runs) == 4
    assert {one["parent"] for one in runs} == submits
    assert seen.one("run raise_with")["said"] == "RuntimeError: wrong"
    assert {one["trace"] for one in seen.all()} == {seen.one("pipeline")["trace"]}


def test_coroutines_have_traces_of_their_own(seen, forked):
    async def main():
        async with AsyncStoreExecutor(forked, should_proxy=ProxySize("1 kB")) as executor:

            async def work(name):
                with seen.tracer.start_as_current_span(name):
                    await asyncio.sleep(0)
                    proxy = await executor.submit(functions.make_bytes, 5000)
                    return len(await executor.retrieve(proxy))

            assert await asyncio.gather(work("one"), work("other")) == [5000, 5000]
            with seen.tracer.start_as_current_span("map"):
                assert [one async for one in executor.map(len, ["a", "bc"])] == [1, 2]

    asyncio.run(main())
    for name in ("one", "other"):
        submit = seen.below(seen.one(name))["submit make_bytes"]
        assert set(seen.below(seen.below(submit)["run make_bytes"])) == {"put"}
    outer = seen.one("map")
    assert {one["parent"] for one in seen.named("submit len")} == {outer["id"]}


def test_traces_that_are_not_sampled_make_no_spans(tmp_path):
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased

    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=ParentBased(ALWAYS_OFF))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    spans.enable(provider)
    try:
        with (
            concurrent.futures.ProcessPoolExecutor(
                1, initializer=spanned.export_to, initargs=(str(tmp_path),)
            ) as pool,
            StoreExecutor(pool, should_proxy=ProxySize("1 kB")) as executor,
        ):
            assert len(executor.submit(spanned.double, bytes(5000)).result()) == 10_000
    finally:
        spans.disable()
    assert not exporter.get_finished_spans()
    assert [file.read_text() for file in tmp_path.iterdir()] == [""]


def test_without_a_provider_nothing_travels():
    context_of, key = StoreExecutor(concurrent.futures.ThreadPoolExecutor(1)), "key"
    with context_of as executor:
        plainly = pickle.dumps(Task(len, len, executor._context, b"blob", key))
        spans.enable()
        try:
            assert pickle.dumps(Task(len, len, executor._context, b"blob", key)) == plainly
            assert executor.submit(len, "abc").result() == 3
        finally:
            spans.disable()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_send_what_they_have_made_before_they_end(seen, method):
    with concurrent.futures.ProcessPoolExecutor(
        1,
        multiprocessing.get_context(method),
        initializer=spanned.export_to,
        initargs=(str(seen.directory), True),
    ) as pool:
        with StoreExecutor(pool, should_proxy=ProxySize("1 kB")) as executor:
            assert executor.submit(functions.add, 1, 2).result() == 3
    assert seen.one("run add")["parent"] == seen.one("submit add")["id"]


def test_nothing_is_made_any_more_once_they_are_off(seen, forked):
    with StoreExecutor(forked, should_proxy=ProxySize("1 kB")) as executor:
        assert len(executor.submit(spanned.double, bytes(5000)).result()) == 10_000
        before = len(seen.all())
        spans.disable()
        # The same worker, which has made some.
        assert len(executor.submit(functions.make_bytes, 5000).result()) == 5000
    assert len(seen.all()) == before


def test_where_it_is_not_installed_enabling_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(MissingExtraError, match=r"tracing needs .*proxyexec\[otel\]"):
        spans.enable()
    assert _spans.active is None


def test_workers_without_it_work_and_say_so_once(seen, tmp_path):
    log = tmp_path / "worker.log"
    pool = concurrent.futures.ProcessPoolExecutor(
        1,
        multiprocessing.get_context("spawn"),
        initializer=spanned.without_opentelemetry,
        initargs=(str(log),),
    )
    with StoreExecutor(pool, should_proxy=ProxySize("1 kB")) as executor:
        for _ in range(3):
            assert len(executor.submit(functions.make_bytes, 5000).result()) == 5000
    [line] = log.read_text().splitlines()
    assert line.startswith("WARNING:proxyexec.spans:tasks are in a trace, but this process cannot")
    assert len(seen.named("submit make_bytes")) == 3


def test_nothing_is_imported_unless_asked():
    program = (
        "import sys, proxyexec, proxyexec.spans, proxyexec.aio\n"
        "with proxyexec.ThreadPoolExecutor(1) as pool:\n"
        "    assert list(pool.map(len, ['abc'])) == [3]\n"
        "print([name for name in sys.modules if name.partition('.')[0] in"
        " ('opentelemetry', 'tqdm', 'rich')])\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")
