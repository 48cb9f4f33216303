"""Progress: how far the tasks of a ``map``, or those of given futures, have come.

Tasks are counted when they end, by callbacks of their futures, whoever reads the results and
when. One thread at a time shows the counts; what others count meanwhile, it shows next. What
showing raises is logged, and never reaches the call.

Knows nothing of policies, stores, or how bars look.
"""

from __future__ import annotations

import functools
import itertools
import logging
import math
import os
import sys
import threading
import traceback
import weakref
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, as_completed
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from proxyexec._bars import Display, Told, bar_named
from proxyexec._carried import callable_name
from proxyexec._future import Deferred, TaskFuture
from proxyexec._proxy import is_proxy, reference_of
from proxyexec._sizes import data_size
from proxyexec._task import Failed, TimedOutcome

__all__ = ["Counting", "MapProgress", "ProgressCounts", "ShowProgress", "progress"]

R = TypeVar("R")

Submit: TypeAlias = "Callable[[Sequence[Any]], Any]"

_log = logging.getLogger("proxyexec.progress")


@dataclass(frozen=True)
class ProgressCounts:
    """How far tasks have come.

    Attributes:
        ended: how many tasks have ended, with a result or an error; items, where tasks are
            chunks of a ``map``.
        failed: of these, how many have an error.
        cancelled: how many were cancelled, and will never end.
        total: how many there are in all; ``None`` as long as nobody knows.
        result_bytes: size of the results: as stored, of those in a store; of the others, what
            text, arrays, data frames and the like hold.
        closed: whether these are the last counts.
    """

    ended: int = 0
    failed: int = 0
    cancelled: int = 0
    total: int | None = None
    result_bytes: int = 0
    closed: bool = False


ShowProgress: TypeAlias = bool | Callable[[ProgressCounts], object] | None
"""``True`` for a bar, or what is called with the counts whenever they have changed."""


def progress(
    futures: Iterable[Future[R]],
    total: int | None = None,
    desc: str | None = None,
    *,
    callback: Callable[[ProgressCounts], object] | None = None,
    timeout: float | None = None,
) -> Iterator[Future[R]]:
    """Show a bar until all tasks have ended, and return an iterator of their futures as they end.

    The bar is there from this call on, and shows how many tasks have ended: whether the futures are
    read or not. It stays as it is when the iterator is closed, or dropped half-way.

    Args:
        futures: those of any executor's; drawn from at once, and yielded once each.
        total: how many there will be, where drawing them takes a while and ``futures`` has no
            length.
        desc: what is shown before the bar.
        callback: is called with the counts in place of showing a bar; see "Progress" in the
            documentation.
        timeout: seconds from the first future that is asked for, within which each has to be done.

    Raises:
        TypeError: one of them is no future.
        MissingExtraError: neither tqdm nor rich is installed, and there is no ``callback``.
    """
    display = Told(callback) if callback is not None else bar_named(desc)
    counting = Counting(display, _total_of([futures]) if total is None else total, is_certain=False)
    drawn: set[Future[R]] = set()
    counting.begin()
    try:
        for future in futures:
            if not isinstance(future, Future):
                kind = type(future).__name__
                raise TypeError(f"progress() takes futures of concurrent.futures, not {kind}")
            if future not in drawn:
                drawn.add(future)
                counting.watch(future)
        results: Any = as_completed(drawn, timeout)
    except BaseException:
        counting.close()
        raise
    counting.expect(len(drawn))
    return _Watched(results, counting)


