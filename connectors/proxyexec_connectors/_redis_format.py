"""An object as a Redis string or hash, and how frames become one.

The object is one run of bytes, as :mod:`proxyexec_connectors._layout` describes it. A short run is
a string. A long one is a hash of pieces, cut where it suits the transfer and not where frames
end. The field ``h``, the *head*, says how:

======== ===== ====================================================
offset   bytes (little endian)
======== ===== ====================================================
0        8     magic and version, ``b"pxhash 1"``
8        16    a token that no other object has, nor this one when it is stored again
24       8     length of the run in bytes
32       8     length of the piece in field ``0``
40       8     length of the other pieces, in fields ``1``, ``2``, …; the last may be shorter
======== ===== ====================================================

A reader asks for a string; if it is none, for head and first piece; then for the other pieces, each
together with the head, whose token tells it if it is looking at another object by now. The
first piece is small, as it travels in vain to a reader who has a copy of the object.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pickle import PickleBuffer
from typing import TYPE_CHECKING, NamedTuple

from proxyexec_connectors import _layout

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from proxyexec_connectors.protocol import Frames

__all__ = ["HEAD", "Head", "Piece", "cut", "run_of"]

HEAD = b"h"

_MAGIC = b"pxhash 1"
_FORM = struct.Struct("<8s16sQQQ")


class Head(NamedTuple):
    """What the field ``h`` says."""

    token: bytes
    size: int
    first: int
    piece: int

    @classmethod
    def read(cls, raw: bytes) -> Head | None:
        """Understand the field's value; ``None`` if it makes no sense."""
        if len(raw) != _FORM.size or not raw.startswith(_MAGIC):
            return None
        head = cls(*_FORM.unpack(raw)[1:])
        makes_sense = head.piece > 0 and 0 < head.first <= head.size
        return head if makes_sense else None

    def written(self) -> bytes:
        """The field's value."""
        return _FORM.pack(_MAGIC, *self)

    @property
    def pieces(self) -> int:
        """The number of pieces."""
        return 1 - (self.first - self.size) // self.piece

    def place(self, number: int) -> tuple[int, int]:
        """Where in the run a piece starts, and where it ends."""
        start = 0 if number == 0 else self.first + (number - 1) * self.piece
        end = self.first if number == 0 else min(start + self.piece, self.size)
        return start, end


class Piece(NamedTuple):
    """A part of the run: buffers that follow each other."""

    buffers: list[bytes | memoryview]
    nbytes: int


def run_of(frames: Frames) -> tuple[list[memoryview | bytes], int]:
    """The run as buffers that follow each other, and its length; nothing is copied."""
    return _layout.pieces([_raw(frame) for frame in frames])


def _raw(frame: Buffer) -> memoryview:
    view = memoryview(frame)
    if view.format == "B" and view.ndim == 1 and view.contiguous:
        # A view of the object, and not one of a view of it: up to Python 3.11.8, the collector
        # crashes when it finds both of the latter in a cycle, as of an error and its traceback.
        return view
    # Unlike memoryview.cast, raw() takes empty buffers and Fortran order.
    return PickleBuffer(frame).raw()


def cut(run: list[memoryview | bytes], head: Head) -> Iterator[Piece]:
    """Cut a run into the pieces that its head names."""
    wanted = head.first
    buffers: list[bytes | memoryview] = []
    have = 0
    for part in run:
        rest = memoryview(part)
        while rest:
            taken = rest[: wanted - have]
            rest = rest[len(taken) :]
            buffers.append(taken)
            have += len(taken)
            if have == wanted:
                yield Piece(buffers, have)
                wanted, buffers, have = head.piece, [], 0
    if buffers:
        yield Piece(buffers, have)
