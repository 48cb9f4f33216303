"""What ``proxyexec top`` shows of a trace: that of a run, which may be going on.

An object is known to be stored when its task has ended: what is live is right but for the tasks
that are under way.
"""

from __future__ import annotations

import heapq
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from proxyexec._cli_parts import ago
from proxyexec._sizes import format_size
from proxyexec._top_view import Rates, Screen, ScreenTable
from proxyexec._trace import TraceReader
from proxyexec.errors import TraceError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from proxyexec._trace import Trace, TraceMoved, TraceTask

__all__ = ["TraceSource", "duration_text"]

# How many tasks, objects and functions are shown.
_SHOWN = 30

# Points of time that are remembered, at most, and drawn.
_POINTS = 2000
_DRAWN = 48


@dataclass
class _Sums:
    """What has been read of a trace so far, or of the calls of one function."""

    tasks: int = 0
    failed: int = 0
    run_s: float = 0.0
    wait_s: float = 0.0
    inline_bytes: int = 0
    put_objects: int = 0
    put_bytes: int = 0
    evicted_objects: int = 0
    evicted_bytes: int = 0

    def add(self, task: TraceTask) -> None:
        self.tasks += 1
        self.failed += task.state != "done"
        self.run_s += task.run_s or 0.0
        self.wait_s += task.wait_s
        for moved in task.moved:
            if moved.path == "inline":
                self.inline_bytes += moved.bytes
            elif moved.path == "store":
                self.put_objects += 1
                self.put_bytes += moved.bytes


@dataclass
class _Points:
    """Live bytes over time: a value for each of at most so many moments, as even as may be."""

    times: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    step: float = 0.0

    def add(self, at: float, value: float) -> None:
        if self.times and at < self.times[-1] + self.step:
            self.values[-1] = value
            return
        self.times.append(at)
        self.values.append(value)
        if len(self.times) > _POINTS:
            self.step = max(2 * self.step, 2 * (self.times[-1] - self.times[0]) / _POINTS)
            del self.times[1:-1:2], self.values[1:-1:2]

    def drawn(self, until: float) -> list[float]:
        """Return the values at equal intervals from the beginning on."""
        if not self.times:
            return []
        found, place = [], 0
        for number in range(_DRAWN):
            at = until * (number + 1) / _DRAWN
            while place < len(self.times) and self.times[place] <= at:
                place += 1
            found.append(self.values[place - 1] if place else 0.0)
        return found