class Counting:
    """Counts tasks as they end, and has that shown.

    Args:
        display: shows it.
        total: how many calls there will be, if that is known.
        is_certain: whether that many will be, so that nothing comes after the last of them.
    """

    def __init__(self, display: Display, total: int | None, *, is_certain: bool = True) -> None:
        self.chunked = False
        """Whether futures stand for several calls each, and have lists for results."""
        self.is_read = False
        """Whether somebody has asked for a result."""
        self._display: Display | None = display
        self._is_waited_for = display.waited_for
        self._total = total
        self._is_certain = is_certain
        self._ended = self._failed = self._cancelled = self._bytes = 0
        # How many calls each future stands for.
        self._pending: dict[Any, int] = {}
        self._begun = False
        self._closed = False
        # What is shown, whether that is to be looked at again, and which thread is at it.
        self._shown: ProgressCounts | None = None
        self._is_news = False
        self._showing: int | None = None
        # Guards all of these. Reentrant, as the garbage collector may drop a map inside.
        self._changed = threading.Condition()
        # Whoever drops all that could go on with this leaves no bar. A function of the user's may
        # refer to whoever holds this: held by the finalizer, it would keep it for ever.
        if display.waited_for:
            weakref.finalize(self, _close_in, os.getpid(), display)

    def begin(self) -> None:
        """Show that no task has ended yet."""
        with self._changed:
            if self._begun:
                return
            self._begun = True
        self._show()

    def watch(self, future: Any, calls: int = 1) -> None:
        """Count a future when it is done.

        Args:
            future: of any kind that has callbacks.
            calls: how many calls it stands for.
        """
        with self._changed:
            if self._closed:
                return
            self._pending[future] = self._pending.get(future, 0) + calls
        # Only now: a bar may start a thread, and the executor's processes should be forked before.
        self.begin()
        future.add_done_callback(self._see)

    def expect(self, total: int) -> None:
        """Tell how many calls there are: no more will come."""
        with self._changed:
            self._total, self._is_certain = total, True
            self._begun = True
        self._show()

    def close(self, *, wait: bool = True) -> None:
        """Count what has ended by now, show that, and then nothing any more.

        Args:
            wait: whether to wait for a bar that another thread is drawing right now.
        """
        with self._changed:
            if not self._begun:
                self._display = None  # nothing has come of what was to be watched
            # Results can be read before the callbacks of their futures have run.
            done = [future for future in self._pending if future.done()]
        for future in done:
            self._count(future)
        with self._changed:
            self._closed = True
            self._pending = {}
            if self._total is None:
                self._total = self._ended + self._cancelled
        self._show()
        if wait and self._is_waited_for:
            here = threading.get_ident()
            with self._changed:
                self._changed.wait_for(lambda: self._showing in {None, here})

    async def until_end(self, results: AsyncGenerator[R, None]) -> AsyncGenerator[R, None]:
        """Yield what an asynchronous ``map`` yields; its end is the end of what is shown."""
        self.begin()
        try:
            while True:
                try:
                    # No name refers to the result while the reader has it.
                    yield await anext(results)
                except StopAsyncIteration:
                    return
        finally:
            try:
                await results.aclose()
            finally:
                self.close()

    def _see(self, future: Any) -> None:
        """See that a future is done; called by it."""
        if self._count(future):
            self._show()

    def _count(self, future: Any) -> bool:
        """Count what a future has come to, once; tell whether this is when."""
        if future not in self._pending:
            return False
        cancelled = future.cancelled()
        results = None if cancelled else self._results_of(future)
        size = sum(map(_size_of, results or ()))
        with self._changed:
            calls = self._pending.pop(future, 0)
            if not calls:
                return False
            if cancelled:
                self._cancelled += calls
            elif results is None:
                self._ended += calls
                self._failed += calls
            else:
                self._ended += len(results) if self.chunked else calls
                self._failed += sum(type(one) is Failed for one in results)
                self._bytes += size
        return True

    def _results_of(self, future: Any) -> list[Any] | None:
        """Return the results of a future that is done, as they are; ``None`` if it has an error."""
        try:
            result = _result_of(future)
        except Exception:  # noqa: BLE001 - it is raised for who reads it
            return None
        if not self.chunked:
            return [result]
        return list(result.results if type(result) is TimedOutcome else result)

    def _show(self) -> None:
        """Show the counts; if another thread is at it, it does so next."""
        with self._changed:
            self._is_news = True
            if self._showing is not None:
                return
            self._showing = threading.get_ident()
        try:
            while self._show_next():
                pass
        except BaseException:
            self._display = None
            self._rest()
            raise

    def _show_next(self) -> bool:
        """Show the counts if there is news; otherwise, leave showing to others."""
        with self._changed:
            display = self._display
            if display is None or not self._is_news:
                self._rest()
                return False
            self._is_news = False
            ended = self._ended + self._cancelled
            if self._is_certain and self._total is not None and ended >= self._total:
                self._closed = True
            counts = ProgressCounts(
                ended=self._ended,
                failed=self._failed,
                cancelled=self._cancelled,
                total=self._total,
                result_bytes=self._bytes,
                closed=self._closed,
            )
            if counts == self._shown:
                return True
            self._shown = counts
        try:
            display.show(counts)
            if counts.closed:
                self._display = None
                display.close()
        except Exception:  # noqa: BLE001 - of the display's, or of the user's function
            self._display = None
            # In words: a traceback would keep the frames of whoever had this to show.
            _log.warning(
                "progress is not shown any more, as showing it failed:\n%s", traceback.format_exc()
            )
        return True

    def _rest(self) -> None:
        with self._changed:
            self._showing = None
            self._changed.notify_all()


