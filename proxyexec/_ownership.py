"""Leases: who keeps an object alive, and who evicts it when.

A *lease* is one hold on an object, in the process that owns its store; tasks in flight, futures
and proxies have one each. When the last lease on a key is released, the key is evicted. The
evicting is done by a thread of its own, so that a slow backend delays nobody, and in batches.

Releases only append to a queue. They come from ``__del__`` too, hence from wherever the garbage
collector happens to run: inside any of our critical sections, for instance. Appending takes no
lock; the counting is left to the evicting thread. An object may so outlive its last lease for a
moment, never the other way round.

Leases know nothing of executors, and belong to one process: a forked child has none.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import NamedTuple, TypeAlias

__all__ = ["Lease", "Leases", "Note"]

_log = logging.getLogger("proxyexec.store")

# Whenever nothing was released for so long, the connector may give back what it keeps for the next
# objects.
_IDLE_SECONDS = 5.0

# What could not be evicted is tried again after so long.
_RETRY_SECONDS = 5.0


class Note(NamedTuple):
    """What an object was to whom who stored it; for people who ask what is stored, and why."""

    what: str
    """``"argument"``, ``"function"``, ``"result"`` or ``"proxy"``."""
    name: int | str | None
    """Of an argument: its place, or its keyword."""
    called: str
    """The name of the function that was called, if any."""
    type_name: str
    """The object's type, as in its reference."""


class Lease:
    """One hold on the object under ``key``; released when it is dropped, at the latest."""

    __slots__ = ("_home", "_leases", "key")

    def __init__(self, leases: Leases, key: str, home: object) -> None:
        self._leases: Leases | None = leases
        self._home = home  # whoever holds an object keeps its store alive
        self.key = key

    def release(self) -> None:
        """Let go. The object is evicted if this was the last lease on it."""
        leases, self._leases = self._leases, None
        if leases is not None:
            leases.post(self.key)

    def forget(self) -> None:
        """Let go without evicting, even if this was the last lease on the object."""
        leases, self._leases = self._leases, None
        if leases is not None:
            # Not counted at once, but in its turn: leases released before are in the queue.
            leases.post(_Forget(self.key))

    def note(self, note: tuple[str, int | str | None, str, str]) -> None:
        """Note what the object is, as a :class:`Note` has it, unless somebody has."""
        leases = self._leases
        # While this one is counted; so the note will be removed.
        if leases is not None and self.key not in leases.notes:
            leases.notes[self.key] = note

    __del__ = release


@dataclass(frozen=True)
class _Forget:
    """The key of a lease that was let go of without evicting."""

    key: str


@dataclass(frozen=True)
class _CloseWhenNone:
    """What to call once no lease is left."""

    close: Callable[[], None]


@dataclass(frozen=True)
class _EvictTwice:
    """Keys to evict now and once more later, whoever holds them."""

    keys: tuple[str, ...]


# To the evicting thread: the key of a lease that was released, or of one that was forgotten,
# keys to evict whoever holds them, what to call once no lease is left, an event to set when all
# this is done, or None to end.
_Message: TypeAlias = (
    "str | _Forget | tuple[str, ...] | _EvictTwice | _CloseWhenNone | threading.Event | None"
)


