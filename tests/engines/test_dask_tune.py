"""Traces of Dask clusters are replayed with the costs of a local one."""

from __future__ import annotations

import contextlib
import json
import socket

import pytest

pytest.importorskip("distributed")

# Of sockets of its own that Dask leaves to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
import distributed

from proxyexec import ProxySize, StoreExecutor, cli
from proxyexec._tune_run import run_of
from proxyexec.metrics import read_trace
from proxyexec.tune import TuneResult
from tests import functions

BIG = 200_000


@pytest.fixture
def nothing_leaks():
    """Connections of Dask are kept for the next message."""
    return


def test_a_trace_of_a_cluster_is_tuned(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "run.jsonl"
    options = {"threads_per_worker": 1, "dashboard_address": ":0"}
    with distributed.LocalCluster(2, **options) as local, distributed.Client(local) as client:
        place = f"file://{tmp_path}/objects"
        with StoreExecutor(client, place, ProxySize("100 kB"), lazy=False) as executor:
            with executor.trace(path):
                made = [executor.submit(functions.make_bytes, BIG + n) for n in range(4)]
                sizes = [executor.submit(len, one) for one in made]
                assert [one.result() for one in sizes] == [BIG + n for n in range(4)]
                del made
    run = run_of(read_trace(path))
    assert 1 <= run.workers <= 2
    uses = [step for step in run.steps if step.function == "len"]
    makers = [run.steps[step.after[0]].function for step in uses]
    assert makers == ["make_bytes"] * 4
    # They were submitted at once, and waited where the workers are.
    assert all(step.detached for step in uses)

    with socket.socket() as dashboard:  # that of a cluster that is there already
        with contextlib.suppress(OSError):
            dashboard.bind(("127.0.0.1", 8787))
            dashboard.listen()
        assert cli.main(["tune", str(path), "--json"]) == 0
    result = TuneResult.from_json(json.loads(capsys.readouterr().out))
    assert any("local Dask cluster" in one for one in result.notes)
    assert result.present.stored_bytes == pytest.approx(4 * BIG, 0.01)
    [place] = result.places
    assert place.costs.setting["executor"].startswith("proxyexec._dask.")
