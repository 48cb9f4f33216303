"""Memory to receive into: private, writable, and filled with nothing before that."""

from __future__ import annotations

import contextlib
import mmap

__all__ = ["allocate"]

# Smaller ones are quicker to have from the allocator, which has used the memory before.
_MAPPED_FROM = 1 << 20

_HUGE: int | None = getattr(mmap, "MADV_HUGEPAGE", None)


def allocate(size: int) -> memoryview:
    """Return ``size`` bytes of memory; they are given back when nobody refers to them."""
    if size >= _MAPPED_FROM:
        # No further mapping to be had: take it from the allocator.
        with contextlib.suppress(OSError):
            memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            if _HUGE is not None:
                # Each small page is a fault while receiving, and takes twice the time in all.
                with contextlib.suppress(OSError):
                    memory.madvise(_HUGE)
            return memoryview(memory)
    return memoryview(bytearray(size))
