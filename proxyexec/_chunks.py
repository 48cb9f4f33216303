"""``map`` with ``chunksize="auto"``: chunks as large as their run times make worth while.

A chunk should take some hundredths of a second: long beside what sending it costs, short for who
waits. So items go one by one at first; workers measure; and chunks grow, by a factor at most, to
what takes that long, and shrink at once where items are slow. Nobody waits behind a chunk that
was sized by mistake: a worker leaves the rest of what takes too long, and it is sent again, in
smaller chunks. Towards the end chunks become smaller, so that all workers finish together.

Under a quota, no chunk is sent before there is room, unless nobody could make any: while something
is under way, or the reader of results has some to let go of, somebody can.

There is no thread for this. Whoever draws items gives the first chunks to the executor, and the
callbacks of their futures give the next. A map under way is a task in flight to its executor,
and one that has tasks to give yet: being shut down, the executor waits for it.

Knows nothing of policies or stores.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import heapq
import itertools
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Future
from typing import TYPE_CHECKING, Any, ClassVar

from proxyexec._future import Deferred, TaskFuture
from proxyexec._map import Results, are_at_hand, checked_buffersize, deadline_after
from proxyexec._proxy import is_proxy
from proxyexec._task import Failed
from proxyexec._waiting import announce
from proxyexec.errors import ArrivalError

if TYPE_CHECKING:
    from proxyexec._task import TimedOutcome
    from proxyexec._tasks import Tasks

    # The arguments of a call, and its number.
    Item = tuple[int, Sequence[Any]]
    Submit = Callable[[Sequence[Sequence[Any]]], Future[TimedOutcome]]

__all__ = ["automatic_results"]


def automatic_results(
    submit: Submit,
    iterables: Sequence[Iterable[Any]],
    timeout: float | None,
    buffersize: int | None,
    tasks: Tasks,
    workers: int,
    size: int | None = None,
) -> Iterator[Any]:
    """Submit the tuples of items in chunks, and return an iterator of the results.

    Args:
        submit: gives one chunk to the executor.
        iterables: where items are drawn from.
        timeout: seconds within which each result has to be there.
        buffersize: how many items may be under way ahead of the results consumed.
        tasks: the executor's.
        workers: how many tasks it runs at a time.
        size: of the chunks, if it is not to be found.
    """
    deadline = deadline_after(timeout)
    buffer = checked_buffersize(buffersize)
    calls = zip(*iterables) if iterables else iter(())  # noqa: B905 - as map does
    items = (item for item in enumerate(calls))  # which asks no iterable again after the end
    arrived = _Arrived()
    chunks = _Chunks(submit, tasks, workers, arrived, size)
    try:
        if buffer is None and are_at_hand(iterables):
            chunks.add(list(items))
        else:
            for item in itertools.islice(items, buffer):
                chunks.add([item])
        if buffer is None:
            chunks.close()
    except BaseException:
        chunks.cancel()
        raise
    return Results(_in_order(chunks, arrived, items, deadline), chunks.cancel)


def _in_order(
    chunks: _Chunks, arrived: _Arrived, items: Iterator[Item], deadline: float | None
) -> Generator[Any]:
    try:
        for number in itertools.count():
            if not chunks.closed:
                _draw(chunks, items)
            if chunks.bounded:
                chunks.go_on()
            if number not in arrived and not chunks.wait(number, arrived, deadline):
                return
            # No name refers to the result while the caller has it.
            yield _take(arrived, number)
    finally:
        chunks.leave()
        arrived.clear()
        del chunks  # an error's traceback refers to this frame


def _draw(chunks: _Chunks, items: Iterator[Item]) -> None:
    for item in items:
        chunks.add([item])
        return
    chunks.close()


def _take(arrived: _Arrived, number: int) -> Any:
    result = arrived.pop(number)
    if type(result) is Deferred:
        return result.get()
    if type(result) is Failed:
        try:
            raise result.error
        finally:
            del result  # the error's traceback refers to this frame
    return result


class _Arrived(dict[int, Any]):
    """Results that have come back, by the number of the item.

    Whoever reads them holds it; when nobody does, they are not kept.
    """

    __slots__ = ("__weakref__",)


class _Chunk:
    """Items that travel together."""

    __slots__ = ("future", "items", "slots")

    def __init__(self, items: list[Item], slots: int) -> None:
        self.items = items
        self.slots = slots
        self.future: Future[TimedOutcome] | None = None


class _Turn:
    """Tells the executor that a map has chunks to give; there is one for as long as that lasts.

    One of the :class:`~proxyexec._tasks.Pending` and the :class:`~proxyexec._tasks.Counted`.
    """

    late: ClassVar[bool] = False

    def __init__(self, chunks: _Chunks) -> None:
        self._chunks = chunks
        self.tasks = chunks.tasks
        self.process = chunks.process

    def cancel(self) -> None:
        self._chunks.cancel()

    def go_on(self) -> None:
        self._chunks.go_on()


class _Chunks:
    """The chunks of one map: what is to be sent, what is under way, and how large they are.

    One thread draws items, adds them, and waits for results.

    Args:
        submit: gives one chunk to the executor.
        tasks: the executor's.
        workers: how many tasks it runs at a time.
        arrived: where to put what comes back.
        size: of a chunk, if it is not to be found.
    """

    def __init__(
        self,
        submit: Submit,
        tasks: Tasks,
        workers: int,
        arrived: _Arrived,
        size: int | None = None,
    ) -> None:
        self.tasks = tasks
        self.process = os.getpid()
        self.closed = False
        """Whether all items are drawn."""
        self._submit: Submit | None = submit
        self._arrived: Callable[[], _Arrived | None] = weakref.ref(arrived)
        # Guards all below. Reentrant, as the garbage collector may drop an iterator inside, which
        # cancels: what that takes away is replaced, and not changed.
        self._changed = threading.Condition()
        # What is to be sent: items that no worker has seen, and, before these, those that one has
        # left, a heap.
        self._drawn: deque[Item] = deque()
        self._left: list[Item] = []
        self._number_drawn = 0
        self._under_way: set[_Chunk] = set()
        # How many more chunks may be.
        self._ahead = self._slots = _CHUNKS_AHEAD * workers
        # The most items that a chunk may have, and how many are not worth dividing.
        self._size = self._least = size or 1
        self._given_size = size
        self._feeding = False
        self._quota = tasks.store.quota
        # How much the last chunk has stored: as a rule, the next one stores as much.
        self._expected = 0
        self._turn: _Turn | None = None
        # Why nothing is sent any more.
        self._stopped: BaseException | None = None
        if self._quota is not None:
            self._quota.resume(self)

    @property
    def bounded(self) -> bool:
        """Whether chunks may have to wait for room."""
        return self._quota is not None

    def add(self, items: Sequence[Item]) -> None:
        """Take items that were drawn, and send them: now, or when one of the chunks has arrived.

        Raises:
            RuntimeError: the executor is shut down.
            BaseException: what giving a chunk to it raised.
        """
        with self._changed:
            if items and (self._turn is None or self.tasks.ended):
                self._take_turn()
            self._drawn.extend(items)
            self._number_drawn += len(items)
        self._feed(by_reader=True)
        self._raise_if_stopped()

    def close(self) -> None:
        """Take no more items."""
        with self._changed:
            self.closed = True
        self._end_turn_if_done()

    def wait(self, number: int, arrived: _Arrived, deadline: float | None) -> bool:
        """Wait for the result of an item; return whether there is such an item.

        Raises:
            TimeoutError: it is not there in time.
            BaseException: it was not sent; what kept it from that.
        """
        while True:
            with self._changed:
                while number not in arrived:
                    if number == self._number_drawn:
                        return False
                    if not self._is_under_way(number):
                        self._raise_if_stopped()
                    if self._is_held_up():
                        break
                    left = None if deadline is None else deadline - time.monotonic()
                    if left is not None and left <= 0:
                        raise concurrent.futures.TimeoutError
                    self._changed.wait(left)
                else:
                    return True
            self._feed(by_reader=True, needed=True)

    def cancel(self) -> None:
        """Send nothing any more, and cancel what has not started."""
        if self.process != os.getpid():  # in a forked child, where the lock may be held for ever
            return
        with self._changed:
            self._stop(CancelledError())
            chunks = sorted(self._under_way, key=lambda chunk: chunk.items[0][0])
            futures = [chunk.future for chunk in chunks]
        del chunks
        while futures:  # the last first: a worker takes the next one, which is the first
            future = futures.pop()
            if future is not None:
                future.cancel()
        self._end_turn_if_done()

    def leave(self) -> None:
        """Cancel, and keep nothing that arrives from now on."""
        # Whoever has the error that ended the reading has, by its traceback, where results arrive.
        self._arrived = _nobody
        self.cancel()

    def go_on(self) -> None:
        """Give chunks to the executor, if there is room by now."""
        self._feed()

    def _feed(self, *, by_reader: bool = False, needed: bool = False) -> None:
        """Give chunks to the executor while it should have more.

        Args:
            by_reader: whether this is the thread that draws items and reads results.
            needed: whether it can read no further before something is sent.
        """
        with self._changed:
            if self._feeding:
                return  # whoever does looks again before it ends
            self._feeding = True
        while True:
            with self._changed:
                alone = self._is_alone(by_reader=by_reader)
                sends = (needed and not self._under_way) or self._may_send(alone=alone)
                chunk, submit = self._next_chunk() if sends else None, self._submit
                if chunk is None or submit is None:
                    self._feeding = False
                    if self._quota is not None:
                        self._changed.notify_all()  # the reader, who may send what this does not
                    break
                self._under_way.add(chunk)
                self._slots -= chunk.slots
            try:
                chunk.future = future = self._sent(submit, chunk, waits=by_reader and alone)
            except BaseException as error:  # noqa: BLE001 - raised where items are drawn or read
                with self._changed:
                    self._under_way.discard(chunk)
                    self._stop(error)
            else:
                if isinstance(self._stopped, CancelledError):
                    # By somebody who may not have seen the future.
                    future.cancel()
                future.add_done_callback(functools.partial(self._arrive, chunk))
                del future
        self._end_turn_if_done()

    def _sent(self, submit: Submit, chunk: _Chunk, *, waits: bool) -> Future[TimedOutcome]:
        calls = [arguments for _, arguments in chunk.items]
        quota = self._quota
        if quota is None:
            return submit(calls)
        before = quota.counted_here()
        with contextlib.nullcontext() if waits else quota.unbounded():
            future = submit(calls)
        self._expected = quota.counted_here() - before
        return future

    def _is_alone(self, *, by_reader: bool) -> bool:
        """Tell that nothing of this map takes room that somebody will make."""
        if self._quota is None or self._under_way:
            return False
        # What has arrived, the reader lets go of; if nobody reads, it is not kept.
        arrived = self._arrived()
        return not arrived if by_reader else arrived is None

    def _may_send(self, *, alone: bool) -> bool:
        quota = self._quota
        return quota is None or alone or self.tasks.hurried or quota.has_room(self._expected)

    def _is_held_up(self) -> bool:
        """Tell that nothing will come unless the reader sends more."""
        if self._quota is None or self._feeding or self._under_way:
            return False
        return self._stopped is None and bool(self._left or self._drawn)

    def _next_chunk(self) -> _Chunk | None:
        """Take the items of a chunk that is to be sent now."""
        if self._stopped is not None:
            return None
        to_send = len(self._left) + len(self._drawn)
        # All workers should end together; but what takes no time is not worth dividing.
        length = max(to_send // self._ahead, self._least)
        items: list[Item] = []
        for _ in range(min(length, self._size, to_send)):
            _, arguments = self._left[0] if self._left else self._drawn[0]
            if TaskFuture in map(type, arguments):
                # It is waited for, which takes no worker, and keeps no other item waiting.
                if items:
                    break
                return _Chunk([self._pop()], slots=0)
            if self._slots < 1:
                break
            items.append(self._pop())
        return _Chunk(items, slots=1) if items else None

    def _pop(self) -> Item:
        return heapq.heappop(self._left) if self._left else self._drawn.popleft()

    def _arrive(self, chunk: _Chunk, future: Future[TimedOutcome]) -> None:
        """See what has become of a chunk; called by its future."""
        try:
            outcome: TimedOutcome | BaseException = future.result(0)
        except BaseException as error:  # noqa: BLE001 - raised by whoever reads it
            outcome = error
        del future
        arrived = self._arrived()
        with self._changed:
            self._under_way.discard(chunk)
            self._slots += chunk.slots
            items, chunk.items, chunk.future = chunk.items, [], None
            numbers = [number for number, _ in items]
            if isinstance(outcome, BaseException):
                if arrived is not None:
                    arrived.update(dict.fromkeys(numbers, Failed(outcome)))
                if chunk.slots and _is_broken(outcome):
                    # Nothing can be given to the pool, not even from here: it may hold its locks.
                    # All that is under way fails; and some pools cannot bear its being cancelled.
                    self._stop(outcome)
                    self._under_way = set()
            else:
                called = len(outcome.results)
                self._measure(outcome, len(numbers) - called)
                if self._stopped is None:
                    for item in items[called:]:
                        heapq.heappush(self._left, item)
                if arrived is not None:
                    arrived.update(zip(numbers, outcome.results, strict=False))
            self._changed.notify_all()
        del items, outcome, arrived
        if chunk.slots:
            self._feed()
        else:  # there is no more room than before; and what has failed may be another pool
            self._end_turn_if_done()

    def _measure(self, outcome: TimedOutcome, left: int) -> None:
        """Learn from a chunk how large the next ones should be."""
        if self._quota is not None and any(map(_takes_room, outcome.results)):
            self._size = self._least = 1  # for how many is room, workers do not know
            return
        if self._given_size is not None:
            self._size = self._least = self._given_size
            return
        called = len(outcome.results)
        in_a_second = called / max(outcome.seconds, 1e-9)
        ideal = called if left else _MOST_ITEMS
        ideal = min(ideal, int(_CHUNK_SECONDS * in_a_second))
        self._size = max(1, min(ideal, max(self._size, called * _GROWTH)))
        self._least = max(1, int(_LEAST_SECONDS * in_a_second))

    def _is_under_way(self, number: int) -> bool:
        return any(number == item[0] for chunk in self._under_way for item in chunk.items)

    def _stop(self, error: BaseException) -> None:
        """Send nothing any more; whoever waits for what is not sent gets ``error``."""
        if self._stopped is None:
            self._stopped = error
            self._drawn, self._left = deque(), []
            self._changed.notify_all()

    def _raise_if_stopped(self) -> None:
        error = self._stopped
        if error is not None:
            self._stopped = CancelledError()  # the error's traceback may refer to this object
            try:
                raise error
            finally:
                del error

    def _take_turn(self) -> None:
        turn = _Turn(self)
        self.tasks.add(turn)  # or raise
        announce(turn)
        self._turn = turn

    def _end_turn_if_done(self) -> None:
        with self._changed:
            to_come = self._stopped is None and (self._drawn or self._left or self._under_way)
            if self._feeding or to_come:
                return
            turn, self._turn = self._turn, None
            if self.closed or self._stopped is not None:
                self._submit = None  # it keeps the function and the executor alive
        if turn is not None:
            self.tasks.launch(turn)
            self.tasks.discard(turn)


def _nobody() -> None:
    """Stands in for the reader of results."""


def _takes_room(result: Any) -> bool:
    return type(result) is Deferred or is_proxy(result)


def _is_broken(error: BaseException) -> bool:
    return isinstance(error, BrokenExecutor) and not isinstance(error, ArrivalError)


# What a chunk should take, and what is not worth dividing further. Sending one and getting its
# results takes a quarter of a millisecond; a worker leaves the rest of one that takes more than
# twice what it should.
_CHUNK_SECONDS = 0.02
_LEAST_SECONDS = 0.001

# How many times as large as one that was measured a chunk may be, and how large at all.
_GROWTH = 8
_MOST_ITEMS = 4096

# How many chunks are under way for each worker: one that it runs, and one that is there for it.
_CHUNKS_AHEAD = 2
