"""Traces: complete lines while they grow, bounded, and what is in them."""

from __future__ import annotations

import concurrent.futures
import functools
import gc
import json
import logging
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time

import pytest

import proxyexec
from proxyexec import ProxyAlways, ProxySize, ProxyType, Store, StoreExecutor
from proxyexec._cores import usable_cores
from proxyexec.errors import TraceError
from proxyexec.metrics import TraceReader, read_trace
from tests import functions
from tests.conftest import settle

FORK = multiprocessing.get_context("fork")
BIG = 200_000


def make_base(kind="fork"):
    if kind == "thread":
        return concurrent.futures.ThreadPoolExecutor(1)
    return concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context(kind))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.jsonl"


def test_the_header_says_what_is_traced(path):
    before = time.time()
    with StoreExecutor(make_base(), should_proxy=ProxySize("1 MB")) as executor:
        with executor.trace(path):
            pass
        header = read_trace(path).header
        assert header.proxyexec_trace == 1
        assert header.version == proxyexec.__version__
        assert before <= header.started <= time.time()
        assert (header.pid, header.workers, header.crosses) == (os.getpid(), 2, True)
        assert header.executor == "concurrent.futures.process.ProcessPoolExecutor"
        assert header.policy == "ProxySize(1000000)"
        assert header.cores == usable_cores()
        assert (header.scheme, header.store) == ("file", executor.store.connector.url)
        assert (header.lazy, header.nested, header.dedupe) == (True, False, True)


def test_the_header_has_no_password(path):
    pytest.importorskip("redis")
    from tests.redis_server import redis_server

    path.write_text("what was there before")
    with redis_server(requirepass="hunter2") as server:
        place = server.url.partition("://")[2].rpartition("@")[2]
        store = Store.from_url(f"redis://:hunter2@{place}")
        with StoreExecutor(make_base("thread"), store, ProxyAlways()) as executor:
            with executor.trace(path):
                assert executor.submit(functions.total, [1]).result() == 1
    header = read_trace(path).header
    assert (header.scheme, header.store) == ("redis", store.connector.url)
    assert place in header.store
    assert "hunter2" not in path.read_text()


@pytest.mark.parametrize("kind", ["thread", "fork", "spawn"])
@pytest.mark.parametrize("lazy", [True, False])
def test_a_task_line_suffices_to_judge_other_policies(path, kind, lazy):
    with StoreExecutor(make_base(kind), should_proxy=ProxySize("100 kB"), lazy=lazy) as executor:
        with executor.trace(path):
            made = executor.submit(functions.add, bytes(BIG), b=b"a" * 5000)
            assert len(made.result()) == BIG + 5000
            settle(executor)
        trace = read_trace(path)
    task = trace.tasks[0]
    first, second, result = task.moved
    assert [first.what, second.what, result.what] == ["argument", "argument", "result"]
    assert [first.name, second.name] == [0, "b"]
    assert [one.type for one in task.moved] == ["bytes"] * 3
    assert [one.path for one in task.moved] == ["store", "inline", "store"]
    assert BIG <= first.bytes < BIG + 100
    assert 5000 <= second.bytes < 5100
    assert first.decided_by.startswith("ProxySize(100000): ")
    assert second.decided_by == "ProxySize(100000): 5000 bytes"
    assert first.key != result.key == task.task
    if kind != "thread":
        assert second.exact
        assert len({one.content for one in task.moved}) == 3
    assert 0 <= task.submitted <= task.ended == task.t
    assert task.submitted - 1 < task.started < task.ended + 1
    assert task.run_s > 0
    assert task.wait_s > 0
    assert task.worker.rpartition(":")[2].isdigit()
    assert [one.key for one in task.resolved] == [first.key]


def test_one_object_is_seen_to_be_one_whatever_the_policy(path):
    data = os.urandom(BIG)
    contents = []
    for policy in (ProxySize("100 kB"), None, ProxySize("1 GB"), ProxyType(list)):
        with StoreExecutor(make_base(), should_proxy=policy) as executor, executor.trace(path):
            assert list(executor.map(len, [data] * 3, chunksize=1)) == [BIG] * 3
            assert executor.submit(len, [data]).result() == 1
            settle(executor)
        moved = [one for task in read_trace(path).tasks for one in task.moved]
        contents += [one.content for one in moved if one.type == "bytes"]
        sizes = {one.bytes for one in moved if one.type == "list"}
        assert all(BIG <= size < BIG + 300 for size in sizes)
    assert len(contents) == 12
    assert len(set(contents)) == 1


