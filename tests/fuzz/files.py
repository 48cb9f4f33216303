"""Files of small objects, which are read or mapped: ``FileConnector.get``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from proxyexec_connectors.errors import CorruptObjectError
from proxyexec_connectors.file import FileConnector
from tests.fuzz import Source, frames

SEEDS = [bytes([how]) + seed for how in range(3) for seed in frames.SEEDS]

# Enough for the file to be mapped, when it is added.
_MORE = bytes(64 * 1024)


@contextmanager
def reader(directory: Path, redis_url: str | None) -> Iterator[Callable[[bytes], None]]:
    with closing(FileConnector(directory / "files")) as connector:
        [place] = connector._places
        path = Path(place, "key")

        def read(data: bytes) -> None:
            source = Source(data)
            how = source.byte()
            path.write_bytes(source.rest() + _MORE * (how % 3))
            if how >= 128:
                os.truncate(path, source.short())
            try:
                found = connector.get("key")
            except CorruptObjectError:
                pass
            else:
                assert found is not None
                assert sum(len(bytes(frame)) for frame in found) <= path.stat().st_size
            assert connector.usage().objects == 1
            connector.evict(["key"])
            assert connector.get("key") is None

        yield read
