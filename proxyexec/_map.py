"""The iterators behind ``map``: order, timeouts, buffering, and letting go.

They follow ``concurrent.futures.Executor.map`` of Python 3.14, on every version: tasks are
submitted at once, or, with a ``buffersize``, as results are consumed.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

from proxyexec._future import Deferred

if TYPE_CHECKING:
    from proxyexec._quota import Quota

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
    quota: Quota | None = None,
) -> Iterator[R]:
    """Submit each tuple of items, and return an iterator of the results.

    With a quota and a ``buffersize``, no more are submitted than there is room for.
    """
    deadline = deadline_after(timeout)
    calls = zip(*iterables) if iterables else iter(())  # noqa: B905 - as map does
    pending, more = _submitted(submit, calls, checked_buffersize(buffersize), quota)
    return Results(_in_order(pending, more, deadline), functools.partial(_cancel, pending))


def chunked_results(
    submit: Callable[[Sequence[Sequence[Any]]], Future[list[R]]],
    iterables: Sequence[Iterable[Any]],
    timeout: float | None,
    buffersize: int | None,
    chunksize: int,
    quota: Quota | None = None,
) -> Iterator[R]:
    """Like :func:`results`, with ``chunksize`` calls to a task."""
    deadline = deadline_after(timeout)
    calls = zip(*iterables) if iterables else iter(())  # noqa: B905 - as map does
    chunks = iter(lambda: tuple(itertools.islice(calls, chunksize)), ())
    pending, more = _submitted(submit, chunks, checked_buffersize(buffersize), quota)
    in_order = _in_order(pending, more, deadline)
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


def _submitted(
    submit: Callable[[Any], Future[R]],
    calls: Iterator[Any],
    buffersize: int | None,
    quota: Quota | None,
) -> tuple[deque[Future[R]], Callable[[], object]]:
    """Submit what is to be submitted before any result is asked for.

    Returns:
        The futures, and what submits more before each result.
    """
    pending: deque[Future[R]] = deque()
    try:
        if quota is not None and buffersize is not None:
            within = _Within(quota, submit, calls, pending)
            within.fill(buffersize)
            return pending, functools.partial(within.fill, buffersize + 1)
        futures = (submit(call) for call in calls)
        pending.extend(itertools.islice(futures, buffersize))
        return pending, lambda: pending.extend(itertools.islice(futures, 1))
    except BaseException:
        _cancel(pending)
        raise


class _Within:
    """Submits what there is room for; one at least, or there would be nothing to wait for.

    Args:
        quota: the store's.
        submit: gives one call to the executor.
        calls: where they are drawn from.
        pending: the futures whose results have not been consumed.
    """

    def __init__(
        self,
        quota: Quota,
        submit: Callable[[Any], Future[R]],
        calls: Iterator[Any],
        pending: deque[Future[R]],
    ) -> None:
        self._quota = quota
        self._calls = (call for call in calls)  # which asks no iterable again after the end
        self._submit = submit
        self._pending = pending
        # How much the last one has stored: as a rule, the next one stores as much.
        self._expected = 0

    def fill(self, most: int) -> None:
        """Have so many pending, unless there is no room."""
        quota, pending = self._quota, self._pending
        while len(pending) < most and (not pending or quota.has_room(self._expected)):
            for call in self._calls:
                before = quota.counted_here()
                # What is pending takes room until its results are consumed, by this thread.
                with quota.unbounded() if pending else contextlib.nullcontext():
                    pending.append(self._submit(call))
                self._expected = quota.counted_here() - before
                break
            else:
                return


def _in_order(
    pending: deque[Future[R]], more: Callable[[], object], deadline: float | None
) -> Generator[R]:
    try:
        while True:
            more()
            if not pending:
                return
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
                # No name refers to the item while the caller has it, nor afterwards.
                yield _fetched(chunk.pop())
    finally:
        chunks.close()


def _fetched(item: Any) -> Any:
    return item.get() if type(item) is Deferred else item


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
