"""The timeline of a traced run, as it was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxyexec._tune_result import SpanKind, TuneSpan, TuneTimeline

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxyexec._trace import Trace, TraceMoved, TraceTask

__all__ = ["measured", "what_of"]

# Spans, at most.
_AT_MOST = 6000


def measured(trace: Trace) -> TuneTimeline:
    """Return the timeline of a run.

    How long objects took to move inline, nobody has measured: there are no such spans.
    """
    spans: list[TuneSpan] = []
    lanes: dict[str, str] = {}
    for number, task in enumerate(sorted(trace.tasks, key=_submitted)):
        spans += _of_client(number, task)
        if task.started is not None and task.run_s is not None:
            lane = lanes.setdefault(task.worker, f"worker {len(lanes) + 1}")
            spans += _of_worker(number, task, lane, task.started)
    spans = [one for one in spans if one.end > one.start]
    spans.sort(key=lambda one: (one.start, one.end))
    end = max((one.ended for one in trace.tasks), default=0.0)
    if trace.full is not None:
        end = max(end, trace.full)
    elif trace.end is not None:
        end = trace.end.t
    return TuneTimeline(
        end, tuple(spans[:_AT_MOST]), tuple(_live(trace)), max(0, len(spans) - _AT_MOST)
    )


def what_of(moved: TraceMoved) -> str:
    """Say what an object was to its task."""
    return moved.what if moved.name is None else f"{moved.what} {moved.name}"


def _submitted(task: TraceTask) -> float:
    return task.submitted


def _of_client(number: int, task: TraceTask) -> Iterator[TuneSpan]:
    """What the client did before it submitted a task; the last first."""
    at = task.submitted
    for one in reversed(task.moved):
        if one.what == "result":
            continue
        put: SpanKind = "find" if one.path == "found" else "put"
        steps: tuple[tuple[SpanKind, float], ...] = (
            (put, one.put_s),
            ("serialize", one.serialize_s),
        )
        for kind, seconds in steps:
            yield _span(kind, "client", at - seconds, at, number, task, one)
            at -= seconds


def _of_worker(number: int, task: TraceTask, lane: str, at: float) -> Iterator[TuneSpan]:
    """What a worker did with a task, fetching as a part of the function where that did so."""
    for kind, seconds in (("get", task.unpack_s), ("run", task.run_s or 0.0)):
        yield TuneSpan(kind, lane, at, at + seconds, number, task.function)  # type: ignore[arg-type]
        at += seconds
    for one in task.moved:
        if one.what != "result":
            continue
        steps: tuple[tuple[SpanKind, float], ...] = (
            ("serialize", one.serialize_s),
            ("put", one.put_s),
        )
        for kind, seconds in steps:
            yield _span(kind, lane, at, at + seconds, number, task, one)
            at += seconds


def _span(
    kind: SpanKind,
    lane: str,
    start: float,
    end: float,
    number: int,
    task: TraceTask,
    moved: TraceMoved,
) -> TuneSpan:
    about = number, task.function, what_of(moved), moved.type, moved.bytes
    return TuneSpan(kind, lane, start, end, *about)


def _live(trace: Trace) -> Iterator[tuple[float, int]]:
    """What was stored from each moment on; results once their tasks were known to have ended."""
    stored: dict[str, tuple[float, int]] = {}
    for task in trace.tasks:
        for one in task.moved:
            if one.path == "store":
                at = task.ended if one.what == "result" else task.submitted
                stored[one.key] = at, one.bytes
    changes = list(stored.values())
    for gone in trace.evicted:
        if gone.key in stored:
            since, size = stored[gone.key]
            changes.append((max(gone.t, since), -size))
    live = 0
    yield 0.0, 0
    for at, change in sorted(changes):
        live += change
        yield at, live
