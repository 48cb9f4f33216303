"""The iterators behind ``map``: order, timeouts, buffering, and letting go.

They follow ``concurrent.futures.Executor.map`` of Python 3.14, on every version: tasks are
submitted at once, or, with a ``buffersize``, as results are consumed.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from proxyexec._future import Deferred

__all__ = ["chunked_results", "results"]

R = TypeVar("R")


def results(
    submit: Callable[..., Future[R]],
    fn: Callable[..., R],
    iterables: Sequence[Iterable[Any]],
    timeout: float | None,
    buffersize: int | None,
) -> Iterator[R]:
    """Submit ``fn`` for each tuple of items, and return an iterator of the results."""
    deadline = _deadline(timeout)
    calls = zip(*iterables) if iterables else iter(())  # noqa: B905 - as map does
    futures = (submit(fn, *arguments) for arguments in calls)
    return _in_order(futures, deadline, _checked(buffersize))


def chunked_results(
    submit: Callable[[Callable[..., R], Sequence[Sequence[Any]]], Future[list[R]]],
    fn: Callable[..., R],
    iterables: Sequence[Iterable[Any]],
    timeout: float | None,
    buffersize: int | None,
    chunksize: int,
) -> Iterator[R]:
    """Like :func:`results`, with ``chunksize`` calls to a task."""
    deadline = _deadline(timeout)
    calls = zip(*iterables) if iterables else iter(())  # noqa: B905 - as map does
    chunks = iter(lambda: tuple(itertools.islice(calls, chunksize)), ())
    futures = (submit(fn, chunk) for chunk in chunks)
    return _started(_one_by_one(_in_order(futures, deadline, _checked(buffersize))))


def _deadline(timeout: float | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout


def _checked(buffersize: int | None) -> int | None:
    if buffersize is not None and not isinstance(buffersize, int):
        raise TypeError("buffersize must be an integer or None")
    if buffersize is not None and buffersize < 1:
        raise ValueError("buffersize must be None or > 0")
    return buffersize


def _in_order(
    futures: Iterator[Future[R]], deadline: float | None, buffersize: int | None
) -> Iterator[R]:
    # Not a generator itself: tasks are submitted when map is called, not at the first next().
    pending: deque[Future[R]] = deque()
    try:
        pending.extend(itertools.islice(futures, buffersize))
    except BaseException:
        _cancel(pending)
        raise
    return _started(_consume(pending, futures, deadline))


def _started(results: Generator[Any]) -> Iterator[Any]:
    # Closing a generator that was never started would not run its finally.
    next(results)
    return results


def _consume(
    pending: deque[Future[R]], futures: Iterator[Future[R]], deadline: float | None
) -> Generator[Any]:
    try:
        yield None  # for _started()
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


def _one_by_one(chunks: Iterator[list[Any]]) -> Generator[Any]:
    try:
        yield None  # for _started()
        for chunk in chunks:
            chunk.reverse()
            while chunk:
                item: Any = chunk.pop()
                yield item.get() if type(item) is Deferred else item
    finally:
        chunks.close()  # type: ignore[attr-defined]  # it is a generator


def _cancel(pending: deque[Future[Any]]) -> None:
    while pending:
        pending.popleft().cancel()
