"""A Dask client with ours around it: real schedulers and workers, killed for real."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import gc
import itertools
import os
import random
import socket
import threading
import time
import warnings
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("distributed")

# Of sockets of its own that Dask leaves to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
import dask
import distributed

from proxyexec import ProxyAlways, ProxySize, Store, StoreExecutor, extract, is_proxy, spans
from proxyexec.errors import NoStrategyError
from proxyexec.serializers import Serializers
from tests import functions
from tests.chaos.census import eventually
from tests.chaos.places import place_of
from tests.conftest import settle, wait_for_evictions
from tests.engines.dask_cluster import bytes_of, cluster
from tests.spanned import Spans, export_to

LONG = "PROXYEXEC_LONG" in os.environ

PAYLOAD = bytes(300_000)


@pytest.fixture
def nothing_leaks():
    """Connections of Dask are kept for the next message; what is stored is counted by ``placed``."""
    return


@pytest.fixture(scope="module")
def local():
    """A cluster of processes, as most have one on their own machine."""
    with distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=":0") as one:
        yield one


@pytest.fixture
def client(local):
    with distributed.Client(local) as one:
        yield one


@pytest.fixture(params=["disk", "redis"])
def placed(request):
    """Where objects are: a directory that hosts may share, or a server; empty at the end."""
    with place_of(request.param) as place:
        yield place
        gc.collect()
        wait_for_evictions()
        assert place.residue() == []


@pytest.fixture(params=[True, False], ids=["lazy", "eager"])
def executor(request, client, placed):
    with StoreExecutor(client, placed.url, ProxyAlways(), lazy=request.param) as one:
        yield one


@pytest.fixture
def gates(tmp_path):
    """Files: that a task has started, and that it is to go on; it does so at the end at the latest."""
    yield str(tmp_path / "started"), str(tmp_path / "gate")
    (tmp_path / "gate").touch()


def nothing_is_left(executor):
    if not executor._tasks.ended:
        settle(executor)
    gc.collect()
    # Errors are kept by their tasks, which the client's loop is to forget by now.
    executor._base.client.sync(asyncio.sleep, 0)
    assert executor.store.usage() == (0, 0)


# What runs in workers.


def double(data):
    return data + data


def make_lock():
    return threading.Lock()


def where(*_):
    return distributed.get_worker().name


def note(path, value):
    """Leave a line in a file, and return the value."""
    with open(extract(path), "a") as file:
        file.write("called\n")
    return value


def fail_at_first(path):
    if not os.path.exists(extract(path)):
        open(extract(path), "w").close()
        raise OSError("the first time")
    return "the second time"


def wait_at(started, gate, value):
    open(extract(started), "a").close()
    while not os.path.exists(extract(gate)):
        time.sleep(0.001)
    return value


def die_at_first(path, value):
    """Kill the worker, but not the one that the task is given to next."""
    if not os.path.exists(extract(path)):
        open(extract(path), "w").close()
        functions.die()
    return value + value


def open_gate(path):
    open(path, "w").close()


# The tests.


def test_futures_are_those_of_the_standard_library(executor):
    futures = [executor.submit(double, bytes([n]) * 1000) for n in range(5)]
    assert all(isinstance(one, concurrent.futures.Future) for one in futures)
    done, not_done = concurrent.futures.wait(futures, 60)
    assert (len(done), len(not_done)) == (5, 0)
    results = {bytes(one.result()) for one in concurrent.futures.as_completed(futures, 60)}
    assert results == {bytes([n]) * 2000 for n in range(5)}
    assert is_proxy(futures[0].result()) == executor._context.lazy
    del futures, done
    nothing_is_left(executor)


@pytest.mark.parametrize("policy", [None, ProxyAlways(), ProxySize("1 kB")], ids=repr)
@pytest.mark.parametrize("lazy", [True, False], ids=["lazy", "eager"])
def test_calls_travel_by_strategies(client, placed, policy, lazy):
    by = Serializers(code="combined", data="json", results=["json", "pickle"])
    with StoreExecutor(client, placed.url, policy, lazy=lazy, serializers=by) as executor:
        first = executor.submit(functions.make_list, 1000)
        second = executor.submit(functions.append, first, 5)  # which Dask waits for
        third = executor.submit(lambda items: {items[-1]}, second)
        assert third.result() == {5}
        assert len(second.result()) == 1001
        for chunksize in (1, 3, "auto"):
            results = executor.map(functions.identity, range(10), chunksize=chunksize)
            assert list(map(extract, results)) == list(range(10))
        with pytest.raises(NoStrategyError, match="the result of make_lock.* json: .* pickle: "):
            executor.submit(make_lock).result()
        with pytest.raises(NoStrategyError, match="argument 0 of identity.* json: "):
            executor.submit(functions.identity, (1,)).result()
        del first, second, third, results
        nothing_is_left(executor)


def test_functions_see_proxies_or_objects(executor):
    lazy = executor._context.lazy
    assert executor.submit(functions.kind, PAYLOAD).result(60)[1] == lazy
    assert executor.submit(functions.concat, "a", num=3).result(60) == "a-3"
    assert executor.submit(lambda x: x + b"1", b"0").result(60) == b"01"
    assert executor.submit(functools.partial(functions.add, [1]), [2]).result(60) == [1, 2]
    nothing_is_left(executor)


@pytest.mark.parametrize("chunksize", [1, 3, "auto"])
def test_map(executor, chunksize):
    items = [[n] for n in range(20)]
    assert list(executor.map(functions.add, items, items, chunksize=chunksize)) == [
        [n, n] for n in range(20)
    ]
    results = executor.map(double, [b"a", b"b", b"c"], chunksize=chunksize, buffersize=2)
    assert next(results) == b"aa"
    results.close()
    nothing_is_left(executor)


def test_errors_are_those_that_were_raised(executor):
    future = executor.submit(functions.raise_with, "why")
    error = future.exception(60)
    assert type(error) is RuntimeError and error.args == ("why",)
    frames = []
    trace = error.__traceback__
    while trace is not None:
        frames.append(trace.tb_frame.f_code.co_name)
        trace = trace.tb_next
    assert "raise_with" in frames  # of the worker
    with pytest.raises(Exception, match="not for sending"):
        executor.submit(functions.Unpicklable).result(60)
    with pytest.raises(Exception, match="not for sending"):
        executor.submit(functions.identity, functions.Unpicklable()).result(60)
    del future, error, trace
    nothing_is_left(executor)


def test_chains_wait_in_the_cluster(executor, client, gates):
    """The scheduler has a call, and what it waits for, long before there is a result."""
    started, gate = gates
    first = executor.submit(wait_at, started, gate, PAYLOAD)
    second = executor.submit(double, first)
    third = executor.submit(functions.add, second, first)
    keys = [one._base.key for one in (first, second, third)]
    expected = {keys[1]: [keys[0]], keys[2]: sorted(keys[:2])}
    eventually(lambda: client.run_on_scheduler(waits_for, keys=keys) == expected, "they wait there")
    del first, second
    open_gate(gate)
    assert third.result(60) == PAYLOAD * 3
    del third
    nothing_is_left(executor)


def waits_for(keys, dask_scheduler=None):
    tasks = [dask_scheduler.tasks[key] for key in keys if key in dask_scheduler.tasks]
    return {
        one.key: sorted(other.key for other in one.waiting_on) for one in tasks if one.waiting_on
    }


def test_what_is_passed_on_along_a_chain_lives(executor, gates):
    """A result that is another call's result, whose future is dropped before either is there."""
    started, gate = gates
    first = executor.submit(wait_at, started, gate, PAYLOAD)
    second = executor.submit(functions.identity, first)
    third = executor.submit(functions.identity, second)
    del first, second
    open_gate(gate)
    assert third.result(60) == PAYLOAD
    del third
    nothing_is_left(executor)


