"""Files of large objects in shared memory, and what is kept of them: ``_segments``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from proxyexec_connectors._layout import pieces
from proxyexec_connectors._segment import HEADER_BYTES, header
from proxyexec_connectors._segments import SEGMENT_FROM
from proxyexec_connectors.errors import CorruptObjectError
from proxyexec_connectors.file import FileConnector
from tests.fuzz import Source

_OBJECT = b"".join(pieces([b"o" * SEGMENT_FROM, b"k"])[0])
_WHOLE = header("key", len(_OBJECT)) + _OBJECT

SEEDS = [
    b"",  # as it is
    bytes([0, 0, 0, 255]) + _WHOLE[:32],
    bytes([1, 0, 0, 16]) + (len(_OBJECT) + 1).to_bytes(8, "little"),
    bytes([2, 0, 1, 8]) + b"pxframe2",
    bytes([4, 0, 0, 0, 1, 4]),
    bytes([12, 0, 0, 0, 200, 0]),
    bytes([15, 0, 0, 0, 255, 255, 9]),
]


@contextmanager
def reader(directory: Path, redis_url: str | None) -> Iterator[Callable[[bytes], None]]:
    with closing(FileConnector(directory / "segments")) as connector:
        [place] = connector._places
        assert connector._segments[0].works, "this takes a directory in memory"
        path, free = Path(place, "key"), Path(place, "~free")

        def read(data: bytes) -> None:
            source = Source(data)
            how = source.byte()
            path.write_bytes(_WHOLE)
            if how & 1:  # so that a mapping is kept, and the file changes under it
                found = connector.get("key")
                assert found is not None
                assert found[1] == b"k"
                del found
            with path.open("r+b", buffering=0) as file:
                offset, length = source.short() % (2 * HEADER_BYTES), source.byte()
                os.pwrite(file.fileno(), source.take(length)[:length], offset)
                if how & 4:
                    file.truncate(source.short() * 8)
            try:
                found = connector.get("key")
            except CorruptObjectError:
                pass
            else:
                assert found is not None
                assert all(len(bytes(frame)) == len(frame) for frame in found)
            found = None
            connector.usage()
            connector.evict(["key"])
            if how & 8:
                (free / source.text().replace("/", "").replace("\0", "").strip(".")[:50]).with_name(
                    f"{source.short():x}-{source.byte():x}"
                ).write_bytes(source.rest())
                for kept in free.iterdir():
                    if kept.stat().st_size > SEGMENT_FROM // 2:
                        os.truncate(kept, source.short() * 8)
            # Whatever lies about, what is stored now comes back.
            for _ in range(2):
                connector.put("good", [b"g" * SEGMENT_FROM])
                found = connector.get("good")
                assert found is not None
                assert bytes(found[0]) == b"g" * SEGMENT_FROM
                found = None
                connector.evict(["good"])
            if how & 8:
                for kept in free.iterdir():
                    kept.unlink()

        yield read
