"""The tasks of one executor that are in flight, and what happens after the last one.

Knows nothing of base executors.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from proxyexec._measures import Measures
from proxyexec._quota import ShutDownError
from proxyexec._serialize import frames_size

if TYPE_CHECKING:
    from proxyexec_connectors.protocol import Frames

    from proxyexec._proxy import Kept
    from proxyexec._store import Store

__all__ = ["Counted", "Pending", "Tasks"]


class Counted(Protocol):
    """What is counted as a task in flight."""

    late: ClassVar[bool]
    """Whether it may be counted in after the executor was shut down."""


class Pending(Protocol):
    """What still has to give tasks to the base executor."""

    @property
    def tasks(self) -> Tasks:
        """Those of the executor."""
        ...

    @property
    def process(self) -> int:
        """The id of the process that gives them."""
        ...

    def cancel(self) -> object:
        """Give it none any more; what they would have come to is cancelled."""
        ...

    def go_on(self) -> None:
        """Give it more, if that is what it waits for, now that :attr:`Tasks.hurried` says so."""
        ...


# Storing a part by itself costs a system call or twenty: beside so many bytes, that is little.
_SMALL_PART = 4_000_000


class Tasks:
    """The tasks of one executor that are in flight, and what happens after the last one.

    Args:
        store: where their objects are.
        close_store: whether to close it after the last task.
        ownership: whether results are evicted when nobody holds them any more.
        dedupe: whether what is stored already is not stored again.
        gathers: whether small parts of arguments may be stored with these, unless they have been
            sent before.
        cancels_before_start: whether the base executor cancels only what has not started.
    """

    takes_parts = True
    shares = False

    def __init__(
        self,
        store: Store,
        *,
        close_store: bool,
        ownership: bool,
        dedupe: bool,
        gathers: bool,
        cancels_before_start: bool,
    ) -> None:
        self.store = store
        self.measures = Measures(store.live)
        self.ownership = ownership
        self.dedupe = dedupe
        self.gathers = gathers
        self.cancels_before_start = cancels_before_start
        self.hurried = False
        """Whether tasks are to be given to the base executor though there is no room."""
        # Reentrant, as the executor's finalizer may run inside.
        self.lock = threading.RLock()
        # Results of tasks whose pool broke: other workers may have been writing when their
        # futures failed, so these keys are evicted once more when all workers are gone.
        self.doubtful: list[Callable[[], list[str]]] = []
        self.close_store = close_store
        store.enter()
        # Adding and discarding are atomic; a lock here would cost every task two rounds of it.
        self._in_flight: set[Counted] = set()
        # Of these, those that the base executor does not know of yet.
        self._waiting: set[Pending] = set()
        self._when_launched: list[Callable[[], object]] = []
        self._ended = False
        self._finished = False

    def add(self, call: Counted) -> None:
        """Count a call in.

        Raises:
            RuntimeError: the executor is shut down.
        """
        if self._ended and not call.late:
            raise RuntimeError("cannot schedule new futures after shutdown")
        self._in_flight.add(call)

    @property
    def ended(self) -> bool:
        """Whether the executor is shut down."""
        return self._ended

    def discard(self, call: Counted) -> None:
        """Count a call out."""
        self._in_flight.discard(call)
        if self._ended:
            self._finish_after_last()

    def no_more(self) -> None:
        """Take no more calls; close the store (if it is to be) after the last one."""
        if not self.store.is_owner:  # in a forked child, where the lock may be held for ever
            return
        self._ended = True
        self._finish_after_last()

    def waits(self, call: Counted) -> bool:
        """Tell whether a call is to wait for room.

        Raises:
            ShutDownError: it is not to be at all.
        """
        if self._ended and not call.late:
            raise ShutDownError
        return not (self._ended or (call.late and self.hurried))

    def hurry(self) -> None:
        """Have nobody wait for room any more: there may be nobody left who makes some."""
        self.hurried = True
        if self.store.quota is not None:
            self.store.quota.wake()
        with self.lock:
            calls = list(self._waiting)
        for waiting in calls:
            waiting.go_on()

    def wait(self, waiting: Pending) -> None:
        """Count in a call that waits for the results of others, or a map that is under way."""
        with self.lock:
            self._waiting.add(waiting)

    def launch(self, waiting: Pending) -> None:
        """Count out a call that waits no more: the base executor knows it, or never will."""
        with self.lock:
            self._waiting.discard(waiting)
            if self._waiting:
                return
            actions, self._when_launched = self._when_launched, []
        for action in actions:
            action()

    def cancel_waiting(self) -> None:
        """Cancel the calls that wait for the results of others."""
        with self.lock:
            calls = list(self._waiting)
        for waiting in calls:
            waiting.cancel()

    def when_launched(self, action: Callable[[], object]) -> bool:
        """Call ``action`` when no call waits for the results of others any more.

        Returns:
            Whether any does now. If not, there is nothing to wait for, and it is not called.
        """
        with self.lock:
            if self._waiting:
                self._when_launched.append(action)
            return bool(self._waiting)

    @property
    def every(self) -> bool:
        """Whether somebody wants to know everything of what is sent."""
        return self.measures.every

    def in_flight(self) -> int:
        """Count the tasks that have not ended."""
        return sum(hasattr(one, "open") for one in list(self._in_flight))  # a map has no outcome

    def keep(self, obj: Any, frames: Frames, embedded: Sequence[Kept]) -> Kept:
        """Store an object; see :class:`proxyexec._context.Keeper`."""
        return self.store.hold(obj, frames, embedded, dedupe=self.dedupe)

    def keep_part(self, obj: Any, frames: Frames, embedded: Sequence[Kept]) -> Kept | None:
        """Store a part of an object; see :class:`proxyexec._context.Keeper`."""
        if (
            self.gathers
            and frames_size(frames) < _SMALL_PART
            and not self.store.is_repeated(frames)
        ):
            return None  # a hundred of them by themselves cost several times what they do together
        return self.keep(obj, frames, embedded)

    def _finish_after_last(self) -> None:
        with self.lock:
            if self._in_flight or self._finished:
                return
            self._finished = True
        for keys in self.doubtful:
            self.store.evict_soon(keys())
        self.store.leave(close=self.close_store and self.ownership)
