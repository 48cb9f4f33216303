"""What ``Client.get_executor()`` returns, on a cluster of processes."""

from __future__ import annotations

import pytest

from proxyexec.testing import ExecutorConformance

distributed = pytest.importorskip("distributed")

# Looking for the address of this machine, distributed leaves sockets open.
pytestmark = pytest.mark.filterwarnings(
    "default::ResourceWarning", "default::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(scope="module")
def client():
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


class TestDask(ExecutorConformance):
    cancels_running = True
    carries_errors = False

    @pytest.fixture(scope="class")
    @classmethod
    def make_base(cls, client):
        return client.get_executor
