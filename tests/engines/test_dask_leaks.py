"""Who holds what is stored, where Dask waits for arguments itself."""

from __future__ import annotations

import gc

import pytest

pytest.importorskip("distributed")

# Of sockets of its own that Dask leaves to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
import distributed

from proxyexec import ProxySize, StoreExecutor
from tests.conftest import settle
from tests.functions import add_up, make_bytes, touch_then_wait


@pytest.fixture
def nothing_leaks():
    """Connections of Dask are kept for the next message."""
    return


def test_arguments_and_results(tmp_path):
    started, release = str(tmp_path / "started"), tmp_path / "release"
    options = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": ":0"}
    with (
        distributed.LocalCluster(**options) as local,
        distributed.Client(local) as client,
        StoreExecutor(client, f"file://{tmp_path}/objects", ProxySize("10 kB")) as executor,
    ):
        first = executor.submit(make_bytes, 50_000)
        assert first.exception(60) is None
        busy = executor.submit(touch_then_wait, started, str(release))
        second = executor.submit(add_up, first, b"x" * 60_000, b"")
        third = executor.submit(add_up, second, b"y", b"")
        try:
            found = {one.stored_as: one for one in executor.leaks()}
            assert set(found) == {"result of make_bytes", "argument 1 of add_up"}
            # The third needs what the second does, should that have to be run again.
            tasks = [(one.kind, one.name) for one in found["argument 1 of add_up"].holders]
            assert tasks == [("task", "add_up")] * 2
            assert "future" in {one.kind for one in found["result of make_bytes"].holders}
        finally:
            release.touch()
        assert busy.result(60) == "done"
        assert len(third.result(60)) == 110_001
        settle(executor)
        assert {one.stored_as for one in executor.leaks()} <= {
            "result of make_bytes",
            "result of add_up",
        }
        del first, second, third, busy
        gc.collect()
        assert len(executor.leaks()) == 0
