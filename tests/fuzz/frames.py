"""Frames in one run of bytes: ``_layout.split``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from proxyexec_connectors._layout import pieces, split


def _run(*frames: bytes) -> bytes:
    return b"".join(pieces(frames)[0])


SEEDS = [_run(), _run(b""), _run(b"x" * 100, b"", b"y"), _run(*[bytes([n]) for n in range(40)])]


def read(data: bytes) -> None:
    try:
        frames = split(data)
    except ValueError:
        return
    again, size = pieces(frames)
    # Padding may differ, and nothing else.
    assert size == len(data)
    assert split(b"".join(again)) == frames


@contextmanager
def reader(directory: Path, redis_url: str | None) -> Iterator[Callable[[bytes], None]]:
    yield read