def test_a_result_that_was_read_is_there_for_calls_that_are_handed_it(executor, gates, tmp_path):
    """Though the client has fetched it before they ran, and needs it stored no longer."""
    started, gate = gates
    other_gate = str(tmp_path / "other gate")
    first = executor.submit(wait_at, started, gate, PAYLOAD)
    other = executor.submit(wait_at, str(tmp_path / "other started"), other_gate, b"more")
    try:
        both = executor.submit(functions.add, first, other)
        again = executor.submit(functions.add, first, both)
        open_gate(gate)
        assert first.result(60) == PAYLOAD
        assert executor.store.usage().objects > 0  # what was to be evicted is by now
    finally:
        open_gate(other_gate)
    assert both.result(60) == PAYLOAD + b"more"
    assert again.result(60) == PAYLOAD + PAYLOAD + b"more"
    del other, both, again
    settle(executor)
    gc.collect()
    if not executor._context.lazy:  # who holds the future has the result itself
        assert executor.store.usage() == (0, 0)
    del first
    nothing_is_left(executor)


def test_results_that_are_there_are_borrowed(executor):
    first = executor.submit(double, PAYLOAD)
    concurrent.futures.wait([first], 60)
    second = executor.submit(double, first)
    assert second.result(60) == PAYLOAD * 4
    assert first.result() == PAYLOAD * 2
    # Mapped in chunks, futures are among other things.
    (third,) = executor.map(double, [executor.submit(double, b"a")], chunksize=2)
    assert third == b"aaaa"
    del first, second, third
    nothing_is_left(executor)


