"""Writes a trace: one line an event, complete when it is written; see :mod:`proxyexec._trace`."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import socket
import threading
import time
import weakref
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import proxyexec
from proxyexec._cores import usable_cores
from proxyexec._events import Event, Evicted, Moved, Ran, Resolved
from proxyexec._stats import stats_of
from proxyexec._trace import VERSION

if TYPE_CHECKING:
    from proxyexec._tasks import Tasks

__all__ = ["TraceWriter"]

_log = logging.getLogger("proxyexec")


class TraceWriter:
    """A trace that is being written, until it is closed, or its executor is gone.

    Use it as a context manager, or call :meth:`close`. Made by
    :meth:`proxyexec.StoreExecutor.trace`.
    """

    def __init__(
        self, tasks: Tasks, path: str | os.PathLike[str], max_bytes: int, facts: dict[str, Any]
    ) -> None:
        if max_bytes < _SMALLEST:
            raise ValueError(f"a trace takes {_SMALLEST} bytes at least, not {max_bytes}")
        self.path = os.fspath(path)
        self._tasks = weakref.ref(tasks)
        wall, start = time.time(), time.perf_counter()
        header = {
            "proxyexec_trace": VERSION,
            "version": proxyexec.__version__,
            "python": platform.python_version(),
            "started": wall,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            **facts,
            "max_bytes": max_bytes,
            "cores": usable_cores(),
        }
        file = self._file = _File(self.path, max_bytes, start, header)
        # Which does not refer to this object: it is dropped with its executor, at the latest.
        self._stop = tasks.measures.observe(_Lines(file, wall, start).write, every=True)
        self._finalizer = weakref.finalize(tasks, file.end, None)

    def __repr__(self) -> str:
        return f"<trace {self.path}>"

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Write the last line. Closing twice is fine."""
        tasks = self._tasks()
        self._stop()
        if self._finalizer.detach() is not None:
            self._file.end(None if tasks is None else asdict(stats_of(tasks)))


class _File:
    """Lines in a file, as many as there may be.

    Args:
        path: its path; what is there is written over.
        max_bytes: how large it may become.
        start: what times are counted from.
        header: the first line.
    """

    def __init__(self, path: str, max_bytes: int, start: float, header: dict[str, Any]) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        self._descriptor = os.open(path, flags, 0o666)
        self._path = path
        self._process = os.getpid()
        self._start = start
        # How many bytes there may be beside the last two lines.
        self._left = max_bytes - _RESERVED
        self._left_out = 0
        self._writing = 0
        self._open = True
        self._failed = False
        # Guards all of these; not held while something is written. Reentrant, as the garbage
        # collector may end a call inside.
        self._changed = threading.Condition(threading.RLock())
        self.add(header)

    def add(self, facts: dict[str, Any]) -> None:
        """Write a line, if there is room."""
        line = _line(facts)
        if os.getpid() != self._process:
            return  # a forked child, whose calls are no part of this
        with self._changed:
            if not self._open:
                return
            is_full = self._left_out == 0 and len(line) > self._left
            self._left_out += self._left_out > 0 or is_full
            if is_full:
                line = _line({"event": "full", "t": self._now()})
            elif self._left_out:
                return
            self._left -= len(line)
            self._writing += 1
        try:
            self._write(line)
        finally:
            with self._changed:
                self._writing -= 1
                self._changed.notify_all()

    def end(self, stats: dict[str, Any] | None) -> None:
        """Write the last line."""
        if os.getpid() != self._process:
            return
        with self._changed:
            self._open = False
            # No longer than that: the collector may have called this amid a write of this thread.
            self._changed.wait_for(lambda: not self._writing, timeout=1.0)
            end = {"event": "end", "t": self._now(), "left_out": self._left_out, "stats": stats}
            descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            if not self._failed:  # or it would go on the rest of a line that was cut off
                self._write(_line(end), descriptor)
            os.close(descriptor)

    def _now(self) -> float:
        return round(time.perf_counter() - self._start, 6)

    def _write(self, line: bytes, descriptor: int | None = None) -> None:
        try:
            # One call, hence one piece; the rest of what a full disk cut off would be no line.
            written = os.write(self._descriptor if descriptor is None else descriptor, line)
            if written == len(line):
                return
            reason = "there is no more room"
        except OSError as error:
            reason = str(error)
        with self._changed:
            was_open, self._open = self._open, False
            self._failed = True
        if was_open:
            _log.warning("trace %r: writing failed, and has ended: %s", self._path, reason)


class _Lines:
    """Makes lines of events.

    Args:
        file: takes them.
        wall: when the trace began, in seconds since the epoch.
        start: the same, by the clock of events.
    """

    def __init__(self, file: _File, wall: float, start: float) -> None:
        self._file = file
        self._wall = wall
        self._start = start

    def write(self, event: Event) -> None:
        """Write what is worth a line: what moved is told again when its task has ended."""
        if isinstance(event, Ran):
            self._file.add(self._of_task(event))
        elif isinstance(event, Resolved) and event.where == "client":
            self._file.add({"event": "resolved", "t": self._now(), **_of_resolved(event)})
        elif isinstance(event, Evicted):
            facts = event._asdict() | {"stored_s": _seconds(event.stored_s)}
            self._file.add({"event": "evicted", "t": self._now(), **facts})

    def _of_task(self, ran: Ran) -> dict[str, Any]:
        return {
            "event": "task",
            "t": self._at(ran.ended),
            "task": ran.task,
            "function": ran.function,
            "calls": ran.calls,
            "state": ran.state,
            "error": ran.error,
            "submitted": self._at(ran.submitted),
            "started": None if ran.started is None else _seconds(ran.started - self._wall),
            "ended": self._at(ran.ended),
            "worker": ran.worker,
            "wait_s": _seconds(ran.wait_s),
            "unpack_s": _seconds(ran.unpack_s),
            "run_s": None if ran.run_s is None else _seconds(ran.run_s),
            "pack_s": _seconds(ran.pack_s),
            "moved": [_of_moved(one) for one in ran.moved],
            "resolved": [_of_resolved(one) for one in ran.resolved],
        }

    def _now(self) -> float:
        return self._at(time.perf_counter())

    def _at(self, moment: float) -> float:
        return _seconds(moment - self._start)


def _of_moved(moved: Moved) -> dict[str, Any]:
    return {
        "what": moved.what,
        "name": moved.name,
        "type": moved.type,
        "bytes": moved.bytes,
        "exact": moved.exact,
        "path": moved.path,
        "decided_by": moved.decided_by,
        "serialize_s": _seconds(moved.serialize_s),
        "put_s": _seconds(moved.put_s),
        "key": moved.key,
        "content": moved.content,
        "part": moved.is_part,
        **({"carries": moved.carries} if moved.carries else {}),
    }


def _of_resolved(resolved: Resolved) -> dict[str, Any]:
    return {
        "type": resolved.type,
        "bytes": resolved.bytes,
        "get_s": _seconds(resolved.get_s),
        "load_s": _seconds(resolved.load_s),
        "key": resolved.key,
    }


def _seconds(seconds: float) -> float:
    # To a tenth of a microsecond: clocks are no better, and lines are shorter.
    return round(seconds, 7)


def _line(facts: dict[str, Any]) -> bytes:
    with contextlib.suppress(UnicodeEncodeError):
        return json.dumps(facts, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
    # Half of a character, in a name.
    return json.dumps(facts, separators=(",", ":")).encode() + b"\n"


# For the line that says that a trace is full, and the last one.
_RESERVED = 4096

# How small the limit may be, in bytes: there is to be room for something.
_SMALLEST = 10_000
