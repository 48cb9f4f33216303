"""Spans of OpenTelemetry: what is done for a call, in the client and in workers, as one trace.

Whether there are any is asked by looking at :data:`active`, which costs next to nothing. It is set
by :func:`enable`, and in a worker by the first task that says so: what a task has to know travels
with it, as W3C ``traceparent``, or whatever the program's propagators write. OpenTelemetry is
imported only then.

Knows nothing of executors, tasks or stores.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import multiprocessing.util
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, TypeAlias

from proxyexec.errors import MissingExtraError

__all__ = [
    "NOTHING",
    "Carrier",
    "Spanned",
    "Tracing",
    "active",
    "bound",
    "disable",
    "enable",
    "note_failure",
    "running",
]

_log = logging.getLogger("proxyexec.spans")

Carrier: TypeAlias = tuple[str, str, dict[str, str]]
"""What travels with a task: what is called, the key of its result, and the trace's headers."""

NOTHING: AbstractContextManager[None] = contextlib.nullcontext()
"""Stands where there is no span."""


class _Here(threading.local):
    """What this thread is doing."""

    submitting = False


_here = _Here()


def enable(tracer_provider: Any = None) -> None:
    """Make spans from now on, in this process and in the workers that get tasks from it.

    They go to the program's tracer provider; a worker needs one of its own. As long as there is
    none, nothing is made, and nothing travels.

    Args:
        tracer_provider: where spans of this process go; OpenTelemetry's global one if not given.

    Raises:
        MissingExtraError: ``opentelemetry-api`` is not installed.
    """
    global active
    try:
        active = Tracing(tracer_provider, everywhere=True)
    except ImportError as missing:
        raise MissingExtraError("tracing", "otel") from missing


def disable() -> None:
    """Make no spans any more. Those that have begun will end."""
    global active
    active = None