def test_failures_pass_along_chains(executor, gates):
    started, gate = gates
    first = executor.submit(wait_at, started, gate, "why")
    second = executor.submit(functions.raise_with, first)
    third = executor.submit(double, second)
    open_gate(gate)
    assert isinstance(third.exception(60), RuntimeError)
    assert isinstance(second.exception(60), RuntimeError)
    del first, second, third
    nothing_is_left(executor)


def test_cancelling_cancels_what_waits(executor, gates, tmp_path):
    started, gate = gates
    blocking = [executor.submit(wait_at, started, gate, b"") for _ in range(2)]
    first = executor.submit(note, str(tmp_path / "notes"), PAYLOAD)
    second = executor.submit(double, first)
    assert first.cancel() and first.cancelled() and first.cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        second.result(60)
    open_gate(gate)
    assert [one.result(60) for one in blocking] == [b"", b""]
    settle(executor)
    assert not (tmp_path / "notes").exists()
    assert not blocking[0].cancel()
    del blocking, first, second
    nothing_is_left(executor)


def test_what_a_cancelled_task_stores_is_removed(client, placed, gates):
    """It cannot be stopped while it runs, and stores its result after that was evicted."""
    started, gate = gates
    with StoreExecutor(client, placed.url, ProxyAlways()) as executor:
        executor.store.usage()
        (worker, *_) = client.scheduler_info()["workers"]
        running = executor.submit(wait_at, started, gate, PAYLOAD, workers=[worker])
        eventually(lambda: os.path.exists(started), "it runs")
        assert running.cancel()
        eventually(lambda: not client.run(unwanted, workers=[worker])[worker], "the worker knows")
        assert executor.store.usage() == (0, 0)
        open_gate(gate)
        # The worker has one thread: when this is done, the other one is.
        assert executor.submit(functions.add, 1, 2, workers=[worker]).result(60) == 3
        del running
        nothing_is_left(executor)


def unwanted(dask_worker):
    """The tasks that a worker is at, and that somebody wants."""
    return [key for key, one in dask_worker.state.tasks.items() if one.state == "executing"]


def test_dropped_futures(executor, tmp_path):
    """Their tasks run, as with pools; nobody gets the results."""
    for n in range(4):
        executor.submit(note, str(tmp_path / "notes"), PAYLOAD)
    executor.shutdown()
    assert (tmp_path / "notes").read_text() == "called\n" * 4
    wait_for_evictions()
    assert executor.store.closed


def test_without_ownership_results_stay(client, placed):
    with Store.from_url(placed.url) as store:
        with StoreExecutor(client, store, ProxyAlways(), ownership=False) as executor:
            result = executor.submit(double, PAYLOAD).result(60)
        gc.collect()
        assert result == PAYLOAD * 2
        assert store.usage()[0] == 1


def test_keys_show_the_name_of_the_function(executor, client, gates):
    started, gate = gates
    blocking = [executor.submit(wait_at, started, gate, b"") for _ in range(2)]
    others = [
        executor.submit(double, b""),
        executor.submit(functools.partial(functions.add, b""), b""),
        executor.submit(lambda x: x, b""),
        executor.submit(double, b"", key="a-name-of-its-own"),
    ]
    expected = ["wait_at", "wait_at", "double", "add", "lambda", "a-name-of-its-own"]

    def names():
        split = map(distributed.utils.key_split, client.futures)
        return Counter(split) == Counter(map(distributed.utils.key_split, expected))

    eventually(names, "the client has sent them")
    assert "a-name-of-its-own" in client.futures
    open_gate(gate)
    concurrent.futures.wait(blocking + others, 60)


