"""What a store holds, in the process that owns it, and what has become of the rest.

Sizes by key, no more: no object is kept alive by being counted.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

from proxyexec._events import Evicted, Resolved
from proxyexec._measures import Counts

if TYPE_CHECKING:
    from proxyexec._events import Event
    from proxyexec._proxy import Reference

    Listener: TypeAlias = Callable[[Event], object]

__all__ = ["Live"]


class Live:
    """The objects of one store that its owner knows of."""

    def __init__(self) -> None:
        self.bytes = 0
        """What is stored now."""
        self.peak_bytes = 0
        self.evicted = 0
        self.evicted_bytes = 0
        self.unread = 0
        """Objects that are gone, and that nobody has fetched as far as is known."""
        self.unread_bytes = 0
        self.read = Counts()
        """What this process has fetched, outside of tasks."""
        # By key, of what is stored: its size, since when, and whether somebody has fetched it.
        self._objects: dict[str, tuple[int, float, bool]] = {}
        # How many are measuring; and keys of what is stored for that, which is no affair of who
        # asks what the program stores.
        self._measuring = 0
        self._left_out: set[str] = set()
        # Guards all of these, for as long as that takes. Reentrant, as a finalizer that the
        # garbage collector runs inside may get here.
        self._lock = threading.RLock()
        self._listeners: tuple[Listener, ...] = ()

    def __len__(self) -> int:
        return len(self._objects)

    def listen(self, listener: Listener) -> None:
        """Have somebody told of what is evicted, and of what is fetched outside of tasks."""
        with self._lock:
            if listener not in self._listeners:
                self._listeners = (*self._listeners, listener)

    def ignore(self, listener: Listener) -> None:
        """Have him told no more."""
        with self._lock:
            self._listeners = tuple(one for one in self._listeners if one != listener)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Count what is stored meanwhile among what there is, and nowhere else."""
        with self._lock:
            self._measuring += 1
        try:
            yield
        finally:
            with self._lock:
                self._measuring -= 1

    def add(self, key: str, size: int) -> None:
        """Count an object that is stored, unless it is counted already."""
        with self._lock:
            if key not in self._objects:
                self._objects[key] = size, time.perf_counter(), False
                self.bytes += size
                if self._measuring:
                    self._left_out.add(key)
                else:
                    self.peak_bytes = max(self.peak_bytes, self.bytes)

    def touch(self, keys: Iterable[str]) -> None:
        """Note that objects have been fetched, or may have been."""
        with self._lock:
            for key in keys:
                found = self._objects.get(key)
                if found is not None and not found[2]:
                    self._objects[key] = found[0], found[1], True

    def fetched(self, reference: Reference, get_s: float, load_s: float) -> None:
        """Count an object that this process has fetched, outside of a task."""
        with self._lock:
            if reference.key in self._left_out:
                return
            self.read.resolve(1, reference.size, get_s, load_s)
        self.touch((reference.key,))
        if self._listeners:
            kind = reference.type_name.replace(":", ".").removeprefix("builtins.")
            self._tell(Resolved(kind, reference.size, get_s, load_s, "client", reference.key))

    def remove(self, keys: Iterable[str]) -> None:
        """Count objects that have been evicted."""
        events: list[Evicted] = []
        now = time.perf_counter()
        with self._lock:
            for key in keys:
                found = self._objects.pop(key, None)
                if found is None:
                    continue
                size, since, read = found
                self.bytes -= size
                if key in self._left_out:
                    self._left_out.remove(key)
                    continue
                self.evicted += 1
                self.evicted_bytes += size
                self._count_unread(size, read)
                if self._listeners:
                    events.append(Evicted(key, size, now - since, read))
        for event in events:
            self._tell(event)

    def clear(self) -> None:
        """Count out all that there is: the store has been closed."""
        with self._lock:
            for key, (size, _, read) in self._objects.items():
                if key not in self._left_out:
                    self._count_unread(size, read)
            self._objects.clear()
            self._left_out.clear()
            self.bytes = 0

    def _count_unread(self, size: int, read: bool) -> None:
        if not read:
            self.unread += 1
            self.unread_bytes += size

    def _tell(self, event: Event) -> None:
        for listener in self._listeners:
            listener(event)
