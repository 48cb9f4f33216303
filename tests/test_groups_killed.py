"""A client with a pool of processes that is killed at some moment, and run again."""

from __future__ import annotations

import os

import pytest

from tests.group_kills import SEEDS, killed_and_run_again


@pytest.mark.parametrize("seed", SEEDS)
def test_with_a_directory(seed, tmp_path):
    place = tmp_path / "groups"
    killed_and_run_again(seed, place.as_uri(), "pool", tmp_path)
    assert os.listdir(place) == []


@pytest.mark.parametrize("seed", SEEDS)
def test_with_redis(seed, tmp_path, redis_url):
    import redis

    killed_and_run_again(seed, redis_url, "pool", tmp_path)
    with redis.Redis.from_url(redis_url) as client:
        assert client.keys("*") == []