def test_equal_calls_are_separate_tasks_unless_asked(executor, tmp_path):
    notes = tmp_path / "notes"
    futures = [executor.submit(note, str(notes), PAYLOAD) for _ in range(3)]
    assert [one.result(60) for one in futures] == [PAYLOAD] * 3
    assert notes.read_text() == "called\n" * 3

    notes.unlink()
    futures = [executor.submit(note, str(notes), PAYLOAD, pure=True) for _ in range(3)]
    assert [one.result(60) for one in futures] == [PAYLOAD] * 3
    assert notes.read_text() == "called\n"
    other = executor.submit(note, str(notes), PAYLOAD + b"1", pure=True)
    assert other.result(60) == PAYLOAD + b"1"
    # Forgotten by all, it is called again.
    del futures
    settle(executor)
    gc.collect()
    assert executor.submit(note, str(notes), PAYLOAD, pure=True).result(60) == PAYLOAD
    assert notes.read_text() == "called\n" * 3

    notes.unlink()
    results = executor.map(note, [str(notes)] * 5, [1, 2, 1, 2, 1], pure=True)
    assert list(results) == [1, 2, 1, 2, 1]
    assert notes.read_text() == "called\n" * 2
    notes.unlink()
    # Of a map, the key is the beginning of keys.
    assert list(executor.map(note, [str(notes)] * 3, [1, 2, 3], key="prefix")) == [1, 2, 3]

    notes.unlink()
    kept = [executor.submit(note, str(notes), n, key="one-task") for n in range(3)]
    assert [one.result(60) for one in kept] == [0, 0, 0]
    del kept
    settle(executor)
    gc.collect()
    assert executor.submit(note, str(notes), 4, key="one-task").result(60) == 4
    assert notes.read_text() == "called\n" * 2


class Slow:
    """Waits while it is pickled."""

    def __init__(self, begun, go_on):
        self.waits = begun, go_on

    def __reduce__(self):
        begun, go_on = self.waits
        begun.set()
        assert go_on.wait(60)
        return int, (1,)


def test_progress_counts_calls_that_are_one_task(executor, tmp_path):
    for options in ({"pure": True}, {"pure": False}, {"retries": 1}):
        counts, closed = [], threading.Event()

        def show(one, counts=counts, closed=closed):
            counts.append(one)
            if one.closed:
                closed.set()

        results = executor.map(functions.add, [1, 2, 1, 2, 1], [5] * 5, progress=show, **options)
        assert list(results) == [6, 7, 6, 7, 6]
        assert closed.wait(60)
        last = counts[-1]
        assert (last.ended, last.failed, last.cancelled, last.total) == (5, 0, 0, 5)


def test_spans_go_on_in_the_cluster(executor, client, tmp_path):
    pytest.importorskip("opentelemetry.sdk")
    directory = tmp_path / "spans"
    directory.mkdir()
    seen = Spans(directory)
    client.run(export_to, str(directory))
    spans.enable(seen.provider)
    try:
        with seen.tracer.start_as_current_span("pipeline"):
            first = executor.submit(functions.identity, PAYLOAD)
            second = executor.submit(functions.identity, first)  # which the cluster waits for
            assert len(second.result(60)) == len(PAYLOAD)
            assert list(executor.map(functions.add, [1, 2], [3, 4], retries=1)) == [4, 6]
    finally:
        spans.disable()
    pipeline = seen.one("pipeline")
    submits = seen.named("submit identity") + seen.named("submit add")
    assert len(submits) == 4
    assert {one["parent"] for one in submits} == {pipeline["id"]}
    runs = seen.named("run identity") + seen.named("run add")
    assert sorted(one["parent"] for one in runs) == sorted(one["id"] for one in submits)
    assert all(one["process"] != os.getpid() for one in runs)


def test_calls_with_keys_do_not_wait_for_each_other(executor, tmp_path):
    notes, begun, go_on = tmp_path / "notes", threading.Event(), threading.Event()
    with concurrent.futures.ThreadPoolExecutor() as threads:
        slow = threads.submit(executor.submit, note, str(notes), Slow(begun, go_on), key="slow")
        assert begun.wait(60)
        same = threads.submit(executor.submit, note, str(notes), 2, key="slow")
        try:
            other = threads.submit(executor.submit, note, str(notes), 3, key="other")
            assert other.result(60).result(60) == 3
            assert not same.done()
        finally:
            go_on.set()
        assert slow.result(60) is same.result(60)
        assert slow.result(60).result(60) == 1
    assert notes.read_text() == "called\n" * 2


