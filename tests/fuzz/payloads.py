"""Headers of payloads, and JSON: ``Payload.from_frames``, ``Payload.from_json`` and ``decode``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from proxyexec.errors import DeserializationError, ForeignPayloadError, NoStrategyError
from proxyexec.serializers import Payload, decode, encode
from tests.fuzz import Source

_WRITTEN = [encode(value, "json") for value in ({"a": [1, 2.5, None, "\U0001f600"]}, [[]], -1)]


def _packed(header: bytes, body: bytes) -> bytes:
    return bytes([0, len(header)]) + header + body


SEEDS = [
    *(_packed(*map(bytes, one.to_frames())) for one in _WRITTEN),
    *(b"\1" + json.dumps(one.to_json()).encode() for one in _WRITTEN),
    b"\1" + json.dumps(encode({1}, "pickle").to_json()).encode(),
    _packed(b"Pxpayload json 1 3.99", b"NaN"),
    _packed(b"Pxpayload json 1 3.9", b'[1e999, "\\ud800"]'),
    _packed(b"Pxpayload source 1 3.11", b"def f(): pass"),
]


def _payload_in(source: Source) -> Payload:
    if source.byte() % 2:
        try:
            value = json.loads(source.rest())
        except (ValueError, RecursionError):
            value = None
        return Payload.from_json(value)
    return Payload.from_frames([source.take(source.byte()), source.rest()])


def read(data: bytes) -> None:
    try:
        payload = _payload_in(Source(data))
        value = decode(payload, allowed=["json"])
    except ForeignPayloadError:
        return
    except DeserializationError:
        assert payload.strategy == "json"
        return
    assert payload.strategy == "json"
    assert Payload.from_frames(payload.to_frames()) == payload
    try:
        encode(value, "json")
    except NoStrategyError:  # 1e999, or an escaped half of a character: others may write them
        return
    assert decode(Payload.from_json(payload.to_json())) == value


@contextmanager
def reader(directory: Path, redis_url: str | None) -> Iterator[Callable[[bytes], None]]:
    yield read