class Leases:
    """The leases on the objects of one store, in the process that owns it.

    Args:
        name: the store's name, for the log.
        evict: removes the objects under some keys; slow, and may raise.
        home: the store; kept alive by leases, not by this object.
        release_idle: gives back what the connector keeps for the next objects, given for how
            many seconds nothing has been released, and tells whether some is kept still.
    """

    def __init__(
        self,
        name: str,
        evict: Callable[[Sequence[str]], None],
        home: object,
        release_idle: Callable[[float], bool] | None = None,
    ) -> None:
        self.failures = 0
        """Evictions that failed so far."""
        self._name = name
        self._home = weakref.ref(home)
        self._evict = evict
        self._release_idle = release_idle
        self._counts: Counter[str] = Counter()
        self._companions: dict[str, Sequence[Lease]] = {}
        self.notes: dict[str, tuple[str, int | str | None, str, str]] = {}
        """What the objects are that somebody holds, by key, as :class:`Note` has it; not all."""
        self._spared: set[str] = set()
        # To be evicted once more, at that time, unless it is held; the evicting thread's own.
        self._left: set[str] = set()
        self._retry_at = 0.0
        # Guards counts, companions, spared ones and thread. Held for dictionary operations only.
        # Reentrant, as a finalizer that the garbage collector runs inside may get to start() below.
        self._lock = threading.RLock()
        self._messages: SimpleQueue[_Message] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._ending: threading.Thread | None = None
        self._when_none: Callable[[], None] | None = None
        self._stopped = False

    def take(self, key: str, companions: Sequence[Lease] = ()) -> Lease:
        """Hold the object under ``key``.

        Args:
            key: the object's key.
            companions: leases on objects that this one refers to; kept for as long.
        """
        with self._lock:
            self._counts[key] += 1
            if companions:
                self._companions[key] = companions
        return Lease(self, key, self._home())

    def spare(self, key: str) -> None:
        """Do not evict the object under ``key`` when the leases that are on it now are gone."""
        with self._lock:
            if key in self._counts:
                self._spared.add(key)

    def join(self, key: str) -> Lease | None:
        """Hold the object under ``key`` if somebody does already."""
        with self._lock:
            if key not in self._counts:
                return None
            self._counts[key] += 1
        return Lease(self, key, self._home())

    def take_again(self, key: str) -> Lease:
        """Hold the object under ``key``, which nobody may hold any more; it may be gone then.

        Not evicted from then on. If nobody held it, this waits for what is being evicted.
        """
        lease = self.join(key)
        if lease is None:
            lease = self.take(key)
            if self._thread is not None:
                self.flush()
        return lease

    def held(self) -> tuple[dict[str, int], dict[str, Sequence[Lease]]]:
        """Return how many leases there are on each object, and what each holds on to others."""
        with self._lock:
            return dict(self._counts), dict(self._companions)

    def reached(self, keys: Iterable[str]) -> set[str]:
        """Return the keys of objects, and of all that these refer to."""
        found: set[str] = set()
        left = list(keys)
        with self._lock:
            while left:
                key = left.pop()
                if key not in found:
                    found.add(key)
                    left += [one.key for one in self._companions.get(key, ())]
        return found

    def part_from_companions(self, keys: Iterable[str]) -> None:
        """Let go of what the objects under ``keys`` refer to: they are evicted by hand."""
        with self._lock:
            parted = [self._companions.pop(key) for key in keys if key in self._companions]
        del parted  # released here, outside the lock

    def evict(self, keys: Iterable[str], *, twice: bool = False) -> None:
        """Evict soon what nobody holds a lease on (or will: the key of a failed result).

        Args:
            keys: of the objects.
            twice: do so again later: they may yet arrive. What was sent to a server that was
                silent is read by it when it goes on, perhaps after what was sent later by
                another connection.
        """
        self.start()
        self.post(_EvictTwice(tuple(keys)) if twice else tuple(keys))

    def close_when_none(self, close: Callable[[], None]) -> None:
        """Call ``close`` once no lease is left, and what was asked for by now is evicted."""
        with self._lock:
            idle = self._thread is None and not self._counts
        if idle:  # nothing was ever evicted
            close()
            return
        self.start()
        self.post(_CloseWhenNone(close))

    def start(self) -> None:
        """Start evicting what is released.

        Not done before it is necessary: an executor of forked workers should fork them first.
        """
        if self._thread is not None or self._stopped:
            return
        thread = threading.Thread(
            target=self._work, name=f"proxyexec-evict-{self._name}", daemon=True
        )
        with self._lock:
            if self._thread is None and not self._stopped:
                try:
                    thread.start()
                except RuntimeError:  # the program is ending, and the store is closed with it
                    return
                self._thread = thread

    def flush(self) -> None:
        """Wait until what has been released by now is evicted."""
        done = threading.Event()
        self.start()
        with self._lock:
            if self._thread is None or self._thread is threading.current_thread():
                return
            # Under the lock, so that it is in the queue before the message that ends the thread.
            self.post(done)
        done.wait()

    def stop(self) -> None:
        """End the evicting thread once it has done what was asked of it so far."""
        with self._lock:
            thread, self._thread = self._thread, None
            self._stopped = True
            self._counts.clear()
            self.notes.clear()
            companions, self._companions = self._companions, {}
            if thread is not None:
                self._ending = thread
                self.post(None)
        del companions  # released here, outside the lock
        # It may be that thread which closes the store, and not have done so: whoever closes it at
        # the end of the program waits for that.
        if self._ending is not None and self._ending is not threading.current_thread():
            self._ending.join()

    def post(self, message: _Message) -> None:
        """Tell the evicting thread something. Takes no lock: finalizers may call it."""
        self._messages.put(message)

    def abandon(self) -> None:
        """Forget everything and evict nothing, in a forked child: the parent still holds it."""
        self._lock = threading.RLock()  # another thread of the parent may have held the old one
        self._thread = self._ending = None
        self._stopped = True
        self._counts.clear()

    def _work(self) -> None:
        while True:
            keys, again, events, stop = self._count(self._batch())
            if self._left:
                with self._lock:
                    self._left.difference_update(self._counts)  # these are owned again
            # Who ends wants no waiting for a server that is silent: the store is closed now.
            if not stop and (events or time.monotonic() >= self._retry_at):
                keys += self._left.difference(keys)
            if keys:
                self._try_to_evict(keys)
            if again:
                self._leave(again)
            for event in events:
                event.set()
            if stop:
                return
            with self._lock:
                close = self._when_none if not self._counts else None
            if close is not None:
                close()

    def _batch(self) -> list[_Message]:
        messages = [self._next()]
        try:
            while messages[-1] is not None:
                messages.append(self._messages.get_nowait())
        except Empty:
            pass
        return messages

    def _next(self) -> _Message:
        if self._left:
            try:
                return self._messages.get(timeout=max(0.0, self._retry_at - time.monotonic()))
            except Empty:
                return ()
        start, some_is_kept = time.monotonic(), self._release_idle is not None
        while some_is_kept:
            try:
                return self._messages.get(timeout=_IDLE_SECONDS)
            except Empty:
                some_is_kept = self._try_to_release_idle(time.monotonic() - start)
        return self._messages.get()

    def _try_to_release_idle(self, seconds: float) -> bool:
        try:
            return self._release_idle is not None and self._release_idle(seconds)
        except Exception as error:  # noqa: BLE001 - evicting goes on
            _log.warning("store %r: giving back what is idle failed: %s", self._name, error)
            return False

    def _count(
        self, messages: list[_Message]
    ) -> tuple[list[str], list[str], list[threading.Event], bool]:
        """Return which keys to evict now, and which again, who waits, and whether to stop."""
        keys: list[str] = []
        again: list[str] = []
        events: list[threading.Event] = []
        orphaned: list[Lease] = []
        with self._lock:
            for message in messages:
                if isinstance(message, str):
                    if self._is_last(message):
                        if not self._is_spared(message):
                            keys.append(message)
                        orphaned.extend(self._companions.pop(message, ()))
                elif isinstance(message, _Forget):
                    self._is_last(message.key)
                elif isinstance(message, tuple):
                    keys.extend(message)
                elif isinstance(message, _EvictTwice):
                    keys.extend(message.keys)
                    again.extend(message.keys)
                elif isinstance(message, _CloseWhenNone):
                    self._when_none = message.close
            events.extend(one for one in messages if isinstance(one, threading.Event))
        stop = messages[-1] is None
        more = bool(orphaned)
        orphaned.clear()  # released here, outside the lock
        while more and events and not stop:
            self.post(events.pop())  # who waits for what has been released waits for that as well
        return keys, again, events, stop

    def _is_last(self, key: str) -> bool:
        """Count one lease less; tell whether it was the last."""
        if self._counts[key] > 1:
            self._counts[key] -= 1
            return False
        self.notes.pop(key, None)
        return self._counts.pop(key, 0) > 0

    def _is_spared(self, key: str) -> bool:
        spared = key in self._spared
        self._spared.discard(key)
        return spared

    def _try_to_evict(self, keys: Sequence[str]) -> None:
        try:
            self._evict(keys)
        except Exception as error:  # noqa: BLE001 - one failed eviction stops no other
            self._leave(keys)
            self.failures += 1
            if self.failures == 1:
                _log.warning(
                    "store %r: evicting failed and is tried again later; "
                    "further failures are only counted: %s",
                    self._name,
                    error,
                )
            else:
                _log.debug("store %r: evicting failed again: %s", self._name, error)
        else:
            self._left.difference_update(keys)
            _log.debug("store %r: evicted %d objects", self._name, len(keys))

    def _leave(self, keys: Sequence[str]) -> None:
        self._left.update(keys)
        self._retry_at = time.monotonic() + _RETRY_SECONDS