KEYS = {"claimed", "taken"}


def test_keys_are_free_again(client, executor, gates, tmp_path):
    notes = tmp_path / "notes"
    failed = executor.submit(note, str(notes), threading.Lock(), key="claimed")
    assert isinstance(failed.exception(60), TypeError)
    assert client.submit(note, str(notes), 1, key="taken").result(60) == 1  # and forgotten
    kept = client.submit(note, str(notes), 1, key="taken")
    assert executor.submit(note, str(notes), 2, key="taken").result(60) == 2  # by another name
    del kept, failed
    gc.collect()
    eventually(lambda: "taken" not in client.futures, "the client has forgotten it")
    started, gate = gates
    blocking = [executor.submit(wait_at, started, gate, b"", key=key) for key in KEYS]
    eventually(lambda: KEYS <= client.futures.keys(), "the client has both")
    open_gate(gate)
    assert [one.result(60) for one in blocking] == [b"", b""]


def test_options_of_the_client(executor, client, tmp_path):
    names = {one["name"]: address for address, one in client.scheduler_info()["workers"].items()}
    for name, address in names.items():
        assert executor.submit(where, PAYLOAD, workers=[address]).result(60) == name
        assert set(executor.map(where, range(5), workers=[address])) == {name}
    assert executor.submit(fail_at_first, str(tmp_path / "a"), retries=1).result(60) == (
        "the second time"
    )
    with pytest.raises(OSError, match="the first time"):
        executor.submit(fail_at_first, str(tmp_path / "b")).result(60)
    with pytest.raises(TypeError, match="'colour'"):
        executor.map(where, range(5), colour="blue")
    with dask.annotate(workers=[address]):
        assert executor.submit(where, PAYLOAD).result(60) == name


def test_priorities(executor, client, gates, tmp_path):
    """With both workers busy, what is more urgent is done first."""
    (started, gate), notes = gates, str(tmp_path / "notes")
    blocking = [executor.submit(wait_at, started, gate, b"") for _ in range(2)]
    eventually(lambda: os.path.exists(started), "they run")
    worker = next(iter(client.scheduler_info()["workers"]))
    late = [executor.submit(write, notes, "late", workers=[worker]) for _ in range(3)]
    urgent = executor.submit(write, notes, "urgent", workers=[worker], priority=10)
    key = urgent._base.key
    eventually(lambda: client.run(knows, key, workers=[worker])[worker], "the worker has got it")
    open_gate(gate)
    concurrent.futures.wait([*late, urgent, *blocking], 60)
    assert Path(notes).read_text().split()[0] == "urgent"


def knows(key, dask_worker):
    return key in dask_worker.state.tasks


def write(path, text):
    with open(extract(path), "a") as file:
        file.write(extract(text) + "\n")


def test_shutting_down(client, placed, gates):
    started, gate = gates
    with StoreExecutor(client, placed.url, ProxyAlways()) as executor:
        blocking = [executor.submit(wait_at, started, gate, b"0") for _ in range(2)]
        waiting = executor.submit(double, blocking[0])
        executor.shutdown(wait=False)
        with pytest.raises(RuntimeError, match="after shutdown"):
            executor.submit(double, b"")
        assert not waiting.done()
        open_gate(gate)
    assert waiting.done() and waiting.result() == b"00"
    # The client is the caller's, and goes on.
    assert client.submit(functions.add, 1, 2).result(60) == 3


def test_shutting_down_with_cancelling(client, placed, gates):
    started, gate = gates
    executor = StoreExecutor(client, placed.url, ProxyAlways())
    blocking = [executor.submit(wait_at, started, gate, b"0") for _ in range(2)]
    waiting = [executor.submit(double, blocking[0]), executor.submit(double, PAYLOAD)]
    executor.shutdown(cancel_futures=True)
    assert all(one.cancelled() for one in waiting)
    open_gate(gate)
    # What ran goes on, in a session that has ended.
    del blocking, waiting
    workers = client.run(lambda: None)
    assert len(workers) == 2


