"""Executors of IPython Parallel's views, with a controller and engines on this machine."""

from __future__ import annotations

import pytest

from proxyexec import ProxySize, StoreExecutor
from proxyexec.testing import ExecutorConformance

ipyparallel = pytest.importorskip("ipyparallel")


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    directory = tmp_path_factory.mktemp("ipython")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IPYTHONDIR", str(directory))
        with ipyparallel.Cluster(
            n=2, log_level=40, profile_dir=str(directory / "profile")
        ) as client:
            yield client


class TestBalanced(ExecutorConformance):
    can_cancel = False

    @pytest.fixture(scope="class")
    @classmethod
    def make_base(cls, client):
        return client.executor


class TestDirect(ExecutorConformance):
    can_cancel = False
    workers = 1

    @pytest.fixture(scope="class")
    @classmethod
    def make_base(cls, client):
        return lambda: client[0].executor


def test_a_view_of_several_engines_runs_calls_several_times(client):
    for view in (client[:], client[[0]], client.direct_view("all"), client.broadcast_view()):
        with pytest.raises(TypeError, match=r"on each engine of the view.* client\.executor\(\)"):
            StoreExecutor(view.executor)


def test_errors_of_the_library_are_its_own(client):
    """Its scheduler sends a task whose dependency is not met to another engine."""
    with StoreExecutor(client[0].executor, should_proxy=ProxySize(1_000)) as executor:
        error = executor.submit(unmet).exception(60)
    assert isinstance(error, ipyparallel.error.RemoteError)
    assert error.ename == "UnmetDependency"


def unmet():
    raise ipyparallel.error.UnmetDependency


def test_engines_and_client_outlive_the_executor(client):
    with StoreExecutor(client.executor(), should_proxy=ProxySize(1_000)) as executor:
        assert executor.submit(len, bytes(2_000)).result(60) == 2_000
    assert client[0].apply_sync(len, "abc") == 3
