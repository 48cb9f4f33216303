"""Frames that were fetched recently, bounded in bytes.

What is kept are frames, never objects: each get makes a new object, so that no task sees what
another did to its argument. Views are handed out read-only for the same reason.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from proxyexec_connectors.protocol import Frames

__all__ = ["FrameCache"]


class FrameCache:
    """The most recently used frames, ``capacity`` bytes of them at most."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        # By key: the digest that the frames have, if any, and they.
        self._entries: OrderedDict[str, tuple[bytes, list[memoryview]]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: str, digest: bytes) -> Frames | None:
        """Return the frames under ``key``, read-only, if they are here and have this digest."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None or entry[0] != digest:
                return None
            self._entries.move_to_end(key)
            return entry[1]

    def put(self, key: str, digest: bytes, frames: Frames) -> Frames:
        """Keep ``frames`` if they fit; return them read-only.

        Args:
            key: of the object.
            digest: that the frames have, as is known to the caller.
            frames: of the object.
        """
        views = [memoryview(frame).toreadonly() for frame in frames]
        size = _size(views)
        if size <= self.capacity:
            with self._lock:
                if key not in self._entries:
                    self._entries[key] = digest, views
                    self._bytes += size
                while self._bytes > self.capacity:
                    _, (_, dropped) = self._entries.popitem(last=False)
                    self._bytes -= _size(dropped)
        return views

    def evict(self, keys: Iterable[str]) -> None:
        """Drop what is kept under ``keys``."""
        with self._lock:
            for key in keys:
                dropped = self._entries.pop(key, None)
                if dropped is not None:
                    self._bytes -= _size(dropped[1])

    def renew_lock(self) -> None:
        """Replace the lock in a forked child, where nobody may be left to release it."""
        self._lock = threading.Lock()


def _size(views: list[memoryview]) -> int:
    return sum(view.nbytes for view in views)
