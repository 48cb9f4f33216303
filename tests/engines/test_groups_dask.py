"""A client of a Dask cluster that outlives it, killed at some moment, and run again."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("distributed")

from distributed import Client

from tests.chaos.census import eventually
from tests.engines.dask_cluster import cluster
from tests.group_kills import SEEDS, killed_and_run_again


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
