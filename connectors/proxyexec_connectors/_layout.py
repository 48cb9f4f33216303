"""Several frames in one run of bytes, each aligned, and back without a copy.

The form of an object wherever frames have to lie in one buffer: a file, or a message. It is a
header, then the frames, each starting at a multiple of 64 bytes, so that vector instructions
and array libraries find their data as aligned as malloc would have given it:

======== ===== ====================================================
offset   bytes field (little endian)
======== ===== ====================================================
0        8     magic and version, ``b"pxframe1"``
8        8     number of frames, *n*
16       8·n   length of each frame in bytes
======== ===== ====================================================

There is no padding after the last frame, so the length of the whole follows from the header.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from proxyexec_connectors.protocol import Frames

__all__ = ["ALIGNMENT", "beginnings", "flatten", "joined", "pieces", "split"]

ALIGNMENT = 64

_MAGIC = b"pxframe1"
_START = struct.Struct("<8sQ")
_PADDING = bytes(ALIGNMENT)


def flatten(buffer: Buffer) -> memoryview:
    """View any C-contiguous buffer as bytes."""
    view = memoryview(buffer)
    if view.format == "B" and view.ndim == 1:
        return view
    if view.nbytes == 0:  # cast() refuses shapes with a zero
        return memoryview(b"")
    return view.cast("B")


def pieces(frames: Frames) -> tuple[list[memoryview | bytes], int]:
    """Return what has to be written one after the other, and its length in bytes."""
    views = [flatten(frame) for frame in frames]
    header = struct.pack(f"<8sQ{len(views)}Q", _MAGIC, len(views), *[view.nbytes for view in views])
    parts: list[memoryview | bytes] = [header]
    size = len(header)
    for view in views:
        gap = -size % ALIGNMENT
        if gap:
            parts.append(_PADDING[:gap])
        parts.append(view)
        size += gap + view.nbytes
    return parts, size


def joined(parts: Sequence[memoryview | bytes], small_bytes: int) -> list[memoryview | bytes]:
    """Join what is small with its neighbours, where each piece costs more than its bytes.

    Args:
        parts: one after the other.
        small_bytes: those of up to so many are rather copied once more than handled one by one.
    """
    result: list[memoryview | bytes] = []
    small: list[memoryview | bytes] = []
    for part in parts:
        if len(part) <= small_bytes:
            small.append(part)
            continue
        if small:
            result.append(b"".join(small))
            small.clear()
        result.append(part)
    if small:
        result.append(b"".join(small))
    return result


def split(buffer: Buffer) -> Sequence[memoryview]:
    """Return the frames in ``buffer``, as views of it.

    Raises:
        ValueError: the buffer is not what :func:`pieces` describes, or not all of it.
    """
    whole = flatten(buffer)
    try:
        magic, count = _START.unpack_from(whole)
        if magic != _MAGIC:
            raise ValueError(f"it starts with {bytes(magic)!r}")
        if count > whole.nbytes // 8:
            raise ValueError(f"a header of {count} frames in {whole.nbytes} bytes")
        lengths = struct.unpack_from(f"<{count}Q", whole, _START.size)
    except struct.error as short:
        raise ValueError(f"only {whole.nbytes} bytes, shorter than its header") from short
    frames = []
    offset = _START.size + 8 * count
    for length in lengths:
        offset += -offset % ALIGNMENT
        frames.append(whole[offset : offset + length])
        offset += length
    if offset != whole.nbytes:
        raise ValueError(f"{whole.nbytes} bytes where the header says {offset}")
    return frames


def beginnings(start: Buffer) -> tuple[list[int], list[bytes]]:
    """Return the lengths of frames, and how the first of them begin.

    Args:
        start: the first bytes of what :func:`pieces` describes, as many as somebody has read. Of
            lengths and frames, what lies beyond them is left out.

    Raises:
        ValueError: it is something else.
    """
    view = flatten(start)
    if view.nbytes < _START.size:
        raise ValueError(f"only {view.nbytes} bytes, shorter than its header")
    magic, count = _START.unpack_from(view)
    if magic != _MAGIC:
        raise ValueError(f"it starts with {bytes(magic)!r}")
    known = min(count, (view.nbytes - _START.size) // 8)
    lengths = list(struct.unpack_from(f"<{known}Q", view, _START.size))
    starts = []
    offset = _START.size + 8 * count
    for length in lengths:
        offset += -offset % ALIGNMENT
        if offset > view.nbytes:
            break
        starts.append(bytes(view[offset : offset + length]))
        offset += length
    return lengths, starts