class Model:
    def __init__(self, size):
        self.weights = list(range(size))


def weigh(*given, **named):
    return len(given) + len(named)


def test_what_a_callable_carries_is_seen_where_it_is_not_stored_by_itself(path):
    one, two = Model(20_000), Model(10_000)
    calls = [
        functools.partial(weigh, one, len, None, 1.5),
        functools.partial(weigh, functools.partial(weigh, one), named=bytes(BIG)),
        functools.partial(weigh, one, b"small", other=two),
    ]
    kind = f"{__name__}.Model"
    with StoreExecutor(make_base()) as executor, executor.trace(path):
        for call in calls:
            executor.submit(call, 1).result()
        settle(executor)
    whole = [task.moved[0] for task in read_trace(path).tasks[:3]]
    assert {one.type for one in whole} == {"functools.partial"}
    alone, with_data, both = (one.carries for one in whole)
    assert [one for one, *_ in alone] == [kind]
    assert [one for one, *_ in with_data] == ["bytes", kind]
    assert [one for one, *_ in both] == [kind, kind]
    sizes = [len(pickle.dumps(one, 5)) for one in (one, two)]
    for (_, size, _), expected in zip(
        (*alone, *with_data, *both), (sizes[0], BIG, sizes[0], *sizes), strict=True
    ):
        assert expected <= size < expected + 500
    assert len({content for _, _, content in (*alone, *with_data, *both)}) == 3

    with StoreExecutor(make_base(), should_proxy=ProxyType(Model)) as executor:
        with executor.trace(path):
            for call in calls:
                executor.submit(call, 1).result()
            settle(executor)
    moved = [task.moved for task in read_trace(path).tasks[:3]]
    parts = [[one for one in some if one.part] for some in moved]
    assert [[one.type for one in some] for some in parts] == [[kind], [kind], [kind, kind]]
    assert {one.path for some in parts for one in some} <= {"store", "found"}
    assert [one[0].carries for one in moved] == [
        (),
        (("bytes", BIG, with_data[0][2]),),
        (),
    ]


def unusual(*given):
    return len(given) + len(GLOBAL) + STRANGE


class Strange(int):
    """Says that it is something else, and has no time for that either."""

    @property
    def __class__(self):
        raise RuntimeError("outside of its context")


GLOBAL, STRANGE = ["x" * 100] * 5000, Strange(1)


def test_what_does_not_go_with_a_callable_is_not_carried(path):
    with StoreExecutor(make_base()) as executor, executor.trace(path):
        held = proxyexec.clone(executor.store.proxy(Model(20_000)))
        for call in (
            functools.partial(unusual, 1),  # finds these by their names
            functools.partial(weigh, held),
        ):
            assert executor.submit(call).result() >= 1
        assert not proxyexec.is_resolved(held)
        settle(executor)
    assert [task.moved[0].carries for task in read_trace(path).tasks[:2]] == [()] * 2


def test_all_that_a_callable_carries_is_no_more_than_it_is(path):
    text, model = ["\u20ac" * 400] * 3, Model(20_000)
    calls = [
        functools.partial(weigh, text, model),
        functools.partial(weigh, model, [model], {1: model}),
    ]
    with StoreExecutor(make_base()) as executor, executor.trace(path):
        for call in calls:
            executor.submit(call).result()
        settle(executor)
    for task in read_trace(path).tasks[:2]:
        whole = task.moved[0]
        sizes = {kind: size for kind, size, _ in whole.carries}
        assert sum(size for _, size, _ in whole.carries) <= whole.bytes
        assert sizes[f"{__name__}.Model"] > 10_000


@pytest.mark.parametrize("size", [100, 100_000])
def test_of_what_parts_were_taken_from_nothing_is_said(path, size):
    pytest.importorskip("numpy")
    import numpy as np  # noqa: PLC0415

    call = functools.partial(weigh, {"array": np.zeros(size), "text": "x" * 3000})
    policy = ProxySize("100 kB")
    with StoreExecutor(make_base(), should_proxy=policy, nested=True) as executor:
        with executor.trace(path):
            executor.submit(call).result()
            settle(executor)
    function = read_trace(path).tasks[0].moved[0]
    assert [kind for kind, *_ in function.carries] == (["dict"] if size == 100 else [])