def test_a_client_that_is_closed(local, placed, gates):
    started, gate = gates
    client = distributed.Client(local)
    executor = StoreExecutor(client, placed.url, ProxyAlways())
    futures = [executor.submit(wait_at, started, gate, b"0") for _ in range(4)]
    eventually(lambda: os.path.exists(started), "they run")
    client.close()
    for one in futures:
        with pytest.raises(concurrent.futures.CancelledError):
            one.result(60)
    with pytest.raises(RuntimeError, match="closed"):
        executor.submit(double, b"")
    open_gate(gate)
    executor.shutdown()


def test_a_client_in_the_running_loop(local, placed):
    async def run():
        async with distributed.Client(local.scheduler_address, asynchronous=True) as client:
            executor = StoreExecutor(client, placed.url, ProxyAlways())
            first = executor.submit(double, PAYLOAD)
            second = executor.submit(double, first)
            result = await asyncio.wrap_future(second)
            assert await asyncio.to_thread(extract, result) == PAYLOAD * 4
            error = await asyncio.wait(
                [asyncio.wrap_future(executor.submit(functions.boom, PAYLOAD))], timeout=60
            )
            assert isinstance(next(iter(error[0])).exception(), ValueError)
            await asyncio.to_thread(executor.shutdown)
            del first, second, result

    asyncio.run(run())


def test_workers_that_are_threads(placed):
    with distributed.Client(processes=False, dashboard_address=":0") as client:
        with StoreExecutor(client, placed.url, ProxyAlways()) as executor:
            assert executor.submit(double, PAYLOAD).result(60) == PAYLOAD * 2
            data = [1]
            assert executor.submit(functions.append, data, 2).result(60) == [1, 2]
            assert data == [1]  # isolated, as in processes
            nothing_is_left(executor)


def test_the_default_store(client):
    """Files of this machine, which are no good to workers that may be elsewhere."""
    with StoreExecutor(client, should_proxy=ProxyAlways()) as executor:
        assert executor.submit(double, PAYLOAD).result(60) == PAYLOAD * 2
        nothing_is_left(executor)
    host = socket.gethostbyname(socket.gethostname())
    if host.startswith("127."):
        pytest.skip("this machine has no address of its own")
    local = distributed.LocalCluster(1, processes=False, host=host, dashboard_address=":0")
    with local, distributed.Client(local) as elsewhere:
        with pytest.raises(ValueError, match="redis://"):
            StoreExecutor(elsewhere, should_proxy=ProxyAlways())


# Separate processes.


@pytest.fixture
def apart():
    with cluster("one", "two") as apart, distributed.Client(apart.address) as client:
        client.wait_for_workers(2, timeout=60)
        yield apart, client


def test_schedulers_see_references_only(apart, placed):
    cluster, client = apart
    size = 1_000_000_000 if LONG and "redis" not in placed.url else 50_000_000
    data = bytes(size)
    with StoreExecutor(client, placed.url, ProxySize("100 kB")) as executor:
        small = traffic(cluster, lambda: executor.submit(len, b"").result(60))
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of large graphs, for one
            large = traffic(cluster, lambda: executor.submit(len, data).result(60))
            result = traffic(cluster, lambda: executor.submit(bytes, size).result(60))
            chain = traffic(
                cluster,
                lambda: executor.submit(len, executor.submit(bytes, size)).result(60),
            )
        assert large < small + 10_000
        assert result < small + 10_000
        assert chain < small + 20_000
        nothing_is_left(executor)


def test_many_calls_are_no_large_graph(client, placed):
    """Though what is below the policy's size travels with them."""
    with StoreExecutor(client, placed.url, ProxySize("1 MB")) as executor:
        executor.submit(len, b"").result(60)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            items = [bytes([n]) * 400_000 for n in range(60)]
            assert list(executor.map(len, items)) == [400_000] * 60
        assert not [one for one in caught if "graph" in str(one.message)]


def traffic(cluster, action):
    """The bytes to and from the scheduler that something takes."""
    return bytes_of(action, lambda: cluster.meter.bytes)


def test_resources(apart, placed):
    cluster, client = apart
    cluster.start_worker("strong", "--resources=GPU=1")
    client.wait_for_workers(3, timeout=60)
    with StoreExecutor(client, placed.url, ProxyAlways()) as executor:
        assert set(executor.map(where, [b""] * 6, resources={"GPU": 1})) == {"strong"}
        assert executor.submit(where, PAYLOAD, resources={"GPU": 1}).result(60) == "strong"


