"""The fresh interpreter of :func:`proxyexec.serializers.check`: loads parts, sends them back.

It answers about each before it looks at the next, in a file: what is loaded may print, or end
the process.
"""

from __future__ import annotations

import os
import pickle
from typing import Any

from proxyexec._checking import Part
from proxyexec._payloads import Payload, decode, encode
from proxyexec._strategies import receive
from proxyexec.errors import DeserializationError, MissingExtraError, NoStrategyError

__all__ = ["main"]


def main(directory: str) -> None:
    """Read the parts that are in a directory, and write the answers into it."""
    with open(os.path.join(directory, "there"), "rb") as file:
        strategies, parts = pickle.load(file)
    receive(pickle.loads(strategies))
    with open(os.path.join(directory, "back"), "wb") as file:
        for facts in parts:
            pickle.dump(_answer(Part(*facts)), file)
            file.flush()


def _answer(part: Part) -> tuple[str, Any]:
    """Return what is wrong and the reason, or nothing and the frames of what has arrived."""
    try:
        payload = Payload.from_frames(part.frames)
        arrived = decode(payload, allowed=part.allowed)
    except DeserializationError as error:
        return "loads", error.reason
    except MissingExtraError as error:
        return "loads", str(error)
    try:
        frames = encode(arrived, part.strategies, code=part.code).to_frames()
    except NoStrategyError as error:
        return "dumps", (error.kind, error.reasons)
    return "", [bytes(frame) for frame in frames]