class Tracing:
    """Makes spans.

    Args:
        provider: where they go; OpenTelemetry's global one if ``None``.
        everywhere: whether to make some outside of tasks, too.
    """

    def __init__(self, provider: Any, *, everywhere: bool) -> None:
        from opentelemetry import context, trace  # noqa: PLC0415 - only when wanted
        from opentelemetry.propagate import extract, inject  # noqa: PLC0415

        from proxyexec import __version__  # noqa: PLC0415 - it imports this module

        self._context, self._trace = context, trace
        self._extract, self._inject = extract, inject
        self._tracer = trace.get_tracer("proxyexec", __version__, provider)
        self._everywhere = everywhere

    def submits(self) -> bool:
        """Tell whether this thread is in the middle of submitting a call."""
        return _here.submitting

    def submit(
        self, submit: Callable[..., Any], name: str, fn: Any, args: Any, kwargs: dict[str, Any]
    ) -> Any:
        """Submit a call, in a span of its own.

        Args:
            submit: does so, and returns the future.
            name: that of what is called.
            fn: what is called.
            args: the arguments by position.
            kwargs: those by keyword.
        """
        kind = self._trace.SpanKind.PRODUCER
        attributes = {"proxyexec.function": name}
        _here.submitting = True
        try:
            with self._tracer.start_as_current_span(
                f"submit {name}", kind=kind, attributes=attributes
            ):
                future: Any = submit(fn, *args, **kwargs)
                if getattr(future, "_call", None) is None:  # it never became a task
                    self.fail(future._error())
                return future
        finally:
            _here.submitting = False

    def carrier(self, name: str, key: str) -> Carrier | None:
        """Return what is to travel with a task, if there is a trace."""
        headers: dict[str, str] = {}
        self._inject(headers)
        if not headers:
            return None
        if _here.submitting and key:
            self._trace.get_current_span().set_attribute("proxyexec.key", key)
        return name, key, headers

    def around(self, function: Any, name: str, calls: int) -> Any:
        """Return what runs a function in a span of its own, if there is a trace."""
        carrier = self.carrier(name, "")
        return function if carrier is None else Spanned(function, carrier, calls)

    def flush(self) -> None:
        """Send what there is."""
        flush = getattr(self._trace.get_tracer_provider(), "force_flush", None)
        if flush is not None:
            flush()

    def leave(self) -> None:
        """Be in no trace any more: a pool forks its workers while a call is submitted."""
        self._context.attach(self._context.Context())

    def put(self, url: str, key: str, kind: str, size: int) -> AbstractContextManager[Any]:
        """Return the span of storing an object."""
        return self._moving("put", url, key, kind, size)

    def resolve(self, url: str, key: str, kind: str, size: int) -> AbstractContextManager[Any]:
        """Return the span of fetching an object."""
        return self._moving("resolve", url, key, kind, size)

    @contextlib.contextmanager
    def run(self, carrier: Carrier, calls: int) -> Iterator[None]:
        """Run a task, in a span of its own that belongs to the trace that travelled with it."""
        name, key, headers = carrier
        attributes: dict[str, Any] = {"proxyexec.function": name}
        if key:
            attributes["proxyexec.key"] = key
        if calls > 1:
            attributes["proxyexec.calls"] = calls
        kind = self._trace.SpanKind.CONSUMER
        submitting, _here.submitting = _here.submitting, False
        token = self._context.attach(self._extract(headers))
        try:
            with self._tracer.start_as_current_span(
                f"run {name}", kind=kind, attributes=attributes
            ):
                yield
        finally:
            self._context.detach(token)
            _here.submitting = submitting

    def bound(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that does the same, in the trace that is the current one now."""
        return functools.partial(self._call_in, self._context.get_current(), function)

    def fail(self, error: BaseException | None) -> None:
        """Say of the current span that it has failed, though nothing is raised."""
        span = self._trace.get_current_span()
        if error is not None and span.is_recording():
            span.record_exception(error)
            span.set_status(self._trace.StatusCode.ERROR, f"{type(error).__name__}: {error}")

    def _call_in(self, context: Any, function: Callable[..., Any], *args: Any) -> Any:
        token = self._context.attach(context)
        try:
            return function(*args)
        finally:
            self._context.detach(token)

    def _moving(
        self, name: str, url: str, key: str, kind: str, size: int
    ) -> AbstractContextManager[Any]:
        if not (self._everywhere or self._trace.get_current_span().get_span_context().is_valid):
            return NOTHING
        span: AbstractContextManager[Any] = self._tracer.start_as_current_span(
            name,
            kind=self._trace.SpanKind.CLIENT,
            attributes={
                "proxyexec.store": url,
                "proxyexec.key": key,
                "proxyexec.type": kind.replace(":", ".").removeprefix("builtins."),
                "proxyexec.bytes": size,
            },
        )
        return span


class Spanned:
    """A function that is run in a span, where the base executor is given it as it is.

    Args:
        function: what is called.
        carrier: what travels with it.
        calls: how many it makes.
    """

    def __init__(self, function: Any, carrier: Carrier, calls: int) -> None:
        self._function = function
        self._carrier = carrier
        self._calls = calls
        functools.update_wrapper(self, function, updated=())

    def __reduce__(self) -> tuple[Any, ...]:
        return Spanned, (self._function, self._carrier, self._calls)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        with running(self._carrier, self._calls):
            return self._function(*args, **kwargs)


def running(carrier: Carrier, calls: int = 1) -> AbstractContextManager[None]:
    """Return the span of a task, in the worker; of none where OpenTelemetry is not installed."""
    global active, _is_missing
    tracing = active
    if tracing is None:
        if _is_missing:
            return NOTHING
        try:
            active = tracing = Tracing(None, everywhere=False)
            if multiprocessing.parent_process() is not None:
                # Such a process ends without what others do at their end.
                multiprocessing.util.Finalize(None, tracing.flush, exitpriority=1)
        except ImportError as missing:
            _is_missing = True
            _log.warning("tasks are in a trace, but this process cannot add to it: %s", missing)
            return NOTHING
    return tracing.run(carrier, calls)


def bound(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that does the same, in the trace that is the current one now."""
    tracing = active
    return function if tracing is None else tracing.bound(function)


def note_failure(error: BaseException) -> None:
    """Say of the current span that it has failed, if there is one."""
    tracing = active
    if tracing is not None:
        tracing.fail(error)


active: Tracing | None = None
"""Makes spans, if there are to be any."""

# Whether this process was asked for spans and could not make any.
_is_missing = False


def _after_fork() -> None:
    # A worker makes spans when a task says so, and sends them where its own provider does.
    global active
    tracing, active = active, None
    if tracing is not None and _here.submitting:
        tracing.leave()
    _here.submitting = False


os.register_at_fork(after_in_child=_after_fork)