@pytest.mark.parametrize("lazy", [True, False])
def test_a_worker_killed_during_its_task(apart, placed, lazy, tmp_path):
    """It is run again, by another: what it was given is there still."""
    cluster, client = apart
    with StoreExecutor(client, placed.url, ProxyAlways(), lazy=lazy) as executor:
        dying = executor.submit(die_at_first, str(tmp_path / "died"), PAYLOAD)
        others = [executor.submit(double, bytes([n]) * 1000) for n in range(8)]
        assert dying.result(60) == PAYLOAD * 2
        assert [one.result(60) for one in others] == [bytes([n]) * 2000 for n in range(8)]
        assert executor.submit(double, dying).result(60) == PAYLOAD * 4
        del dying, others
        nothing_is_left(executor)


@pytest.mark.parametrize("lazy", [True, False])
def test_a_worker_killed_after_it_stored(apart, placed, lazy, gates, tmp_path):
    """With the outcomes of tasks in its memory that others wait for."""
    cluster, client = apart
    started, gate = gates
    with StoreExecutor(client, placed.url, ProxyAlways(), lazy=lazy) as executor:
        there = {"workers": ["one"], "allow_other_workers": True}
        first = executor.submit(note, str(tmp_path / "notes"), PAYLOAD, **there)
        second = executor.submit(wait_for_both, first, started, gate, **there)
        concurrent.futures.wait([first], 60)
        eventually(lambda: os.path.exists(started), "the second one runs")
        cluster.kill_worker("one")
        open_gate(gate)
        assert second.result(60) == PAYLOAD * 2
        assert first.result(60) == PAYLOAD
        assert executor.submit(double, first).result(60) == PAYLOAD * 2
        del first, second
        nothing_is_left(executor)


def wait_for_both(data, started, gate):
    return double(wait_at(started, gate, data))


def test_tasks_that_kill_all_their_workers(apart, placed):
    cluster, client = apart
    for name in ("three", "four", "five"):
        cluster.start_worker(name)
    client.wait_for_workers(5, timeout=60)
    with StoreExecutor(client, placed.url, ProxyAlways()) as executor:
        with pytest.raises(distributed.KilledWorker):
            executor.submit(functions.die, PAYLOAD).result(60)
        assert executor.submit(double, PAYLOAD).result(60) == PAYLOAD * 2
        nothing_is_left(executor)


@pytest.mark.parametrize("seed", range(40 if LONG else 2))
def test_workers_killed_at_random(seed):
    """Chains of calls, cancelled, dropped and read, while workers are killed and others come."""
    chance = random.Random(seed)
    lazy = seed % 4 in (0, 3)
    names = map(str, itertools.count())
    with (
        place_of(("disk", "redis")[seed % 2]) as place,
        cluster(*itertools.islice(names, 3)) as apart,
        distributed.Client(apart.address) as client,
    ):
        client.wait_for_workers(3, timeout=60)
        with StoreExecutor(client, place.url, ProxySize(1000), lazy=lazy) as executor:
            calls = []
            for _ in range(60):
                step = chance.random()
                if step < 0.35 or not calls:
                    data = bytes([chance.randrange(256)]) * chance.choice([10, 5000, 300_000])
                    future = executor.submit(extend, data, chance.choice([0, 0.02, 0.1]))
                    calls.append((future, data + b"!"))
                elif step < 0.7:
                    before, value = chance.choice(calls)
                    future = executor.submit(extend, before, chance.choice([0, 0.02]))
                    calls.append((future, value + b"!"))
                elif step < 0.8:
                    killed = chance.choice(list(apart.workers))
                    apart.kill_worker(killed)
                    del apart.workers[killed]
                    apart.start_worker(next(names))
                elif step < 0.85:
                    calls.pop(chance.randrange(len(calls)))
                elif step < 0.9:
                    chance.choice(calls)[0].cancel()
                else:
                    check(*calls.pop(chance.randrange(len(calls))))
            for future, value in calls:
                check(future, value)
            del calls, future, before
            # What was cancelled while a worker was at it is evicted again after some seconds.
            eventually(lambda: gc.collect() * 0 or executor.store.usage() == (0, 0), "all is gone")
        gc.collect()
        wait_for_evictions()
        assert place.residue() == []


def extend(data, seconds):
    time.sleep(seconds)
    return extract(data) + b"!"


def check(future, value):
    try:
        assert future.result(120) == value
    except concurrent.futures.CancelledError:
        pass
    except distributed.KilledWorker:  # it was there when several of them were killed
        pass
