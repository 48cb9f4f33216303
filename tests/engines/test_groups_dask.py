"""A client of a Dask cluster that outlives it, killed at some moment, and run again."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("distributed")

from distributed import Client

from proxyexec import ProxySize, StoreExecutor
from proxyexec.groups import Group
from tests.chaos.census import eventually
from tests.engines.dask_cluster import cluster
from tests.group_kills import SEEDS, killed_and_run_again
from tests.test_groups import count, length, read, say, waits


@pytest.fixture(scope="module")
def dask():
    with cluster("a", "b") as one:
        yield one


def nothing_runs(address):
    """Wait until the cluster has ended what dead clients have left it."""
    with Client(address, set_as_default=False) as client:

        def is_idle():
            running = client.run(lambda dask_worker: len(dask_worker.state.executing))
            return not any(running.values())

        eventually(is_idle, "the workers are idle")


@pytest.mark.parametrize("seed", SEEDS)
def test_with_a_directory(seed, tmp_path, dask):
    place = tmp_path / "groups"
    killed_and_run_again(
        seed, place.as_uri(), dask.address, tmp_path, lambda: nothing_runs(dask.address)
    )
    assert os.listdir(place) == []


@pytest.mark.parametrize("seed", SEEDS)
def test_with_redis(seed, tmp_path, dask, redis_url):
    import redis

    killed_and_run_again(
        seed, redis_url, dask.address, tmp_path, lambda: nothing_runs(dask.address)
    )
    with redis.Redis.from_url(redis_url) as client:
        assert client.keys("*") == []


@pytest.mark.parametrize("place", ["directory", "redis"])
def test_a_worker_that_dies_with_a_task(place, tmp_path, request):
    """Dask runs the task again, on another worker, which takes over the claim."""
    url = request.getfixturevalue("redis_url") if place == "redis" else tmp_path.as_uri()
    runs, begun, go = (str(tmp_path / name) for name in ("runs", "begun", "go"))
    os.mkfifo(begun)
    os.mkfifo(go)
    with cluster("a") as one, Client(one.address, set_as_default=False) as client:
        with StoreExecutor(client, url, ProxySize(1000), task_group="g") as executor:
            future = executor.submit(waits, runs, begun, go)
            after = executor.submit(length, future)
            read(begun)
            one.start_worker("b")
            one.kill_worker("a")
            read(begun)
            say(go)
            assert future.result(60) == "went on"
            assert after.result(60) == len("went on")
        assert sum(count(runs).values()) == 2
        with StoreExecutor(client, url, ProxySize(1000), task_group="g") as executor:
            again = executor.reload_tasks()
            assert [one.result(0) for one in again] == ["went on", len("went on")]
    assert sum(count(runs).values()) == 2
    with Group(url, "g") as group:
        group.delete()


def test_options_of_dask(tmp_path):
    with cluster("a") as one, Client(one.address, set_as_default=False) as client:
        url = tmp_path.as_uri()
        with StoreExecutor(client, url, ProxySize(1000), task_group="g") as executor:
            assert executor.submit(length, b"x" * 5000, priority=3, retries=1).result(60) == 5000
            assert list(executor.map(length, [b"", b"x"], priority=1)) == [0, 1]
            with executor.batch():
                futures = [executor.submit(length, b"x" * n) for n in range(50)]
            assert [future.result(60) for future in futures] == list(range(50))
