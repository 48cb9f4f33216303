"""What processes of a host have fetched for each other: ``_host_cache``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from proxyexec_connectors import _host_cache
from proxyexec_connectors._host_cache import HostCache, Known
from tests.fuzz import Source

_KNOWN = Known("key", b"t" * 16)
_CONTENT = b"content" * 20

SEEDS = [
    _CONTENT + _host_cache._trailer(_KNOWN, len(_CONTENT)),
    _CONTENT + _host_cache._trailer(Known("key", b"u" * 16), len(_CONTENT)),
    _CONTENT + _host_cache._trailer(_KNOWN, len(_CONTENT) + 1),
    _host_cache._trailer(Known("\udcff", b"t" * 16), 0),
]


@contextmanager
def reader(directory: Path, redis_url: str | None) -> Iterator[Callable[[bytes], None]]:
    def are_current(objects):
        return [True] * len(objects)

    def receive(write):
        write(memoryview(_CONTENT), 0)

    with patch.object(_host_cache, "_SHARED_MEMORY", str(directory)):
        cache = HostCache("0123456789abcdef", 1 << 20, are_current)
        assert cache.obtain(_KNOWN, len(_CONTENT), receive) is not None
        path = Path(cache._path("key"))
        other = Path(cache._path("other"))
        try:

            def read(data: bytes) -> None:
                source = Source(data)
                # In the first place for who looks for the object, in the second for who makes room.
                for one in (path, other):
                    one.write_bytes(source.rest())
                kept = cache.find("key")
                assert kept is None or kept[0].key == "key"
                found = cache.obtain(_KNOWN, len(_CONTENT), receive)
                assert found is None or len(found) == len(_CONTENT)
                cache.forget(["key"])
                found = cache.obtain(_KNOWN, len(_CONTENT), receive)
                assert found is not None
                assert bytes(found) == _CONTENT

            yield read
        finally:
            cache.remove()
