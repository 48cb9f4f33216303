"""The iterators behind ``map``: order, timeouts, buffering, and letting go.

They follow ``concurrent.futures.Executor.map`` of Python 3.14, on every version: tasks are
submitted at once, or, with a ``buffersize``, as results are consumed.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from proxyexec._future import Deferred

__all__ = [
    "Results",
    "are_at_hand",
    "checked_buffersize",
    "chunked_results",
    "deadline_after",
    "results",
]

R = TypeVar("R")


def results(
    submit: Callable[[Sequence[Any]], Future[R]],
    iterables: Sequence[Iterable[Any]],
    timeout: float | None,
    buffersize: int | None,
) -> Iterator[R]:
    """Submit each tuple of items, and return an iterator of the results."""
    deadline = deadline_after(timeout)
    calls = zip(*iterables) if iterables else iter(())  # noqa: B905 - as map does
    futures = (submit(arguments) for arguments in calls)
    pending = _submitted(futures, checked_buffersize(buffersize))
    return Results(_in_order(pending, futures, deadline), functools.partial(_cancel, pending))


def chunked_results(
    submit: Callable[[Sequence[Sequence[Any]]], Future[list[R]]],
    iterables: Sequence[Iterable[Any]],
    timeout: float | None,
    buffersize: int | None,
    chunksize: int,
) -> Iterator[R]:
    """Like :func:`results`, with ``chunksize`` calls to a task."""
    deadline = deadline_after(timeout)
    calls = zip(*iterables) if iterables else iter(())  # noqa: B905 - as map does
    chunks = iter(lambda: tuple(itertools.islice(calls, chunksize)), ())
    futures = (submit(chunk) for chunk in chunks)
    pending = _submitted(futures, checked_buffersize(buffersize))
    in_order = _in_order(pending, futures, deadline)
    return Results(_one_by_one(in_order), functools.partial(_cancel, pending))


def are_at_hand(iterables: Iterable[Iterable[Any]]) -> bool:
    """Tell that drawing items from all of these runs no code of others."""
    return all(type(one) in _AT_HAND for one in iterables)


def deadline_after(timeout: float | None) -> float | None:
    """Return when ``timeout`` seconds from now are over, in monotonic time."""
    return None if timeout is None else time.monotonic() + timeout


def checked_buffersize(buffersize: int | None) -> int | None:
    """Return a ``buffersize`` that is one.

    Raises:
        TypeError: it is not an integer.
        ValueError: it is below 1.
    """
    if buffersize is not None and not isinstance(buffersize, int):
        raise TypeError("buffersize must be an integer or None")
    if buffersize is not None and buffersize < 1:
        raise ValueError("buffersize must be None or > 0")
    return buffersize


class Results(Iterator[R]):
    """An iterator of results that cancels what is pending when it is closed.

    Dropped before its first result was asked for, it cancels nothing, like the standard
    library's: programs call ``map`` for what the tasks do.

    Args:
        results: cancels, too, when it is closed half-way.
        cancel: cancels what has not started.
    """

    def __init__(self, results: Generator[R], cancel: Callable[[], object]) -> None:
        self._results = results
        self._cancel = cancel

    def __next__(self) -> R:
        return next(self._results)

    def close(self) -> None:
        """Cancel what has not started, and let go of all results."""
        self._results.close()
        self._cancel()


def _submitted(futures: Iterator[Future[R]], buffersize: int | None) -> deque[Future[R]]:
    """Submit what is to be submitted before any result is asked for."""
    pending: deque[Future[R]] = deque()
    try:
        pending.extend(itertools.islice(futures, buffersize))
    except BaseException:
        _cancel(pending)
        raise
    return pending


def _in_order(
    pending: deque[Future[R]], futures: Iterator[Future[R]], deadline: float | None
) -> Generator[R]:
    try:
        while pending:
            pending.extend(itertools.islice(futures, 1))
            left = None if deadline is None else deadline - time.monotonic()
            # No name refers to the future while the caller has its result.
            yield _result(pending, left)
    finally:
        _cancel(pending)


def _result(pending: deque[Future[R]], timeout: float | None) -> R:
    future = pending[0]
    try:
        result = future.result(timeout)
        pending.popleft()
        return result
    finally:
        del future  # an error's traceback would keep it


def _one_by_one(chunks: Generator[list[Any]]) -> Generator[Any]:
    try:
        for chunk in chunks:
            chunk.reverse()
            while chunk:
                item: Any = chunk.pop()
                yield item.get() if type(item) is Deferred else item
    finally:
        chunks.close()


def _cancel(pending: deque[Future[Any]]) -> None:
    while pending:
        pending.pop().cancel()  # the last first: a worker takes the next one, which is the first


# Exact types whose iterators hand out what is there.
_AT_HAND = frozenset(
    {
        bytes,
        deque,
        dict,
        frozenset,
        itertools.count,
        itertools.repeat,
        list,
        range,
        set,
        str,
        tuple,
    }
)
