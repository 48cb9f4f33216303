"""A quota: how much a store may hold, and who waits until there is room for more.

Counted is what the owner of a store has stored, and what workers have, as soon as it is known,
until it is evicted. Whoever stores an argument waits for room. Not everybody may: what makes room
comes from threads that run callbacks, and from tasks that end, and none of these can wait for
itself. They, and results, exceed the quota rather than hang.

Waiting is in line. One call at a time is in the middle of storing its arguments: two that had
stored a half each would wait for each other's.

Knows nothing of executors and tasks.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from proxyexec.errors import StoreFullError

__all__ = ["Quota", "Resumable", "ShutDownError"]


_log = logging.getLogger("proxyexec.store")


class ShutDownError(RuntimeError):
    """The executor was shut down while a call waited for room."""

    def __init__(self) -> None:
        super().__init__("cannot schedule new futures after shutdown")


class Resumable(Protocol):
    """What has more to store, and does not wait for room."""

    def go_on(self) -> None:
        """Store more, if there is room by now. Called by a thread that may not wait."""
        ...


class _Here(threading.local):
    """What a quota knows of the thread that asks."""

    # How many reasons there are for it not to wait.
    unbounded = 0
    # How much it has stored so far, in all.
    counted = 0
    # Whether it is in a turn; its place in the line, how much it has stored in this turn, when it
    # has waited for long enough, and whether it should wait at all.
    in_turn = False
    place: object = None
    stored = 0
    deadline: float | None = None
    waits: Callable[[], bool]


class Quota:
    """How much a store may hold.

    Args:
        limit: bytes at most.
        timeout: seconds that a call waits for room; for ever if ``None``.
        url: the store's place, for messages.
    """

    def __init__(self, limit: int, timeout: float | None, url: str) -> None:
        self.limit = limit
        self.timeout = timeout
        self._url = url
        self._sizes: dict[str, int] = {}
        self._taken = 0
        self._line: deque[object] = deque()
        self._resumable: weakref.WeakSet[Resumable] = weakref.WeakSet()
        self._closed = False
        # Guards all of these. Reentrant, as a finalizer that the garbage collector runs inside may
        # get to wake().
        self._changed = threading.Condition()
        self._here = _Here()

    def take(self, key: str, size: int, what: str) -> None:
        """Count an object that is about to be stored; wait until there is room for it.

        Args:
            key: the object's.
            size: its serialized size in bytes.
            what: what it is to the caller, for messages.

        Raises:
            StoreFullError: there was no room in time, or can be none.
            ShutDownError: the executor was shut down meanwhile.
        """
        here = self._here
        if here.unbounded:
            self.count(key, size)
            return
        if not self.has_room(size):
            _log.debug(
                "%s: %s waits for room for %d bytes: %d of %d are taken",
                self._url,
                what,
                size,
                self._taken,
                self.limit,
            )
        with self.turn():
            if here.stored + size > self.limit:  # its own objects stay for as long as it waits
                raise self._full(what, size)
            with self._changed:
                if here.place is None:
                    here.place = object()
                    self._line.append(here.place)
                while not self._closed and not self._is_next(here.place, size) and here.waits():
                    left = None if here.deadline is None else here.deadline - time.monotonic()
                    if left is not None and left <= 0:
                        raise self._full(what, size)
                    self._changed.wait(left)
                self.count(key, size)
            here.stored += size

    def count(self, key: str, size: int) -> None:
        """Count an object that is stored, or about to be, whether there is room or not."""
        with self._changed:
            if key not in self._sizes:
                self._sizes[key] = size
                self._taken += size
                self._here.counted += size

    def give_back(self, keys: Iterable[str]) -> None:
        """Count objects no more: they are evicted."""
        with self._changed:
            before = self._taken
            for key in keys:
                self._taken -= self._sizes.pop(key, 0)
            if self._taken == before:
                return
            self._changed.notify_all()
            resumable = list(self._resumable)
        with self.unbounded():
            for one in resumable:
                one.go_on()

    def has_room(self, size: int) -> bool:
        """Tell whether there is room for so many bytes, one at least."""
        return self._taken + max(size, 1) <= self.limit

    def counted_here(self) -> int:
        """Return how many bytes this thread has stored so far."""
        return self._here.counted

    def resume(self, one: Resumable) -> None:
        """Have something go on whenever there is more room, for as long as it exists."""
        with self._changed:
            self._resumable.add(one)

    def is_in_turn(self) -> bool:
        """Tell whether this thread is in a turn."""
        return self._here.in_turn

    @contextmanager
    def turn(self, waits: Callable[[], bool] = lambda: True) -> Iterator[None]:
        """Store several objects that are needed together; nobody else is in the middle of it.

        Args:
            waits: asked before each wait; ``False`` is to go ahead without room. May raise.
        """
        here = self._here
        if here.in_turn:
            yield
            return
        here.in_turn, here.waits = True, waits
        here.deadline = None if self.timeout is None else time.monotonic() + self.timeout
        try:
            yield
        finally:
            place, here.place = here.place, None
            here.in_turn, here.stored = False, 0
            del here.waits
            if place is not None:
                with self._changed:
                    with contextlib.suppress(ValueError):  # interrupted before it was there
                        self._line.remove(place)
                    self._changed.notify_all()

    @contextmanager
    def unbounded(self) -> Iterator[None]:
        """Have this thread wait for nothing: others wait for it."""
        here = self._here
        here.unbounded += 1
        try:
            yield
        finally:
            here.unbounded -= 1

    def freely(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that does the same, and waits for nothing."""
        return functools.partial(self._call, function)

    def wake(self) -> None:
        """Have all who wait ask anew whether they should."""
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """Let nobody wait any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        with self.unbounded():
            return function(*args)

    def _is_next(self, place: object, size: int) -> bool:
        return self._line[0] is place and self._taken + size <= self.limit

    def _full(self, what: str, size: int) -> StoreFullError:
        return StoreFullError(what, self._url, size, quota=self.limit, taken=self._taken)
