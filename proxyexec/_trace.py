"""Traces of runs: what is in their lines, and how they are read.

A trace is a file of JSON lines; "The lines of a trace" in the documentation has the schema, field
by field. The first line is the header, each other one an event. A field may be added in any
version; one that changes its meaning, or goes, makes a new :data:`VERSION`.

Knows nothing of executors and stores: traces of other machines are read here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from proxyexec.errors import TraceError

__all__ = [
    "VERSION",
    "Trace",
    "TraceEnd",
    "TraceEvicted",
    "TraceHeader",
    "TraceMoved",
    "TraceReader",
    "TraceResolved",
    "TraceTask",
    "read_trace",
]

VERSION = 1

L = TypeVar("L")


@dataclass(frozen=True)
class TraceHeader:
    """What was traced. Times of events are seconds after ``started``, on the client's clock."""

    proxyexec_trace: int
    """The version of the schema."""
    version: str
    """Of proxyexec."""
    python: str
    started: float
    """When the trace began, in seconds since the epoch."""
    host: str
    pid: int
    """Of the client."""
    executor: str
    """The type of the base executor."""
    workers: int | None
    """How many tasks it runs at a time, if it says so."""
    crosses: bool
    """Whether tasks leave the client's process."""
    store: str
    """The store's URL, without its password."""
    scheme: str
    """Of that URL."""
    policy: str
    lazy: bool
    nested: bool
    dedupe: bool
    max_bytes: int
    """Of the trace."""
    cores: int | None = None
    """That the client's process may use; ``None`` in traces of before that was noted."""


@dataclass(frozen=True)
class TraceMoved:
    """An object that was sent to a task (``argument``, ``function``), or by one (``result``)."""

    what: str
    name: int | str | None
    """Of an argument, its place or keyword."""
    type: str
    bytes: int
    """Its serialized size; an estimate, if it is not ``exact``."""
    exact: bool
    path: str
    """``inline``, ``store``, ``found`` (the same was stored), ``reference`` (it was stored)."""
    decided_by: str
    serialize_s: float
    put_s: float
    key: str
    """Under which it is stored; of a result that is sent to another task inline, that of the task
    it came from. Empty otherwise."""
    content: str
    """The same for objects of the same content; empty if nobody knows."""
    part: bool
    """Whether it is a part of the object before it, stored by itself."""
    carries: tuple[tuple[str, int, str], ...] = ()
    """Of a ``function``, the larger objects that it carries and that went with it: of each, its
    type, about how many of the bytes it is, and its ``content``."""

    def __post_init__(self) -> None:
        if self.carries != ():
            carries = tuple((str(kind), int(size), str(like)) for kind, size, like in self.carries)
            if any(size < 0 for _, size, _ in carries):
                raise ValueError("an object cannot have a negative size")
            object.__setattr__(self, "carries", carries)


@dataclass(frozen=True)
class TraceResolved:
    """A stored object that was fetched; by the client, if it is an event of its own."""

    type: str
    bytes: int
    get_s: float
    load_s: float
    key: str
    t: float | None = None
    """When that was known; ``None`` in a task."""


@dataclass(frozen=True)
class TraceTask:
    """A task that has ended."""

    t: float
    """When that was known: ``ended``."""
    task: str
    """The key of its result."""
    function: str
    calls: int
    """How many, in a chunk of a map."""
    state: str
    """``done``, ``failed`` or ``cancelled``."""
    error: str
    """The type of what it raised."""
    submitted: float
    """When the base executor was given it."""
    started: float | None
    """When the worker began, by the worker's clock; ``None`` if it did not say."""
    ended: float
    worker: str
    """Host and process id; empty if it did not say."""
    wait_s: float
    unpack_s: float
    run_s: float | None
    """``None`` if it did not say."""
    pack_s: float
    moved: tuple[TraceMoved, ...] = ()
    resolved: tuple[TraceResolved, ...] = ()


@dataclass(frozen=True)
class TraceEvicted:
    """A stored object that was removed."""

    t: float
    key: str
    bytes: int
    stored_s: float
    """For how long it was stored."""
    resolved: bool
    """Whether anybody had fetched it, as far as is known."""


@dataclass(frozen=True)
class TraceEnd:
    """The end of a trace."""

    t: float
    left_out: int
    """Events after the trace was full."""
    stats: Mapping[str, Any] | None
    """The executor's, at that time."""


