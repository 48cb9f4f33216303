"""The asynchronous iterator behind a ``map`` on an event loop.

A task of asyncio draws items and submits calls, ahead of whoever reads the results, who takes them
in order. Knows nothing of executors.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxyexec._quota import Quota
    from proxyexec.aio import Handle

__all__ = ["results_in_order"]


class Submit(Protocol):
    """What gives one call to the executor."""

    def __call__(
        self, *, args: Sequence[Any], freely: bool, when_packed: Callable[[], object] | None
    ) -> Handle[Any]:
        """Return the handle; for the other arguments see :class:`proxyexec._packing.Submission`."""
        ...


async def results_in_order(
    submit: Submit,
    iterables: Sequence[Iterable[Any] | AsyncIterable[Any]],
    most: int,
    deadline: float | None,
    quota: Quota | None,
) -> AsyncGenerator[Any, None]:
    """Submit each tuple of items, and yield the results.

    Args:
        submit: gives one call to the executor.
        iterables: where items are drawn from.
        most: how many calls may be under way ahead of the results consumed.
        deadline: when each result has to be there, in the loop's time.
        quota: of the store, if calls may have to wait for room.
    """
    ahead = _Ahead(submit, most, quota)
    drawing = asyncio.ensure_future(ahead.draw(iterables))
    drawing.add_done_callback(ahead.wake)
    try:
        while True:
            while not ahead.pending and not drawing.done():
                await _within(deadline, ahead.change())
            if not ahead.pending:
                await drawing  # which raises what drawing raised
                return
            # No name refers to the result while the reader has it.
            yield await ahead.take(deadline)
    finally:
        drawing.cancel()
        ahead.cancel()
        await asyncio.wait([drawing])  # it may have submitted one more
        ahead.cancel()


class _Ahead:
    """Calls under way.

    Args:
        submit: gives one call to the executor.
        most: how many there are at most.
        quota: of the store, if calls may have to wait for room.
    """

    def __init__(self, submit: Submit, most: int, quota: Quota | None) -> None:
        self.pending: deque[Handle[Any]] = deque()
        self._submit = submit
        self._most = most
        self._quota = quota
        self._loop = asyncio.get_running_loop()
        self._changes: list[asyncio.Future[None]] = []

    async def draw(self, iterables: Sequence[Iterable[Any] | AsyncIterable[Any]]) -> None:
        """Submit a call whenever there may be one more."""
        iterators = _iterators(iterables)
        when_packed = None if self._quota is None else self._wake_soon
        # What is pending takes room until its results are consumed, and so does what the reader
        # has: behind a call of this map, neither may wait. So its first one waits, and no other.
        is_first = True
        while True:
            while not self._has_room():
                await self.change()
            args = await _drawn(iterators)
            if args is None:
                return
            handle = self._submit(args=args, freely=not is_first, when_packed=when_packed)
            is_first = False
            del args
            self.pending.append(handle)
            del handle
            self.wake()
            await asyncio.sleep(0)  # drawing may take a while, and others are there, too

    async def take(self, deadline: float | None) -> Any:
        """Return the first result, when it is there, and let go of its handle."""
        handle = self.pending[0]
        try:
            await _within(deadline, handle)
            result = handle.result()
            self.pending.popleft()
            self.wake()
            return result
        finally:
            del handle  # an error's traceback would keep it

    def change(self) -> asyncio.Future[None]:
        """Return a future that is done when the number of pending calls, or the room, changes."""
        future: asyncio.Future[None] = self._loop.create_future()
        self._changes.append(future)
        return future

    def wake(self, _: object = None) -> None:
        """Have those go on who wait for a change."""
        changes, self._changes = self._changes, []
        for future in changes:
            if not future.done():
                future.set_result(None)

    def cancel(self) -> None:
        """Cancel what has not started, and let go of all results."""
        while self.pending:
            self.pending.pop().cancel()  # the last first, as others are started in order

    def _has_room(self) -> bool:
        if len(self.pending) >= self._most:
            return False
        quota = self._quota
        if quota is None or not self.pending:
            return True
        # As a rule, the next one stores as much as the last.
        stored = self.pending[-1]._submission.stored
        return stored is not None and quota.has_room(stored)

    def _wake_soon(self) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.wake)


def _iterators(iterables: Sequence[Iterable[Any] | AsyncIterable[Any]]) -> list[Any]:
    return [aiter(one) if isinstance(one, AsyncIterable) else iter(one) for one in iterables]


async def _drawn(iterators: Sequence[Any]) -> list[Any] | None:
    """Return an item of each, as ``zip`` does; ``None`` at the end."""
    items = []
    for iterator in iterators:
        try:
            if isinstance(iterator, AsyncIterator):
                items.append(await anext(iterator))
            else:
                items.append(next(iterator))
        except (StopIteration, StopAsyncIteration):
            return None
    return items or None


async def _within(deadline: float | None, future: asyncio.Future[Any]) -> None:
    """Wait until a future is done.

    Raises:
        TimeoutError: it was not in time.
    """
    left = None
    if deadline is not None:
        left = max(0.0, deadline - asyncio.get_running_loop().time())
    done, _ = await asyncio.wait([future], timeout=left)
    if not done:
        raise asyncio.TimeoutError
