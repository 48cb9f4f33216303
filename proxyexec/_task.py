"""What runs in the worker: a task unpacks its arguments, calls, and packs the result.

A :class:`Task` is what the base executor is given to call. This module knows nothing of futures
and leases: those are the client's.
"""

from __future__ import annotations

import functools
import itertools
import pickle
from collections.abc import Callable, Sequence
from concurrent.futures.process import _ExceptionWithTraceback
from time import perf_counter as clock
from typing import Any

import cloudpickle
from proxyexec_connectors._layout import split

from proxyexec import _spans
from proxyexec._carried import callable_name
from proxyexec._context import SEALED, Context, Inline, Stored, joined
from proxyexec._proxy import Reference, is_embedding
from proxyexec._record import Record, bare, here
from proxyexec._serialize import PickleSerializer, Serializer
from proxyexec._sizes import data_size
from proxyexec.errors import DeserializationError, SerializationError, arrival_error

__all__ = [
    "HEAVIEST_BYTES",
    "ChunkOutcome",
    "ChunkTask",
    "Failed",
    "Task",
    "TimedChunkTask",
    "TimedOutcome",
    "blob_of",
    "chunk_key",
    "context_from",
    "packed_error",
    "unpacked_error",
    "waiting_for_nothing",
    "weight_of",
]


class ChunkOutcome(list[Any]):
    """What came of several calls that travelled together."""


class TimedOutcome:
    """What came of the first of several calls that travelled together, at least of one.

    Args:
        results: in order, with :class:`Failed` for what has none.
        seconds: how long these calls took.
    """

    __slots__ = ("results", "seconds")

    def __init__(self, results: list[Any], seconds: float) -> None:
        self.results = results
        self.seconds = seconds

    def __reduce__(self) -> tuple[Any, ...]:
        return TimedOutcome, (self.results, self.seconds)


class Failed:
    """Stands for the result of a call that has none.

    Args:
        error: what it raised; serialized on its way.
    """

    __slots__ = ("error",)

    def __init__(self, error: Any) -> None:
        self.error = error

    def __reduce__(self) -> tuple[Any, ...]:
        return Failed, (self.error,)


def waiting_for_nothing(run: Callable[..., Any]) -> Callable[..., Any]:
    """Have a task wait for no room, if it runs in the client's process: its objects take some.

    If it belongs to a trace, it is run in a span.
    """

    @functools.wraps(run)
    def running(self: Task, /, *args: Any, **kwargs: Any) -> Any:
        context = self._context = self._context or context_from(self._blob)
        quota = context.store.quota
        if quota is None and self.carrier is None:
            return run(self, *args, **kwargs)
        with (
            _spans.NOTHING if self.carrier is None else self._span(self.carrier, args),
            _spans.NOTHING if quota is None else quota.unbounded(),
        ):
            return run(self, *args, **kwargs)

    return running


