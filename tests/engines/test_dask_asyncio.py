"""Coroutines over an asynchronous Dask client in their own loop, with real worker processes."""

from __future__ import annotations

import asyncio
import gc

import pytest

distributed = pytest.importorskip("distributed")

# Of sockets of its own that Dask leaves to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

from proxyexec import ProxySize, Store, is_proxy, is_resolved
from proxyexec.aio import AsyncStoreExecutor
from proxyexec_connectors.file import FileConnector
from tests import functions
from tests.test_aio import Gate, double, hold, length, loop_runs, mark, until

LARGE = 300_000


@pytest.fixture
def nothing_leaks():
    """Connections of Dask are kept for the next message; what is stored is counted here."""
    return


def drive(body):
    """Run a coroutine function with an executor, and see that it leaves nothing."""

    async def main():
        async with (
            distributed.LocalCluster(
                2, threads_per_worker=1, dashboard_address=":0", asynchronous=True
            ) as cluster,
            distributed.Client(cluster, asynchronous=True) as client,
        ):
            with Store("test", FileConnector()) as store:
                async with AsyncStoreExecutor(
                    client, store, ProxySize(1000), close_store=False
                ) as executor:
                    await body(executor)
                gc.collect()  # what a test has caught refers to its frames
                assert store.usage() == (0, 0)
            assert client.status == "running"

    loop_runs(main)


def test_values_proxies_chains_errors_and_maps():
    async def body(executor):
        first = executor.submit(double, bytes(LARGE))
        assert await executor.submit(length, executor.submit(double, first)) == 4 * LARGE
        proxy = await first
        assert is_proxy(proxy) and not is_resolved(proxy)
        assert await executor.retrieve(first) == bytes(2 * LARGE)
        with pytest.raises(ValueError, match="boom"):
            await executor.submit(functions.boom)
        with pytest.raises(ValueError, match="boom"):
            await executor.submit(length, executor.submit(functions.boom))
        results = executor.map(double, [bytes([n]) * LARGE for n in range(6)], buffersize=2)
        assert [one[0] async for one in results] == list(range(6))

    drive(body)


def test_cancelling(tmp_path):
    gate = Gate(tmp_path)

    async def body(executor):
        running = executor.submit(hold, gate.files, bytes(LARGE))
        await gate.started()
        waiting = executor.submit(mark, tmp_path / "a", running)
        assert running.cancel() and waiting.cancelled()
        gate.open()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await executor.submit(pow, 2, 2) == 4
        await until(lambda: executor.store.usage() == (0, 0))

    drive(body)
    assert "a" not in [one.name for one in tmp_path.iterdir()]


def test_leaving_waits_for_all():
    handles = []

    async def body(executor):
        handles.extend(executor.submit(length, bytes(LARGE + n)) for n in range(5))

    drive(body)
    assert [one.result() for one in handles] == [LARGE + n for n in range(5)]
