"""Readers of bytes that somebody else may have written, one a module, to be fed with anything.

Each module has a ``reader``: a context manager that gives a function of bytes, which reads them in
a way that depends on them. That returns, whatever the bytes are; it raises where something else
came of them than an object or a named error. ``SEEDS`` are bytes that lead far into the reader.

``tests/test_fuzz.py`` feeds them with what hypothesis makes up, ``python -m tests.fuzz.run`` with
what libFuzzer finds to reach new code.
"""

from __future__ import annotations

import struct

NAMES = (
    "addresses",
    "cached",
    "files",
    "frames",
    "payloads",
    "redis_values",
    "references",
    "replies",
    "segments",
    "serialized",
)
"""The modules."""

# Where lengths and counts overflow, are negative, or just do not fit.
_ODD_NUMBERS = (0, 1, 2, 255, 256, 1 << 20, (1 << 31) - 1, 1 << 32, 1 << 47, (1 << 63) - 1, 1 << 63)


class Source:
    """Takes decisions from bytes; where there are none left, zeros."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def take(self, length: int) -> bytes:
        """Return so many bytes."""
        start, self._position = self._position, self._position + length
        return self._data[start : self._position].ljust(length, b"\0")

    def byte(self) -> int:
        """Return a number below 256."""
        return self.take(1)[0]

    def short(self) -> int:
        """Return a number below 65536."""
        return int(struct.unpack("<H", self.take(2))[0])

    def number(self) -> int:
        """Return a number of up to 64 bits: any, or one that is odd, or near to that."""
        choice = self.byte()
        if choice >= 128:
            return int(struct.unpack("<Q", self.take(8))[0])
        return max(0, _ODD_NUMBERS[choice % len(_ODD_NUMBERS)] + self.byte() % 5 - 2)

    def text(self) -> str:
        """Return some text: any, lone surrogates included."""
        return self.take(self.byte()).decode("utf-8", "surrogateescape")

    def rest(self) -> bytes:
        """Return all bytes that are left."""
        return self._data[self._position :]