class Task:
    """A call on its way to the worker; what the base executor is given to call.

    Looks like the function that it calls: executors show names to their users.
    """

    every = False
    """Whether somebody wants to know everything of it."""

    carrier: _spans.Carrier | None = None
    """The trace that it belongs to, if there are spans."""

    # What was called, once that is unpacked; the object itself is let go of.
    _called: str | None = None

    def __init__(
        self, function: Any, travels: Any, context: Context, blob: bytes, key: str
    ) -> None:
        self._function = function
        self._travels = travels
        self._context: Context | None = context
        self._blob = blob
        self._key = key
        self.__module__ = getattr(function, "__module__", __name__)
        tracing = _spans.active
        if tracing is not None:
            self.carrier = tracing.carrier(callable_name(function), key)

    def __getattr__(self, name: str) -> Any:
        if name in ("__name__", "__qualname__", "__doc__"):
            return getattr(self._function, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __reduce__(self) -> tuple[Any, ...]:
        if self.every or self.carrier is not None or type(self) is not Task:
            facts = self._travels, self._traveling_blob(), self._key, type(self), self.every
            return _task, facts if self.carrier is None else (*facts, self.carrier)
        return _task, (self._travels, self._traveling_blob(), self._key)

    @property
    def function(self) -> Any:
        """What is called; in the client."""
        return self._function

    def withdraw(self, outcome: Any) -> None:
        """Remove what the call stored, in the worker: nobody wants it any more."""
        outcome = bare(outcome)
        outcomes = outcome if type(outcome) is ChunkOutcome else [outcome]
        if type(outcome) is TimedOutcome:
            outcomes = outcome.results
        references: list[Reference] = []
        for one in outcomes:
            if type(one) is Stored:
                references.append(one.reference)
            if type(one) in SEALED:
                references.extend(one.embedded)
        mine = (f"{self._key}.", f"{self._key}+")  # of a chunk's calls, and of parts
        keys = [one.key for one in references if one.key == self._key or one.key.startswith(mine)]
        if keys:
            context = self._context or context_from(self._blob)
            context.store.evict_keys(keys)

    def _traveling_blob(self) -> bytes:
        """The context's serialized form: without secrets where another executor may store it."""
        return blob_of(self._context or context_from(self._blob)) if is_embedding() else self._blob

    @waiting_for_nothing
    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        context = self._context or context_from(self._blob)
        mine, record = here.mine, Record()
        outer, mine.record = mine.record, record
        if self.every:
            record.begin()
        try:
            function = self._travels
            if kwargs or type(function) in SEALED or not SEALED.isdisjoint(map(type, args)):
                result = self._result(context, record, args, kwargs)
            else:  # as most are: there is nothing to unpack
                start = clock()
                result = function(*args)
                record.run_s = clock() - start
            travels = context.deliver(result, self._key, self._what, record)
        finally:
            mine.record = outer
        return record.outcome(travels, context.store.address, mine.left)

    def _span(self, carrier: _spans.Carrier, args: Sequence[Any]) -> Any:
        return _spans.running(carrier)

    def _result(
        self, context: Context, record: Record, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Any:
        function = self._function_in(context)
        arguments, kwargs = context.unpack_all(args, kwargs, function)
        start = clock()
        result = function(*arguments, **kwargs)
        record.run_s += clock() - start
        return result  # inputs are let go with this frame

    def _function_in(self, context: Context) -> Any:
        function = self._travels
        if type(function) in SEALED:
            function = context.unpack_function(function)
            self._called = callable_name(function)
        return function

    def _what(self) -> str:
        """What a result is to the caller, for messages."""
        return f"the result of {self._called or callable_name(self._travels)}"


class ChunkTask(Task):
    """Several calls of one function, for ``map`` with a ``chunksize``."""

    def _span(self, carrier: _spans.Carrier, args: Sequence[Any]) -> Any:
        return _spans.running(carrier, len(args))

    @waiting_for_nothing
    def __call__(self, /, *chunk: tuple[Any, ...]) -> Any:
        context = self._context or context_from(self._blob)
        mine, record = here.mine, Record()
        outer, mine.record = mine.record, record
        if self.every:
            record.begin()
        try:
            function = self._function_in(context)
            travels = ChunkOutcome(
                context.deliver(
                    self._one(context, record, function, arguments),
                    chunk_key(self._key, number),
                    self._what,
                    record,
                )
                for number, arguments in enumerate(chunk)
            )
        finally:
            mine.record = outer
        return record.outcome(travels, context.store.address, mine.left)

    def _one(self, context: Context, record: Record, function: Any, arguments: Any) -> Any:
        arguments = context.unpack_all(arguments, {}, function)[0]
        start = clock()
        result = function(*arguments)
        record.run_s += clock() - start
        return result


class TimedChunkTask(ChunkTask):
    """Several calls of one function, for ``map`` with ``chunksize="auto"``.

    Each is as if it were alone: none sees what another does to the function, to its arguments, or
    to its result. Once they have taken longer than a chunk should, or are a lot to send, the rest
    is left: the client sends it again, to whoever has time.
    """

    @waiting_for_nothing
    def __call__(self, /, *chunk: tuple[Any, ...]) -> Any:
        context = self._context or context_from(self._blob)
        mine, record = here.mine, Record()
        outer, mine.record = mine.record, record
        if self.every:
            record.begin()
        try:
            travels = self._outcome(context, record, chunk)
        finally:
            mine.record = outer
        return record.outcome(travels, context.store.address, mine.left)

    def _outcome(
        self, context: Context, record: Record, chunk: Sequence[tuple[Any, ...]]
    ) -> TimedOutcome:
        # Most calls and their results are small: this loop is what they cost.
        words, function = context.words(), self._travels
        packing = 0.0
        travelling = (function, *itertools.chain.from_iterable(chunk))
        ready = SEALED.isdisjoint(map(type, travelling))
        results: list[Any] = []
        weight = 0
        start = clock()
        stop = start + LONGEST_SECONDS
        for number, arguments in enumerate(chunk):
            try:
                if ready:
                    result = function(*arguments)
                else:
                    result = self._result(context, record, arguments, {})
                kind = type(result)
                if kind not in words and not (kind is int and words and -_LONG < result < _LONG):
                    key = chunk_key(self._key, number)
                    before = clock()
                    result = context.deliver(result, key, self._what, record, alone=False)
                    packing += clock() - before
                    weight += weight_of(result)
            except BaseException as error:  # noqa: BLE001 - as pools do
                if self.carrier is not None:
                    _spans.note_failure(error)
                failed = Failed(packed_error(error, context.errors()))
                result, weight = failed, weight + weight_of(failed.error)
            results.append(result)
            if clock() > stop or weight > HEAVIEST_BYTES:
                break
        seconds = clock() - start
        if ready:
            record.run_s = seconds - packing
        # Their transport takes time, too.
        return TimedOutcome(results, max(seconds, LONGEST_SECONDS * weight / HEAVIEST_BYTES))


def packed_error(error: BaseException, serializer: Serializer) -> Inline:
    """Serialize what a call raised, with the text of its traceback, as pools do.

    As with those, what cannot be serialized is replaced by what that raised.
    """
    try:
        return _inline(error, serializer)
    except SerializationError as failed:
        return _inline(failed.__cause__ or failed, PickleSerializer())


def _inline(error: BaseException, serializer: Serializer) -> Inline:
    if not isinstance(serializer, PickleSerializer):  # one of errors, with their tracebacks
        return Inline(joined(serializer.dumps(error)))
    assert error.__traceback__ is not None  # noqa: S101 - it has been raised
    remote = _ExceptionWithTraceback(error, error.__traceback__)
    # They are in that text. Where tblib is installed they would be pickled, too, if they can be.
    error.__cause__ = error.__context__ = None
    return Inline(joined(serializer.dumps(remote)))


def unpacked_error(packed: Inline, serializer: Serializer, called: str) -> BaseException:
    """Make an exception of its serialized form again; ``called`` is what raised it."""
    try:
        error: BaseException = serializer.loads(split(packed.blob))
    except DeserializationError as failed:
        error = arrival_error(f"what {called} raised", failed)
        error.__cause__ = failed
    return error


def weight_of(travels: Any) -> int:
    """Return about how many bytes something takes on its way, where that is known."""
    return len(travels.blob) if type(travels) is Inline else data_size(travels) or 0


def chunk_key(key: str, number: int) -> str:
    """The key of the result of a chunk's call ``number``."""
    return f"{key}.{number}"


def blob_of(context: Context) -> bytes:
    """Serialize a context, once for all tasks of an executor."""
    # Most are plain ones, which need not say so in every task.
    facts = tuple(context) if type(context) is Context else context
    blob: bytes = cloudpickle.dumps(facts, protocol=5)
    return blob


def context_from(blob: bytes) -> Context:
    """The context of a serialized form; made once in each worker."""
    context = _context_from(blob)
    if context.store.closed:  # by a task that was given it
        _context_from.cache_clear()
        context = _context_from(blob)
    return context


@functools.lru_cache(maxsize=64)
def _context_from(blob: bytes) -> Context:
    facts = pickle.loads(blob)
    return facts if isinstance(facts, Context) else Context(*facts)


def _task(
    travels: Any,
    blob: bytes,
    key: str,
    cls: type[Task] = Task,
    every: bool = False,
    carrier: _spans.Carrier | None = None,
) -> Task:
    """Unpickle a task. What can fail waits until the task is called, where it has a future."""
    task = cls.__new__(cls)
    task._travels, task._context, task._blob, task._key = travels, None, blob, key
    if every:
        task.every = True
    if carrier is not None:
        task.carrier = carrier
    return task


# A timed chunk makes no more calls after this long.
LONGEST_SECONDS = 0.05

# Nor once results of so many bytes are to be sent; of arguments, it has no more.
HEAVIEST_BYTES = 2_500_000

# Integers from here on are looked at before they travel.
_LONG = 1 << 64
