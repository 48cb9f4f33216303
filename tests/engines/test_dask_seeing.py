"""What moves between a Dask client and its workers, counted, explained and traced."""

from __future__ import annotations

import gc
import os

import pytest

pytest.importorskip("distributed")

# Of sockets of its own that Dask leaves to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
import distributed

from proxyexec import ProxySize, StoreExecutor
from proxyexec.metrics import read_trace
from tests import functions
from tests.conftest import settle

BIG = 200_000


@pytest.fixture
def nothing_leaks():
    """Connections of Dask are kept for the next message."""
    return


@pytest.fixture(scope="module")
def client():
    options = {"threads_per_worker": 1, "dashboard_address": ":0"}
    with distributed.LocalCluster(2, **options) as local, distributed.Client(local) as one:
        yield one


@pytest.mark.parametrize("lazy", [True, False], ids=["lazy", "eager"])
def test_workers_report_with_their_outcomes(client, tmp_path, lazy):
    place = f"file://{tmp_path}/objects"
    with StoreExecutor(client, place, ProxySize("100 kB"), lazy=lazy) as executor:
        with executor.trace(tmp_path / "run.jsonl"):
            future = executor.submit(functions.add, bytes(BIG), b"a")
            assert len(future.result()) == BIG + 1
            settle(executor)
        stats = executor.stats()
        assert (stats.tasks_done, stats.objects_stored) == (2, 2)
        assert stats.objects_resolved == 2
        assert stats.call_seconds > 0 < stats.wait_seconds
        trace = read_trace(tmp_path / "run.jsonl")
        assert trace.header.executor == "distributed.client.Client"
        (task,) = [one for one in trace.tasks if len(one.resolved) == 1]
        assert [one.path for one in task.moved] == ["store", "inline", "store"]
        assert int(task.worker.rpartition(":")[2]) != os.getpid()
        del future


def test_results_that_the_cluster_hands_on_are_references(client, tmp_path):
    place, gate = f"file://{tmp_path}/objects", tmp_path / "gate"
    with StoreExecutor(client, place, ProxySize("100 kB")) as executor:
        first = executor.submit(functions.wait_then_make_bytes, str(gate), BIG)
        second = executor.submit(functions.add, first, b"a")
        third = executor.submit(len, second)  # the scheduler has all three by now
        assert not first.done()
        gate.touch()
        assert third.result() == BIG + 1
        settle(executor)
        explained = [executor.explain(one).moved for one in (first, second, third)]
        assert [one.path for one in explained[1]] == ["reference", "store"]
        (handed,) = explained[2]
        assert (handed.path, handed.key) == ("reference", explained[1][1].key)
        stats = executor.stats()
        assert stats.objects_referenced == 2
        assert stats.objects_stored == 2
        del first, second, third
        gc.collect()
        executor.store.usage()
        assert executor.stats().objects_never_resolved == 0


def test_a_trace_knows_what_workers_pass_on_by_themselves(client, tmp_path):
    place, gate = f"file://{tmp_path}/objects", tmp_path / "gate"
    with StoreExecutor(client, place, ProxySize("100 MB")) as executor:
        with executor.trace(tmp_path / "run.jsonl"):
            first = executor.submit(functions.wait_then_make_bytes, str(gate), BIG)
            second = executor.submit(functions.add, first, b"a")
            gate.touch()
            assert len(second.result()) == BIG + 1
            settle(executor)
        maker, user, *_ = sorted(
            read_trace(tmp_path / "run.jsonl").tasks, key=lambda one: one.submitted
        )
        (passed,) = [one for one in user.moved if one.key == maker.task]
        assert (passed.what, passed.path) == ("argument", "inline")
        assert passed.bytes >= BIG
        assert passed.serialize_s == 0
        # Nothing of it went past the client.
        assert executor.stats().objects_stored == 0
        del first, second
        gc.collect()


@pytest.mark.parametrize("size", [1_000, BIG], ids=["inline", "stored"])
def test_a_result_that_is_handed_on_twice_to_a_task_is_one(client, tmp_path, size):
    place, gate = f"file://{tmp_path}/objects", tmp_path / "gate"
    with StoreExecutor(client, place, ProxySize("100 kB")) as executor:
        with executor.trace(tmp_path / "run.jsonl"):
            made = executor.submit(functions.wait_then_make_bytes, str(gate), size)
            joined = executor.submit(functions.add, made, made)
            assert not made.done()
            gate.touch()
            assert len(joined.result()) == 2 * size
            settle(executor)
        explained = executor.explain(joined)
        handed = [one for one in explained.moved if one.what == "argument"]
        assert [(one.key, one.bytes > size) for one in handed] == [(made._call.key, True)]
        assert "\nan argument  " in repr(explained)
        assert executor.stats().objects_referenced == (size == BIG)
        tasks = {one.task: one for one in read_trace(tmp_path / "run.jsonl").tasks}
        task = tasks[joined._call.key]
        assert [one.what for one in task.moved].count("argument") == 1
        del made, joined
