"""Envelopes and descriptions of arrays: ``PickleSerializer.loads``, up to where it unpickles."""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np

from proxyexec import PickleSerializer, _serialize
from proxyexec.errors import DeserializationError
from tests.fuzz import Source

_SERIALIZER = PickleSerializer()

# Who puts a pickle in place of this one can have anything called. It is not the serializer that
# keeps him from it, so here nothing else is unpickled.
_VOUCHED = _SERIALIZER.dumps(["one", np.arange(1000.0)])
_STREAM = b"".join(bytes(frame) for frame in _VOUCHED[1:-1])


def _packed(frames) -> bytes:
    contents = [bytes(frame) for frame in frames]
    sizes = struct.pack(f"<{len(contents)}H", *map(len, contents))
    return bytes([len(contents)]) + sizes + b"".join(contents)


SEEDS = [
    _packed(_SERIALIZER.dumps(value))
    for value in (
        b"bytes",
        bytearray(b"array"),
        ["one", np.arange(1000.0)],
        np.arange(1000),
        np.asfortranarray(np.ones((40, 50), np.float32)),
        np.zeros((3000, 1), np.complex64),
    )
] + [
    _packed([b"n\1\0\0\0OC\1" + struct.pack("<q", 300), bytes(2400)]),
    _packed([b"n\1\0\0\0dC\1" + struct.pack("<3q", 1 << 61, 8, 1), bytes(2400)]),
    _packed([b"n\1\0\0\0dC\1" + struct.pack("<q", -1), bytes(2400)]),
]


def _loads(stream, *, buffers=()):
    if bytes(stream) != _STREAM:
        raise pickle.UnpicklingError("nobody vouches for this")
    return pickle.Unpickler(io.BytesIO(_STREAM), buffers=buffers).load()


class _Unpickler:
    def __init__(self, file, *, buffers=()):
        self._stream, self._buffers = file.read(), buffers

    def load(self):
        return _loads(self._stream, buffers=self._buffers)


def read(data: bytes) -> None:
    source = Source(data)
    sizes = [source.short() for _ in range(source.byte() % 8)]
    frames = [bytearray(source.take(size)) for size in sizes]
    try:
        value = _SERIALIZER.loads(frames)
    except DeserializationError:
        return
    if isinstance(value, np.ndarray):
        assert not value.dtype.hasobject
        value.tobytes()
    repr(value)


@contextmanager
def reader(directory: Path, redis_url: str | None) -> Iterator[Callable[[bytes], None]]:
    with (
        patch.object(_serialize, "pickle", SimpleNamespace(loads=_loads)),
        patch.object(_serialize, "Unpickler", _Unpickler),
    ):
        yield read
