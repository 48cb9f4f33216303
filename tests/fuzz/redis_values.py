"""Objects in a Redis server that somebody else has put there: ``RedisConnector.get``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from unittest.mock import patch

import redis

from proxyexec_connectors import _host_cache
from proxyexec_connectors._redis_format import Head
from proxyexec_connectors.errors import CorruptObjectError
from proxyexec_connectors.redis import RedisConnector
from tests.fuzz import Source, frames

NEEDS_REDIS = True

SEEDS = [
    *(b"\0" + seed for seed in frames.SEEDS),
    b"\1" + Head(b"t" * 16, 4, 4, 10).written(),
    *(bytes([2, choice, 2, 10, choice, 2, choice, 2, 3, 10, 10]) for choice in range(11)),
    b"\2\xff\x40" + bytes(7) + b"\xff\x10" + bytes(7) + b"\xff\x10" + bytes(7) + b"\4\x10\x10\x10",
    b"\3",
    b"\4",
    b"\5" + b"size",
]


@contextmanager
def reader(directory: Path, redis_url: str | None) -> Iterator[Callable[[bytes], None]]:
    assert redis_url is not None
    with (
        patch.object(_host_cache, "_SHARED_MEMORY", str(directory)),
        closing(RedisConnector(redis_url)) as owner,
        closing(RedisConnector.attach(owner.address)) as worker,
        redis.Redis.from_url(redis_url) as client,
    ):
        name = owner._name("key")

        def read(data: bytes) -> None:
            _put(client, name, owner._names.index, Source(data))
            for connector in (owner, worker):
                try:
                    found = connector.get("key")
                except CorruptObjectError:
                    continue
                if found is not None:
                    assert all(len(bytes(frame)) == len(frame) for frame in found)
            try:
                owner.usage()
            except CorruptObjectError:
                client.delete(owner._names.index)
            owner.evict(["key"])
            assert worker.get("key") is None

        yield read


def _put(client: redis.Redis, name: bytes, index: bytes, source: Source) -> None:
    how = source.byte() % 6
    if how == 0:
        client.set(name, source.rest())
    elif how == 1:
        client.hset(name, mapping={b"h": source.rest(), b"0": b"1234"})
    elif how == 2:
        head = Head(b"t" * 16, source.number(), source.number(), source.number())
        pieces = {b"%d" % n: bytes(source.short()) for n in range(source.byte() % 8)}
        if source.byte() % 2:  # as the head says
            pieces[b"0"] = bytes(min(head.first, 1 << 20))
        client.hset(name, mapping={b"h": head.written(), **pieces})
    elif how == 3:
        client.rpush(name, source.rest())
    elif how == 4:
        client.zadd(name, {source.rest(): 1})
    else:
        client.hset(index, source.take(4), source.rest())