class MapProgress:
    """Shows the progress of one ``map``.

    Args:
        shows: what its argument ``progress`` is.
        function: what is called.
        iterables: where items are drawn from.
        draws_all: whether the call of ``map`` draws all items.

    Raises:
        TypeError: ``shows`` is neither a truth value nor can it be called.
        MissingExtraError: neither tqdm nor rich is installed.
    """

    def __init__(
        self,
        shows: ShowProgress,
        function: Any,
        iterables: Sequence[Any],
        *,
        draws_all: bool = False,
    ) -> None:
        self._total = _total_of(iterables)
        self.counting = Counting(_display_for(shows, function), self._total)
        self.iterables = tuple(iterables)
        self._draws_all = draws_all
        self._drawn: _Drawn[Any] | None = None

    def count_drawn(self) -> Sequence[Any]:
        """Return the iterables, of which it is known how many items have been drawn."""
        if self.iterables and (self._total is None or not self._draws_all):
            # From the last one, an item is drawn only if there is one of each of the others.
            self._drawn = _Drawn(self.iterables[-1])
            return *self.iterables[:-1], self._drawn
        return self.iterables

    def watching(self, submit: Submit, *, chunked: bool = False) -> Submit:
        """Return what submits the arguments of a call, or of several, and has them counted."""
        self.counting.chunked = chunked
        return functools.partial(_submit_watched, submit, self.counting)

    def of(self, results: Callable[[Sequence[Any]], Iterator[R]]) -> Iterator[R]:
        """Return the iterator of a ``map``, which shows how far it has come.

        Args:
            results: calls ``map`` with the iterables, whose calls go by way of :meth:`watching`.
        """
        counting = self.counting
        try:
            iterator = results(self.count_drawn())
        except BaseException:
            counting.close()
            raise
        counting.begin()
        drawn = self._drawn
        if drawn is not None and self._draws_all:
            counting.expect(drawn.count)
        return _Watched(iterator, counting, drawn)


class _Drawn(Iterator[R]):
    """Counts what is drawn from an iterable."""

    def __init__(self, iterable: Iterable[R]) -> None:
        self._iterator = iter(iterable)
        self.count = 0

    def __next__(self) -> R:
        self.count += 1
        try:
            return next(self._iterator)
        except BaseException:
            self.count -= 1
            raise


class _Watched(Iterator[R]):
    """An iterator whose end is the end of what is shown.

    Dropped unread, it lets the tasks run, and what is shown go on until they have ended.
    """

    def __init__(
        self, results: Iterator[R], counting: Counting, drawn: _Drawn[Any] | None = None
    ) -> None:
        self._results: Any = results
        self._counting = counting
        self._drawn = drawn

    def __del__(self) -> None:
        counting = self._counting
        if sys.is_finalizing():
            return
        # The garbage collector may be running anywhere: wait for nobody.
        if counting.is_read:
            counting.close(wait=False)
        elif self._drawn is not None:
            counting.expect(self._drawn.count)

    def __next__(self) -> R:
        self._counting.is_read = True
        try:
            # No name refers to the result while the caller has it.
            return next(self._results)  # type: ignore[no-any-return]
        except BaseException:
            self._counting.close()
            raise

    def close(self) -> None:
        """Close what is read from, and leave what is shown as it is."""
        try:
            self._results.close()
        finally:
            self._counting.close()


def _submit_watched(submit: Submit, counting: Counting, call: Sequence[Any]) -> Any:
    future = submit(call)
    counting.watch(future, len(call) if counting.chunked else 1)
    return future


def _display_for(shows: ShowProgress, function: Any) -> Display:
    if shows is True:
        return bar_named(callable_name(function))
    if not callable(shows):
        kind = type(shows).__name__
        raise TypeError(f"progress must be True, False, or a function of the counts, not {kind}")
    return Told(shows)


def _close_in(process: int, display: Display) -> None:
    if os.getpid() == process:  # not in a forked child
        display.close()


def _total_of(iterables: Sequence[Any]) -> int | None:
    """Return how many items ``zip`` makes of these, if that is known."""
    lengths = [_length_of(one) for one in iterables]
    shortest = min((math.inf if one is None else one for one in lengths), default=0)
    return None if None in lengths or shortest == math.inf else int(shortest)


def _length_of(iterable: Any) -> float | None:
    """Return how many items an iterable has; ``None`` if it does not say so."""
    try:
        if type(iterable) is itertools.repeat:
            return iterable.__length_hint__()
        return math.inf if type(iterable) is itertools.count else len(iterable)
    except Exception:  # noqa: BLE001 - of others; their items can be drawn nevertheless
        return math.inf if type(iterable) is itertools.repeat else None


def _result_of(future: Any) -> Any:
    """Return the result of a future that is done, without fetching it; raise its error."""
    if isinstance(future, TaskFuture):
        return future._peek()
    # A future of asyncio would say that somebody has seen its error.
    error = future._exception
    if error is not None:
        raise error
    return future.result()


def _size_of(result: Any) -> int:
    """Return how many bytes a result has, as far as that is known."""
    if type(result) is Deferred:
        return result.reference.size
    if is_proxy(result):
        return reference_of(result).size
    try:
        return data_size(result) or 0
    except Exception:  # noqa: BLE001 - of the object's
        return 0
