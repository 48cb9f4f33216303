"""What was measured of the tasks of one executor, and who is told of it.

Counting goes on always, and costs next to nothing. Events are made of what was measured only where
somebody observes.
"""

from __future__ import annotations

import logging
import os
import threading
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from proxyexec._events import Event, Evicted, Moved, Ran, Resolved, Sent
from proxyexec._sizes import about_size

if TYPE_CHECKING:
    from proxyexec._live import Live
    from proxyexec._record import Report

__all__ = ["Counts", "Event", "Evicted", "Measures", "Moved", "Observer", "Ran", "Resolved"]

_log = logging.getLogger("proxyexec.executor")


@dataclass(slots=True)
class Counts:
    """Sums; those of one executor. Seconds end in ``_s``."""

    tasks_done: int = 0
    tasks_failed: int = 0
    tasks_cancelled: int = 0
    calls: int = 0
    objects_inline: int = 0
    bytes_inline: int = 0
    objects_stored: int = 0
    bytes_stored: int = 0
    objects_found: int = 0
    bytes_found: int = 0
    objects_reference: int = 0
    bytes_reference: int = 0
    objects_resolved: int = 0
    bytes_resolved: int = 0
    serialize_s: float = 0.0
    put_s: float = 0.0
    get_s: float = 0.0
    load_s: float = 0.0
    run_s: float = 0.0
    unpack_s: float = 0.0
    turnaround_s: float = 0.0
    worker_s: float = 0.0

    def send(self, sent: Sent) -> None:
        """Count an object that was sent, and its parts."""
        self.serialize_s += sent.serialize_s
        self.put_s += sent.put_s
        path = sent.path
        if path == "store":
            self.objects_stored += 1
            self.bytes_stored += sent.bytes
        elif path == "found":
            self.objects_found += 1
            self.bytes_found += sent.bytes
        elif path == "reference":
            self.objects_reference += 1
            self.bytes_reference += sent.bytes
        elif sent.exact:  # or it stayed where it is: it was passed on to a thread
            self.objects_inline += 1
            self.bytes_inline += sent.bytes
        for part in sent.parts:
            self.send(part)

    def resolve(self, number: int, size: int, get_s: float, load_s: float) -> None:
        """Count objects that were fetched."""
        self.objects_resolved += number
        self.bytes_resolved += size
        self.get_s += get_s
        self.load_s += load_s


Observer: TypeAlias = Callable[[Event], object]


class Measures:
    """What was measured of the tasks of one executor, and who is told of it.

    Args:
        live: what its store holds.
    """

    def __init__(self, live: Live | None) -> None:
        self.counts = Counts()
        self.small: deque[float] = deque()
        """Seconds of small tasks that are done, each one call with nothing to tell, since the base
        executor was given it. Appending takes no lock, and those who do so settle when there are
        many."""
        self._live = live
        self.every = False
        """Whether somebody wants to know of all objects, those that pass at a glance included."""
        # Guards the counts, and who observes. Held for additions only. Reentrant, as a finalizer
        # that the garbage collector runs inside may end a call.
        self.lock = threading.RLock()
        self._observers: tuple[tuple[Observer, bool], ...] = ()
        self.observed = False
        """Whether anybody wants to be told."""
        self._failed: set[int] = set()
        _all.add(self)

    def observe(self, callback: Observer, *, every: bool = False) -> Callable[[], None]:
        """Have a callback told of what is measured, from now on.

        It is called with each event by whichever thread has it, outside of locks, and has to be
        quick. What it raises is logged once, and reaches nobody.

        Args:
            callback: called with each event.
            every: whether it wants to know of everything. If not, it is told of objects that took
                a look, and of tasks that had such; that costs small tasks nothing.

        Returns:
            What ends that.
        """
        entry = (callback, every)
        with self.lock:
            self._observers = (*self._observers, entry)
            self.observed = True
            self.every = self.every or every
        if self._live is not None:
            self._live.listen(self.tell)

        def stop() -> None:
            with self.lock:
                self._observers = tuple(one for one in self._observers if one is not entry)
                self.every = any(every for _, every in self._observers)
                self.observed = observed = bool(self._observers)
            if self._live is not None and not observed:
                self._live.ignore(self.tell)

        return stop

    def tell(self, event: Event) -> None:
        """Tell all who observe."""
        for callback, _ in self._observers:
            try:
                callback(event)
            except Exception:  # noqa: BLE001 - it is no affair of the call's
                if id(callback) not in self._failed:
                    self._failed.add(id(callback))
                    # In words: a traceback would keep the frames of whoever had this to tell.
                    _log.error(
                        "an observer failed; further failures of it are not logged:\n%s",
                        traceback.format_exc(),
                    )

    def settle(self) -> None:
        """Count the small tasks that have ended by now."""
        small = self.small
        with self.lock:
            seconds = [small.popleft() for _ in range(len(small))]
            self.counts.tasks_done += len(seconds)
            self.counts.calls += len(seconds)
            self.counts.turnaround_s += sum(seconds)

    def settled(self) -> Counts:
        """Return all counts, as they are now."""
        with self.lock:
            self.settle()
            return replace(self.counts)

    def see(self, objects: Iterable[Any]) -> None:
        """Count objects that travel as they are, about which nobody asks more."""
        sizes = [size for size in map(about_size, objects) if size]
        with self.lock:
            self.counts.objects_inline += len(sizes)
            self.counts.bytes_inline += sum(sizes)

    def send(self, sent: Sent) -> None:
        """Count an object that was sent."""
        with self.lock:
            self.counts.send(sent)

    def end(
        self, seconds: float | None, calls: int, error: BaseException | None, report: Report | None
    ) -> None:
        """Count a task that has ended.

        Args:
            seconds: since the base executor was given it; ``None`` if it never was.
            calls: how many it was.
            error: what it came to, if not to a result.
            report: what the worker said.
        """
        counts = self.counts
        busy = 0.0
        if report is not None:
            busy = report.run_s + report.unpack_s + report.left_s + report.pack_s
        with self.lock:
            if error is None:
                counts.tasks_done += 1
                counts.calls += calls
                if seconds is not None:
                    counts.turnaround_s += seconds
            elif isinstance(error, CancelledError):
                counts.tasks_cancelled += 1
            else:
                counts.tasks_failed += 1
            if report is not None:
                counts.run_s += report.run_s + report.left_s
                counts.unpack_s += report.unpack_s
                counts.worker_s += busy
                for sent in report.sent:
                    counts.send(sent)
                counts.objects_inline += report.small
                counts.bytes_inline += report.small_bytes
                for _, _, size, get_s, load_s in report.resolved:
                    counts.resolve(1, size, get_s, load_s)
                if report.more is not None:
                    counts.resolve(*report.more)


SMALL_AT_MOST = 1000
"""So many of them are counted together."""

_all: weakref.WeakSet[Measures] = weakref.WeakSet()


def _after_fork() -> None:
    for measures in list(_all):
        measures.lock = threading.RLock()  # another thread of the parent may have held the old one


os.register_at_fork(after_in_child=_after_fork)