@dataclass(frozen=True)
class Trace:
    """What is in a trace, in the order of its lines."""

    header: TraceHeader
    tasks: list[TraceTask] = field(default_factory=list)
    resolved: list[TraceResolved] = field(default_factory=list)
    """What the client has fetched."""
    evicted: list[TraceEvicted] = field(default_factory=list)
    full: float | None = None
    """When the trace was full, if it was. What came later is not in it."""
    end: TraceEnd | None = None
    """``None`` while it is written, or if its writer died."""


def read_trace(path: str | os.PathLike[str]) -> Trace:
    """Read a trace, also one that is being written.

    A last line that is not complete is left out, and so are events of unknown kinds.

    Raises:
        TraceError: it is no trace, one of a newer version, or damaged.
        OSError: it cannot be read.
    """
    with TraceReader(path) as reader:
        trace = reader.read()
    if trace is None:
        raise TraceError(os.fspath(path), "it is empty")
    return trace


class TraceReader:
    """Reads a trace while it grows.

    Args:
        path: of the trace.

    Raises:
        OSError: it cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._file = open(path, "rb")  # noqa: SIM115 - closed by close()
        self._trace: Trace | None = None
        self._begin()

    def __enter__(self) -> TraceReader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def read(self) -> Trace | None:
        """Read what has been added; return all that has been read, ``None`` without a header.

        It is the same object each time, with more in its lists, unless another trace has been
        written over it.

        Raises:
            TraceError: it is no trace, one of a newer version, or damaged.
        """
        if self._is_another():
            self._file.seek(0)
            self._begin()
        for facts in self._lines():
            if self._trace is None:
                self._trace = Trace(self._header(facts))
            else:
                self._add(self._trace, facts)
        return self._trace

    def _begin(self) -> None:
        self._rest = b""
        self._number = 0
        self._first = b""
        self._trace = None

    def _is_another(self) -> bool:
        """Tell whether the file was written over: a program may be run again."""
        descriptor, length = self._file.fileno(), len(self._first)
        return self._file.seekable() and (
            os.fstat(descriptor).st_size < self._file.tell()
            or os.pread(descriptor, length, 0) != self._first
        )

    def _lines(self) -> Iterator[dict[str, Any]]:
        while True:
            # A piece at a time: traces are large.
            piece = self._file.read(_PIECE_BYTES)
            if not piece:
                return
            *lines, self._rest = (self._rest + piece).split(b"\n")
            for line in lines:
                self._number += 1
                self._first = self._first or line
                try:
                    facts = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise self._damaged(f"it is not JSON: {error}") from error
                if not isinstance(facts, dict):
                    raise self._damaged("it is not an object")
                yield facts

    def _header(self, facts: dict[str, Any]) -> TraceHeader:
        version = facts.get("proxyexec_trace")
        if not isinstance(version, int):
            raise TraceError(self.path, "its first line is not the header of a trace")
        if version > VERSION:
            raise TraceError(
                self.path,
                f"it is of version {version}, which proxyexec {facts.get('version')} has written; "
                f"this one reads up to {VERSION}",
            )
        return self._made(TraceHeader, facts)

    def _add(self, trace: Trace, facts: dict[str, Any]) -> None:
        event = facts.pop("event", None)
        if event == "task":
            moved = self._all(TraceMoved, facts.pop("moved", ()))
            fetched = self._all(TraceResolved, facts.pop("resolved", ()))
            trace.tasks.append(
                self._made(TraceTask, {**facts, "moved": moved, "resolved": fetched})
            )
        elif event == "resolved":
            trace.resolved.append(self._made(TraceResolved, facts))
        elif event == "evicted":
            trace.evicted.append(self._made(TraceEvicted, facts))
        elif event == "full":
            object.__setattr__(trace, "full", facts.get("t"))
        elif event == "end":
            object.__setattr__(trace, "end", self._made(TraceEnd, facts))

    def _all(self, kind: type[L], facts: Any) -> tuple[L, ...]:
        if not isinstance(facts, (list, tuple)):
            raise self._damaged("it has no list of what was moved or fetched")
        return tuple(self._made(kind, one) for one in facts)

    def _made(self, kind: type[L], facts: Mapping[str, Any]) -> L:
        names = {one.name for one in fields(kind)}  # type: ignore[arg-type]
        try:
            return kind(**{name: value for name, value in facts.items() if name in names})
        except (TypeError, AttributeError, ValueError, OverflowError) as error:
            raise self._damaged(str(error)) from error

    def _damaged(self, reason: str) -> TraceError:
        return TraceError(self.path, f"line {self._number} is damaged: {reason}")


_PIECE_BYTES = 1 << 20
