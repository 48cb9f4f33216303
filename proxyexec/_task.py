"""What runs in the worker: a task unpacks its arguments, calls, and packs the result.

A :class:`Task` is what the base executor is given to call. This module knows nothing of futures
and leases: those are the client's.
"""

from __future__ import annotations

import functools
import pickle
from typing import Any

import cloudpickle

from proxyexec._context import SEALED, Context

__all__ = ["ChunkOutcome", "ChunkTask", "Task", "blob_of", "chunk_key", "context_from"]


class ChunkOutcome(list[Any]):
    """What came of several calls that travelled together."""


class Task:
    """A call on its way to the worker; what the base executor is given to call.

    Looks like the function that it calls: executors show names to their users.
    """

    def __init__(
        self, function: Any, travels: Any, context: Context, blob: bytes, key: str
    ) -> None:
        self._function = function
        self._travels = travels
        self._context: Context | None = context
        self._blob = blob
        self._key = key
        self.__module__ = getattr(function, "__module__", __name__)

    def __getattr__(self, name: str) -> Any:
        if name in ("__name__", "__qualname__", "__doc__"):
            return getattr(self._function, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __reduce__(self) -> tuple[Any, ...]:
        return _task, (self._travels, self._blob, self._key)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        context = self._context or context_from(self._blob)
        function = self._travels
        if type(function) in SEALED:
            function = context.unpack(function, "the function")
        arguments, kwargs = context.unpack_all(args, kwargs)
        result = function(*arguments, **kwargs)
        del arguments, kwargs  # inputs are let go before the result takes its place
        return context.deliver(result, self._key, "the result")


class ChunkTask(Task):
    """Several calls of one function, for ``map`` with a ``chunksize``."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _chunk_task, (self._travels, self._blob, self._key)

    def __call__(self, /, *chunk: tuple[Any, ...]) -> ChunkOutcome:
        context = self._context or context_from(self._blob)
        function = context.unpack(self._travels, "the function")
        return ChunkOutcome(
            context.deliver(
                function(*context.unpack_all(arguments, {})[0]),
                chunk_key(self._key, number),
                "a result",
            )
            for number, arguments in enumerate(chunk)
        )


def chunk_key(key: str, number: int) -> str:
    """The key of the result of a chunk's call ``number``."""
    return f"{key}.{number}"


def blob_of(context: Context) -> bytes:
    """Serialize a context, once for all tasks of an executor."""
    blob: bytes = cloudpickle.dumps(tuple(context), protocol=5)
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
    return Context(*pickle.loads(blob))


def _task(travels: Any, blob: bytes, key: str, cls: type[Task] = Task) -> Task:
    """Unpickle a task. What can fail waits until the task is called, where it has a future."""
    task = cls.__new__(cls)
    task._travels, task._context, task._blob, task._key = travels, None, blob, key
    return task


def _chunk_task(travels: Any, blob: bytes, key: str) -> Task:
    return _task(travels, blob, key, ChunkTask)
