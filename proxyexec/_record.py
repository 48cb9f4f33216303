"""What a worker measures of the task that it runs, and how it says so: with the outcome.

A call that was small, and ran for next to no time, says nothing, and leaves its time to the next
one of its thread: the message would cost more than the call.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from proxyexec._events import Resolved, Sent

if TYPE_CHECKING:
    from proxyexec._proxy import Reference

__all__ = ["Measured", "Record", "Report", "bare", "here"]


class _Mine:
    """What one thread measures."""

    __slots__ = ("left", "record")

    def __init__(self) -> None:
        self.record: Record | None = None
        """Of the task that it runs."""
        self.left: dict[str, _Left] = {}
        """What no outcome has told of, by the address of the store."""


class _Left:
    """What small calls of one thread have taken, and returned, that no outcome has told of."""

    __slots__ = ("bytes", "objects", "seconds")

    def __init__(self) -> None:
        self.seconds = 0.0
        self.objects = self.bytes = 0


class _Here(threading.local):
    """What this thread measures: one look finds it, which tiny tasks can tell from two."""

    def __init__(self) -> None:
        self.mine = _Mine()


here = _Here()


class Record:
    """What a worker measures of one task."""

    # Here, and not set anew for each: most tasks are small, and have no more than a run time.
    every: bool = False
    """Whether somebody wants to know it all."""
    run_s: float = 0.0
    unpack_s: float = 0.0
    sent: list[Sent] | None = None
    resolved: list[tuple[str, str, int, float, float]] | None = None
    # Of those that are not in that list: how many, bytes, seconds to get, and to load.
    more: tuple[int, int, float, float] | None = None
    started: float = 0.0
    small: int = 0
    """Results that are sent as they are, numbers not counted."""
    small_bytes: int = 0

    def begin(self) -> None:
        """Measure everything."""
        self.every = True
        self.started = time.time()

    def resolve(self, reference: Reference, get_s: float, load_s: float) -> None:
        """Note an object that was fetched."""
        if self.resolved is None:
            self.resolved = []
        if len(self.resolved) < _RESOLVED_AT_MOST:
            kind = reference.type_name.replace(":", ".").removeprefix("builtins.")
            self.resolved.append((reference.key, kind, reference.size, get_s, load_s))
        else:
            number, size, get, load = self.more or (0, 0, 0.0, 0.0)
            self.more = number + 1, size + reference.size, get + get_s, load + load_s

    def send(self, sent: Sent) -> None:
        """Note a result."""
        if self.sent is None:
            self.sent = []
        self.sent.append(sent)

    def see(self, size: int) -> None:
        """Note a result that is sent as it is, of about this size in bytes."""
        self.small += 1
        self.small_bytes += size

    def outcome(self, travels: Any, address: str, lefts: dict[str, _Left]) -> Any:
        """Return what is sent to the client: what travels, with what was measured if it is much.

        Args:
            travels: the outcome.
            address: that of the executor's store.
            lefts: the thread's.
        """
        left = lefts.get(address)
        if left is None:
            left = lefts[address] = _Left()
        if self.small:
            left.objects += self.small
            left.bytes += self.small_bytes
        if self.sent is None and self.resolved is None and not self.every:
            seconds = left.seconds + self.run_s + self.unpack_s
            if seconds < _LEFT_AT_MOST and left.bytes < _LEFT_BYTES_AT_MOST:
                left.seconds = seconds
                return travels
        del lefts[address]
        return Measured(travels, self._report(left))

    def _report(self, left: _Left) -> Report:
        return Report(
            self.run_s,
            self.unpack_s,
            left.seconds,
            left.objects,
            left.bytes,
            tuple(self.sent or ()),
            tuple(self.resolved or ()),
            self.more,
            self.started,
            _worker_name() if self.every else "",
        )


class Report(NamedTuple):
    """What a worker says of a task, with its outcome."""

    run_s: float
    unpack_s: float
    left_s: float
    """How long small calls took that had no report."""
    small: int
    """Results that were sent as they are, by this one and those."""
    small_bytes: int
    sent: tuple[Sent, ...]
    resolved: tuple[tuple[str, str, int, float, float], ...]
    more: tuple[int, int, float, float] | None
    started: float
    worker: str

    @property
    def pack_s(self) -> float:
        """What it took to serialize and store the results."""
        return sum(map(_seconds_of, self.sent))

    def events(self, task: str) -> tuple[Resolved, ...]:
        """What the task has resolved."""
        return tuple(
            Resolved(kind, size, get_s, load_s, "worker", key, task)
            for key, kind, size, get_s, load_s in self.resolved
        )


class Measured:
    """An outcome with what was measured; the client takes it apart."""

    __slots__ = ("outcome", "report")

    def __init__(self, outcome: Any, report: Report) -> None:
        self.outcome = outcome
        self.report = report

    def __reduce__(self) -> tuple[Any, ...]:
        # As plain tuples: names of classes would take more room than all the rest.
        *times, sent, resolved, more, started, worker = self.report
        plain = tuple(map(_plain, sent))
        return _measured, (self.outcome, (*times, plain, resolved, more, started, worker))


def bare(outcome: Any) -> Any:
    """Return an outcome without what was measured."""
    return outcome.outcome if type(outcome) is Measured else outcome


def _worker_name() -> str:
    """Say which process this is, among those of all hosts."""
    return f"{socket.gethostname()}:{os.getpid()}"


def _seconds_of(sent: Sent) -> float:
    return sent.serialize_s + sent.put_s + sum(map(_seconds_of, sent.parts))


def _plain(sent: Sent) -> tuple[Any, ...]:
    *facts, parts = sent
    return (*facts, tuple(map(_plain, parts)))


def _sent(facts: Sequence[Any]) -> Sent:
    return Sent._make((*facts[:-1], tuple(map(_sent, facts[-1]))))


def _measured(outcome: Any, facts: tuple[Any, ...]) -> Measured:
    *times, sent, resolved, more, started, worker = facts
    report = Report._make((*times, tuple(map(_sent, sent)), resolved, more, started, worker))
    return Measured(outcome, report)


# Small calls are told of once they have taken so long: it is what telling costs, and some fifty
# times as much.
_LEFT_AT_MOST = 0.0002

# And once they have returned so many bytes.
_LEFT_BYTES_AT_MOST = 65_536

# A task tells of no more objects that it has fetched, one by one.
_RESOLVED_AT_MOST = 256