class TraceSource:
    """A source of screens; see :class:`proxyexec._top_view.Source`.

    Args:
        path: of the trace.

    Raises:
        TraceError: it cannot be read.
    """

    def __init__(self, path: str) -> None:
        try:
            self._reader = TraceReader(path)
        except OSError as error:
            raise TraceError(path, error.strerror or str(error)) from error
        self._title = f"proxyexec top - {os.path.basename(path)}"
        self._trace: Trace | None = None
        self._begin()

    def _begin(self) -> None:
        self._read = [0, 0]
        self._sums = _Sums()
        self._functions: dict[str, _Sums] = {}
        self._slowest: list[TraceTask] = []
        self._largest: list[tuple[TraceMoved, str]] = []
        self._live: dict[str, int] = {}
        self._live_bytes = 0
        self._points = _Points()
        # The sums at the last look, and when that was.
        self._before: tuple[_Sums, float] | None = None

    def screen(self) -> Screen:
        """See :class:`proxyexec._top_view.Source`.

        Raises:
            TraceError: it is no trace, one of a newer version, or damaged.
        """
        trace = self._reader.read()
        if trace is None:
            return Screen(self._title, [], notes=["nothing has been written there yet"])
        if trace is not self._trace:  # another run has been written over it
            self._trace = trace
            self._begin()
        self._follow(trace)
        now = time.time() - trace.header.started if trace.end is None else trace.end.t
        rates = self._rates(trace)
        sums = self._sums
        facts = [
            ("tasks", f"{sums.tasks:,}{f' ({sums.failed:,} not done)' if sums.failed else ''}"),
            ("inline", format_size(sums.inline_bytes)),
            ("stored", format_size(sums.put_bytes)),
            ("live", f"{format_size(self._live_bytes)} in {len(self._live):,}"),
        ]
        return Screen(
            f"{self._title} - {trace.header.executor}, {trace.header.store}",
            facts,
            rates,
            self._points.drawn(now),
            (self._by_function(), self._slow_tasks(), self._large_objects()),
            list(_notes(trace)),
        )

    def close(self) -> None:
        """See :class:`proxyexec._top_view.Source`."""
        self._reader.close()

    def _follow(self, trace: Trace) -> None:
        """Add what has been read since the last time."""
        tasks, evicted = trace.tasks[self._read[0] :], trace.evicted[self._read[1] :]
        self._read = [len(trace.tasks), len(trace.evicted)]
        changes: list[tuple[float, str, int]] = []
        for task in tasks:
            self._sums.add(task)
            self._functions.setdefault(task.function, _Sums()).add(task)
            for moved in task.moved:
                if moved.path == "store":
                    at = task.ended if moved.what == "result" else task.submitted
                    changes.append((at, moved.key, moved.bytes))
        for one in evicted:
            self._sums.evicted_objects += 1
            self._sums.evicted_bytes += one.bytes
            changes.append((one.t, one.key, -1))
        for at, key, size in sorted(changes):
            self._change(at, key, size)
        self._slowest = heapq.nlargest(_SHOWN, [*self._slowest, *tasks], key=_run_of)
        self._largest = heapq.nlargest(
            _SHOWN, [*self._largest, *_stored(tasks)], key=lambda one: one[0].bytes
        )

    def _change(self, at: float, key: str, size: int) -> None:
        self._live_bytes -= self._live.pop(key, 0)
        if size >= 0:
            self._live[key] = size
            self._live_bytes += size
        self._points.add(at, self._live_bytes)

    def _rates(self, trace: Trace) -> Rates | None:
        """What was moved since the last look, or of a run that is over, in all of it."""
        sums = self._sums
        if trace.end is not None:
            before, seconds = _Sums(), max(trace.end.t, 1e-9)
        else:
            now = time.monotonic()
            before, seconds = (
                (self._before[0], max(now - self._before[1], 1e-9))
                if self._before is not None
                else (_Sums(), 0.0)
            )
            self._before = _Sums(**vars(sums)), now
        if not seconds:
            return None
        return Rates(
            (sums.put_objects - before.put_objects) / seconds,
            (sums.put_bytes - before.put_bytes) / seconds,
            (sums.evicted_objects - before.evicted_objects) / seconds,
            (sums.evicted_bytes - before.evicted_bytes) / seconds,
        )

    def _by_function(self) -> ScreenTable:
        by_time = sorted(self._functions.items(), key=lambda one: (-one[1].run_s, one[0]))
        rows = [
            (
                name,
                f"{one.tasks:,}",
                f"{one.failed:,}",
                duration_text(one.run_s),
                duration_text(one.wait_s),
                format_size(one.inline_bytes),
                format_size(one.put_bytes),
            )
            for name, one in by_time[:_SHOWN]
        ]
        numbers = ("TASKS", "NOT DONE", "RUN", "WAIT", "INLINE", "STORED")
        return ScreenTable("Functions", ("FUNCTION", *numbers), rows, numbers)

    def _slow_tasks(self) -> ScreenTable:
        rows = [
            (
                task.function,
                "" if task.run_s is None else duration_text(task.run_s),
                duration_text(task.wait_s),
                format_size(sum(moved.bytes for moved in task.moved)),
                task.state,
                task.worker,
            )
            for task in self._slowest
        ]
        numbers = ("RUN", "WAIT", "MOVED")
        return ScreenTable(
            "Slowest tasks", ("FUNCTION", *numbers, "STATE", "WORKER"), rows, numbers
        )

    def _large_objects(self) -> ScreenTable:
        rows = [
            (
                moved.key,
                format_size(moved.bytes),
                moved.type,
                _what(moved, function),
                "live" if moved.key in self._live else "evicted",
            )
            for moved, function in self._largest
        ]
        head = ("KEY", "SIZE", "TYPE", "STORED AS", "STATE")
        return ScreenTable("Largest objects", head, rows, ("SIZE",))


def _stored(tasks: Iterable[TraceTask]) -> Iterator[tuple[TraceMoved, str]]:
    for task in tasks:
        for moved in task.moved:
            if moved.path == "store":
                yield moved, task.function


def _run_of(task: TraceTask) -> float:
    return task.run_s or 0.0


def _what(moved: TraceMoved, function: str) -> str:
    if moved.what == "argument":
        name = "an argument" if moved.name is None else f"argument {moved.name!r}"
        return f"{name} of {function}"
    return f"{moved.what} of {function}" if moved.what == "result" else f"in {function}"


def _notes(trace: Trace) -> Iterator[str]:
    if trace.full is not None:
        yield f"the trace was full after {duration_text(trace.full)}: what came later is not in it"
    if trace.end is not None:
        left_out = f", {trace.end.left_out:,} events left out" if trace.end.left_out else ""
        yield f"it ended after {duration_text(trace.end.t)}{left_out}; rates are of all that time"


def duration_text(seconds: float) -> str:
    """Return a span of time as people write it."""
    if seconds >= 60:
        return ago(seconds)
    if seconds >= 1:
        return f"{seconds:.3g} s"
    return f"{seconds * 1000:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} µs"