@pytest.mark.parametrize("chunksize", [1, 4, "auto"])
@pytest.mark.parametrize("kind", ["thread", "fork"])
def test_calls_that_pass_untouched_are_traced(path, kind, chunksize):
    items = [functions.Carrier(bytes(BIG)) if n % 2 else bytes([n]) * BIG for n in range(8)]
    with StoreExecutor(make_base(kind)) as executor, executor.trace(path):
        kinds = list(executor.map(functions.kind, items, chunksize=chunksize))
        assert kinds[:2] == [("bytes", False, False), ("Carrier", False, False)]
        assert executor.submit(functions.boom).exception()
        settle(executor)
    trace = read_trace(path)
    assert sum(task.calls for task in trace.tasks if task.function == "kind") == 8
    arguments = [
        one
        for task in trace.tasks
        for one in task.moved
        if one.what == "argument" and task.function == "kind"
    ]
    assert [one.type for one in arguments].count("bytes") == 4
    assert {one.path for one in arguments} == {"inline"}
    if kind == "fork":
        assert all(BIG < one.bytes < BIG + 1000 for one in arguments)
    assert all(one.decided_by == "ProxyNever(): not wanted" for one in arguments)
    (failed,) = [task for task in trace.tasks if task.state == "failed"]
    assert (failed.error, failed.run_s, failed.function) == ("ValueError", None, "boom")


def test_identity_within_a_call_that_passes_is_kept(path):
    with StoreExecutor(make_base()) as executor, executor.trace(path):
        shared = [1]
        assert executor.submit(functions.are_one, shared, [shared]).result()
        chunk = [(shared, [shared])] * 2
        assert list(executor.map(functions.are_one, *zip(*chunk, strict=True), chunksize=2))[0]


def test_what_is_evicted_and_fetched_is_traced(path):
    with StoreExecutor(make_base(), should_proxy=ProxySize("100 kB")) as executor:
        with executor.trace(path):
            result = executor.submit(functions.make_bytes, BIG).result()
            assert len(result) == BIG
            key = proxyexec.reference_of(result).key
            del result
            assert executor.submit(functions.kind, bytes(BIG)).result()
            settle(executor)
            executor.store.usage()
        trace = read_trace(path)
    (fetched,) = trace.resolved
    assert (fetched.key, fetched.type) == (key, "bytes")
    assert {one.key: one.resolved for one in trace.evicted}[key]
    assert [one.resolved for one in trace.evicted].count(False) == 1
    assert all(one.stored_s > 0 for one in trace.evicted)
    assert trace.end.left_out == 0
    assert trace.end.stats["bytes_peak"] >= BIG


def test_it_is_readable_while_it_grows(path):
    with StoreExecutor(make_base(), should_proxy=ProxySize("100 kB")) as executor:
        with executor.trace(path) as writer, TraceReader(path) as reader:
            trace = reader.read()
            assert trace.tasks == []
            executor.submit(functions.add, 1, 1).result()
            settle(executor)
            seen = len(reader.read().tasks)
            assert seen >= 1
            executor.submit(functions.add, 1, 1).result()
            settle(executor)
            assert len(reader.read().tasks) >= seen + 1
            assert reader.read() is trace
            assert trace.end is None
            writer.close()
            assert reader.read().end is not None
            executor.submit(functions.add, 1, 1).result()
            lines = path.read_bytes()
        assert path.read_bytes() == lines


def test_it_is_bounded(path):
    with StoreExecutor(make_base("thread"), should_proxy=ProxySize("100 kB")) as executor:
        with executor.trace(path, "20 kB"):
            for n in range(200):
                executor.submit(functions.add, n, n).result()
            settle(executor)
        trace = read_trace(path)
    assert path.stat().st_size <= 20_000
    assert 10 < len(trace.tasks) < 200
    assert trace.full > 0
    assert trace.end.left_out + len(trace.tasks) >= 200


@pytest.mark.parametrize("size", ["9 kB", 0, -1, "x"])
def test_it_cannot_be_too_small(path, size):
    with StoreExecutor(make_base("thread")) as executor:
        with pytest.raises(ValueError):
            executor.trace(path, size)
        assert not path.exists()


def test_it_cannot_be_anywhere(tmp_path):
    with StoreExecutor(make_base("thread")) as executor:
        with pytest.raises(FileNotFoundError):
            executor.trace(tmp_path / "missing" / "run.jsonl")
        assert not executor._measures.every


def test_threads_write_whole_lines(path):
    results = []

    def submit():
        for n in range(100):
            results.append(executor.submit(functions.add, "a" * n, "b").result() == "a" * n + "b")

    with StoreExecutor(concurrent.futures.ThreadPoolExecutor(8)) as executor:
        trace = executor.trace(path)
        threads = [threading.Thread(target=submit) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    trace.close()
    assert results == [True] * 800
    lines = path.read_bytes().splitlines()
    assert sum(json.loads(line).get("event") == "task" for line in lines) == 800


def test_a_full_disk_ends_it_and_nothing_else(small_tmpfs, caplog):
    path = small_tmpfs / "run.jsonl"
    with StoreExecutor(make_base("thread"), should_proxy=ProxySize("1 MB")) as executor:
        with executor.trace(path):
            (small_tmpfs / "filler").write_bytes(bytes(64 << 20 >> 1))
            with open(small_tmpfs / "rest", "wb", 0) as file:
                try:
                    while True:
                        file.write(bytes(4096))
                except OSError:
                    pass
            with caplog.at_level(logging.WARNING, "proxyexec"):
                for n in range(100):
                    assert executor.submit(functions.add, n, 1).result() == n + 1
                settle(executor)
    assert len([one for one in caplog.records if "trace" in one.message]) == 1
    assert read_trace(path).end is None


def test_a_dropped_executor_ends_it(path):
    executor = StoreExecutor(make_base("thread"), should_proxy=ProxySize("1 MB"))
    executor.trace(path)
    executor.submit(functions.add, 1, 1).result()
    executor.shutdown()
    del executor
    gc.collect()
    trace = read_trace(path)
    assert len(trace.tasks) == 1
    assert trace.end.stats is None


PROGRAM = """
import os, signal, sys
from concurrent.futures import ThreadPoolExecutor
from proxyexec import StoreExecutor
executor = StoreExecutor(ThreadPoolExecutor(1))
trace = executor.trace(sys.argv[1])
for n in range(20):
    executor.submit(abs, -n).result()
executor.submit(abs, 1).add_done_callback(lambda _: None)
executor.shutdown()
if sys.argv[2] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2] == "forks":
    child = os.fork()
    if not child:
        trace.close()
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.mark.parametrize("how", ["ends", "killed", "forks"])
def test_a_program_that_ends_leaves_it_whole(path, how):
    done = subprocess.run([sys.executable, "-c", PROGRAM, path, how], timeout=60, check=False)
    assert done.returncode == (-signal.SIGKILL if how == "killed" else 0)
    trace = read_trace(path)
    assert len(trace.tasks) == 21
    assert (trace.end is None) == (how == "killed")
    assert path.read_bytes().endswith(b"\n")


def test_half_of_a_last_line_is_left_out(path):
    with StoreExecutor(make_base("thread")) as executor, executor.trace(path):
        executor.submit(functions.add, 1, 1).result()
        settle(executor)
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    assert read_trace(path).end is None
    with TraceReader(path) as reader:
        assert reader.read().end is None
        path.write_bytes(whole)
        assert reader.read().end is not None


# A task that is whole but for what a function carries.
CARRIES = (
    '{header}\n{"event": "task", "moved": [{"what": "function", "name": null, "type": "partial", '
    '"bytes": 1, "exact": true, "path": "inline", "decided_by": "", "serialize_s": 0, "put_s": 0, '
    '"key": "", "content": "", "part": false, "carries": %s}]}\n'
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("{}\n", "line is not the header"),
        ("nothing\n", "line 1 is damaged"),
        ("[]\n", "not an object"),
        ('{"proxyexec_trace": 2, "version": "9.9"}\n', "version 2, which proxyexec 9.9"),
        ('{"proxyexec_trace": 1}\n', "missing"),
        ("{header}\nhalf\n", "line 2 is damaged"),
        ('{header}\n{"event": "task", "t": 1}\n', "missing"),
        ('{header}\n{"event": "task", "moved": [1]}\n', "line 2 is damaged"),
        ('{header}\n{"event": "task", "moved": 1}\n', "line 2 is damaged"),
        (CARRIES % '[["list", "large", ""]]', "line 2 is damaged: invalid literal"),
        (CARRIES % '[["list", Infinity, ""]]', "line 2 is damaged: .*infinity"),
        (CARRIES % '[["list", -1, ""]]', "line 2 is damaged: .*negative"),
        (CARRIES % "1", "line 2 is damaged: .*not iterable"),
        (CARRIES % "null", "line 2 is damaged: .*not iterable"),
        ('{header}\n{"event": "task", "resolved": null}\n', "line 2 is damaged"),
        (f"{'[' * 100_000}\n", "line 1 is damaged"),
    ],
)
def test_what_is_no_trace_is_refused(path, text, reason):
    with StoreExecutor(make_base("thread")) as executor, executor.trace(path):
        header = path.read_text().splitlines()[0]
    path.write_text(text.replace("{header}", header))
    with pytest.raises(TraceError, match=reason) as caught:
        read_trace(path)
    assert caught.value.path == str(path)


def test_what_later_versions_add_is_passed_over(path):
    with StoreExecutor(make_base("thread")) as executor, executor.trace(path):
        executor.submit(functions.add, 1, 1).result()
        settle(executor)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line["later"] = 1
    lines[1]["moved"][0]["later"] = 1
    lines.insert(1, {"event": "later"})
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    assert len(read_trace(path).tasks) >= 1


def test_two_traces_are_written_side_by_side(tmp_path):
    with StoreExecutor(make_base("thread")) as executor:
        with executor.trace(tmp_path / "a"), executor.trace(tmp_path / "b"):
            executor.submit(functions.add, 1, 1).result()
            settle(executor)
        assert not executor._measures.every
    counts = [len(read_trace(tmp_path / name).tasks) for name in "ab"]
    assert counts[0] == counts[1] >= 1


def test_a_result_that_is_given_to_another_task_is_known_by_its_own(path):
    with StoreExecutor(make_base(), should_proxy=ProxySize("1 MB")) as executor:
        with executor.trace(path):
            first = executor.submit(dict.fromkeys, range(100), "x")
            assert executor.submit(len, first).result() == 100
            value = first.result()
            assert executor.submit(len, value).result() == 100
    maker, user, other = read_trace(path).tasks
    assert user.moved[0].key == maker.task
    assert other.moved[0].key == ""


def test_one_that_is_written_over_is_read_anew(path):
    def written(*sums):
        with StoreExecutor(make_base("thread")) as executor, executor.trace(path):
            for n in sums:
                assert executor.submit(functions.identity, n).result() == n
            settle(executor)

    written(1, 2)
    with TraceReader(path) as reader:
        first = reader.read()
        assert sum(one.function == "identity" for one in first.tasks) == 2
        assert reader.read() is first
        written(*range(20))  # which is longer than what has been read
        second = reader.read()
        assert sum(one.function == "identity" for one in second.tasks) == 20
        assert second.header.started > first.header.started
        path.write_bytes(b"")
        assert reader.read() is None
        written(1)
        assert sum(one.function == "identity" for one in reader.read().tasks) == 1


def test_a_trace_may_come_through_a_pipe(path):
    with StoreExecutor(make_base("thread")) as executor, executor.trace(path):
        pass
    ours, theirs = os.pipe()
    os.write(theirs, path.read_bytes())
    os.close(theirs)
    assert read_trace(f"/dev/fd/{ours}").end is not None
    os.close(ours)


FULL = """
import resource, sys
from concurrent.futures import ThreadPoolExecutor
from proxyexec import StoreExecutor

path = sys.argv[1]
with StoreExecutor(ThreadPoolExecutor(1)) as executor:
    trace = executor.trace(path)
    with open(path, "rb") as file:
        room = len(file.read()) + 100
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
    assert executor.submit(len, "abc").result() == 3
    executor.shutdown()
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    trace.close()
"""


def test_nothing_is_written_after_a_line_that_was_cut_off(path):
    subprocess.run([sys.executable, "-c", FULL, str(path)], check=True, timeout=60)
    assert not path.read_bytes().endswith(b"\n")
    trace = read_trace(path)
    assert (trace.tasks, trace.end) == ([], None)
