"""One call, seen from the client: what it holds, and what becomes of its outcome.

Whatever happens to a task, what its call has stored is evicted when nobody can need it any
more: arguments when the task has ended, the result when it failed. Result keys are made up
here, so that this holds for a worker that died as well.

Knows nothing of base executors.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from typing import TYPE_CHECKING, Any, ClassVar

from proxyexec._future import Deferred, TaskFuture
from proxyexec._proxy import Kept, Reference, make_proxy
from proxyexec._store import Store, is_in_memory, leases_of, store_at
from proxyexec._task import (
    PARTS_AT_MOST,
    ChunkOutcome,
    ChunkTask,
    Context,
    Inline,
    Packed,
    Stored,
    Task,
    chunk_key,
    part_key,
)
from proxyexec.errors import ArrivalError

if TYPE_CHECKING:
    from proxyexec_connectors.protocol import Frames

    from proxyexec._ownership import Lease
    from proxyexec._waiting import Waiting

__all__ = ["Call", "ChunkCall", "MappedFunction", "PassedCall", "Tasks"]


class Tasks:
    """The tasks of one executor that are in flight, and what happens after the last one.

    Args:
        store: where their objects are.
        close_store: whether to close it after the last task.
        ownership: whether results are evicted when nobody holds them any more.
        dedupe: whether what is stored already is not stored again.
    """

    takes_parts = True

    def __init__(self, store: Store, *, close_store: bool, ownership: bool, dedupe: bool) -> None:
        self.store = store
        self.ownership = ownership
        self.dedupe = dedupe
        # Reentrant, as the executor's finalizer may run inside.
        self.lock = threading.RLock()
        # Results of tasks whose pool broke: other workers may have been writing when their
        # futures failed, so these keys are evicted once more when all workers are gone.
        self.doubtful: list[str] = []
        self._close_store = close_store
        store.enter()
        # Adding and discarding are atomic; a lock here would cost every task two rounds of it.
        self._in_flight: set[Call | PassedCall] = set()
        # Of these, those that the base executor does not know of yet.
        self._waiting: set[Waiting] = set()
        self._when_launched: list[Callable[[], object]] = []
        self._ended = False
        self._finished = False

    def add(self, call: Call | PassedCall) -> None:
        """Count a call in.

        Raises:
            RuntimeError: the executor is shut down.
        """
        if self._ended:
            raise RuntimeError("cannot schedule new futures after shutdown")
        self._in_flight.add(call)

    def discard(self, call: Call | PassedCall) -> None:
        """Count a call out."""
        self._in_flight.discard(call)
        if self._ended:
            self._finish_after_last()

    def no_more(self) -> None:
        """Take no more calls; close the store (if it is to be) after the last one."""
        if not self.store.is_owner:  # in a forked child, where the lock may be held for ever
            return
        self._ended = True
        self._finish_after_last()

    def wait(self, waiting: Waiting) -> None:
        """Count in a call that waits for the results of others."""
        with self.lock:
            self._waiting.add(waiting)

    def launch(self, waiting: Waiting) -> None:
        """Count out a call that waits no more: the base executor knows it, or never will."""
        with self.lock:
            self._waiting.discard(waiting)
            if self._waiting:
                return
            actions, self._when_launched = self._when_launched, []
        for action in actions:
            action()

    def cancel_waiting(self) -> None:
        """Cancel the calls that wait for the results of others."""
        with self.lock:
            calls = list(self._waiting)
        for waiting in calls:
            waiting.cancel()

    def when_launched(self, action: Callable[[], object]) -> None:
        """Call ``action`` when no call waits for the results of others any more."""
        with self.lock:
            if self._waiting:
                self._when_launched.append(action)
                return
        action()

    def keep(self, obj: Any, frames: Frames, embedded: Sequence[Kept]) -> Kept:
        """Store an object; see :class:`proxyexec._task.Keeper`."""
        return self.store.hold(obj, frames, embedded, dedupe=self.dedupe)

    keep_part = keep

    def _finish_after_last(self) -> None:
        with self.lock:
            if self._in_flight or self._finished:
                return
            self._finished = True
        if self.doubtful:
            self.store.evict_soon(self.doubtful)
        self.store.leave(close=self._close_store and self.ownership)


class MappedFunction:
    """A callable for all tasks of one ``map``: it, and what it carries, is packed once.

    Each of its calls keeps this object, and this object keeps what the callable refers to.
    """

    def __init__(self, function: Any, tasks: Tasks, context: Context, crosses: bool) -> None:
        self.function = function
        self._tasks = tasks
        self._context = context
        self._crosses = crosses
        self._packed: Packed | None = None
        self._error: Exception | None = None

    def pack(self) -> Any:
        """Return what travels."""
        if self._error is not None:
            raise self._error
        if self._packed is None:
            try:
                self._packed = self._context.pack_function(
                    self.function, self._tasks, crossing=self._crosses
                )
            except Exception as error:
                self._error = error
                raise
        return self._packed.travels


class Call:
    """One call, seen from the client: what it holds, and what becomes of its outcome."""

    __slots__ = ("_context", "_crosses", "_held", "_opened", "_packed", "_tasks", "key")

    kind: ClassVar[type[Task]] = Task
    """What the base executor is given to call."""

    def __init__(self, tasks: Tasks, context: Context, crosses: bool) -> None:
        self._tasks = tasks
        self._context = context
        self._crosses = crosses
        self._held: list[Lease | MappedFunction] | None = None
        # What travels for the arguments so far, by identity: one object stays one object.
        self._packed: dict[int, tuple[Any, Any]] | None = None
        self._opened: tuple[Any, BaseException | None] | None = None
        self.key = context.store.new_key()
        tasks.add(self)

    def pack_function(self, function: Any) -> Any:
        """Make the callable ready to travel."""
        if type(function) is MappedFunction:
            travels = function.pack()
            self._hold([function])
            return travels
        packed = self._context.pack_function(function, self._tasks, crossing=self._crosses)
        return self._take(packed)

    def pack(self, obj: Any, name: int | str, function: Any) -> Any:
        """Make an argument ready to travel, and hold what it needs until the task has ended."""
        context = self._context
        if context.passes(obj):
            return obj
        packed = self._packed
        if packed is None:
            packed = self._packed = {}
        elif id(obj) in packed:
            return packed[id(obj)][1]
        value = obj._peek() if type(obj) is TaskFuture else obj
        borrowed = self._borrowed(value) if type(value) is Deferred else None
        if borrowed is not None:
            travels = self._take(Packed(Stored(borrowed.reference), [borrowed]))
        else:
            value = value.get() if type(value) is Deferred else value
            function = plain(function)
            called = getattr(function, "__qualname__", type(function).__name__)
            what = f"argument {name!r} of {called}"
            travels = self._take(context.pack(value, self._tasks, what, crossing=self._crosses))
        packed[id(obj)] = obj, travels
        return travels

    def seal(self) -> None:
        """Forget the arguments: all of them are packed."""
        self._packed = None

    def values(
        self, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Iterator[tuple[int | str, Any]]:
        """The arguments, with their names."""
        yield from enumerate(args)
        yield from kwargs.items()

    def pack_all(
        self, args: Sequence[Any], kwargs: dict[str, Any], function: Any
    ) -> tuple[Sequence[Any], dict[str, Any]]:
        """Make the arguments ready to travel."""
        return (
            [self.pack(value, place, function) for place, value in enumerate(args)],
            {name: self.pack(value, name, function) for name, value in kwargs.items()},
        )

    def open(self, outcome: Any) -> Any:
        """Return the result that an outcome stands for; see :class:`proxyexec._future.Call`."""
        if type(outcome) not in _SEALED:
            return outcome
        if self._opened is None:
            opened: tuple[Any, BaseException | None]
            try:
                opened = self._open(outcome, self.key), None
            except BaseException as error:  # noqa: BLE001 - raised below, each time
                opened = None, error
            # The future's callback and its readers may all be here; there is one result.
            with self._tasks.lock:
                if self._opened is None:
                    self._opened = opened
            del opened
        value, failure = self._opened
        if failure is not None:
            raise failure
        return value

    def end(self, error: BaseException | None = None) -> None:
        """Let go of the inputs, and evict the result if the call failed."""
        if error is not None:
            keys = self._keys()
            self._context.store.evict_soon(keys)
            if isinstance(error, BrokenExecutor) and not isinstance(error, ArrivalError):
                self._tasks.doubtful.extend(keys)
        held, self._held = self._held, None
        if held is not None:
            self._context.store.start_evicting()
            held.clear()  # which releases the leases
        self._tasks.discard(self)

    def _borrowed(self, result: Deferred) -> Kept | None:
        if self._crosses and is_in_memory(result.reference):
            return None
        return result.borrow()

    def _take(self, packed: Packed) -> Any:
        """Hold what a packed object refers to, and return what travels."""
        if packed.embedded:
            self._hold(leases_of(packed.embedded))
        return packed.travels

    def _hold(self, objects: Sequence[Lease | MappedFunction]) -> None:
        if self._held is None:
            self._held = []
        self._held.extend(objects)

    def _open(self, outcome: Any, key: str) -> Any:
        if type(outcome) is Inline:
            leases = self._leases_on(outcome.embedded, key)
            try:
                return self._context.unpack(outcome, "the result")  # proxies in it join the leases
            finally:
                del leases
        if type(outcome) is not Stored:
            return outcome
        reference = outcome.reference
        store = store_at(reference.address)
        companions = self._leases_on(outcome.embedded, key)
        if not self._tasks.ownership:
            store.spare(reference.key)
        lease = store.join(reference.key)
        if lease is None and reference.key == key and self._tasks.ownership:
            lease = store.take(key, companions)
            store.start_evicting()
        if self._context.lazy:
            return make_proxy(reference, lease)
        return Deferred(store, reference, lease)

    def _leases_on(self, references: Sequence[Reference], key: str) -> list[Lease]:
        """Hold what the result under ``key`` refers to: parts of it, and what it was given."""
        leases = []
        for reference in references:
            store = store_at(reference.address)
            if not self._tasks.ownership:
                store.spare(reference.key)
            lease = store.join(reference.key)
            if lease is None and self._tasks.ownership and reference.key.startswith(f"{key}+"):
                lease = store.take(reference.key)
                store.start_evicting()
            if lease is not None:
                leases.append(lease)
        return leases

    def _keys(self) -> list[str]:
        return self._keys_of_result(self.key)

    def _keys_of_result(self, key: str) -> list[str]:
        """All keys that a worker may have stored a result and its parts under."""
        context = self._context
        parts = PARTS_AT_MOST if context.nested and context.lazy else 0
        return [key, *(part_key(key, number) for number in range(parts))]


class ChunkCall(Call):
    """Several calls that travel together; its outcome is a list of theirs."""

    __slots__ = ("_length",)

    kind = ChunkTask

    def __init__(self, tasks: Tasks, context: Context, crosses: bool, length: int) -> None:
        super().__init__(tasks, context, crosses)
        self._length = length

    def values(
        self, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Iterator[tuple[int | str, Any]]:
        for one in args:
            yield from enumerate(one)

    def pack_all(
        self, args: Sequence[Any], kwargs: dict[str, Any], function: Any
    ) -> tuple[Sequence[Any], dict[str, Any]]:
        return [
            tuple(self.pack(value, place, function) for place, value in enumerate(one))
            for one in args
        ], kwargs

    def _open(self, outcome: Any, key: str) -> Any:
        return [
            super(ChunkCall, self)._open(one, chunk_key(key, number))
            for number, one in enumerate(outcome)
        ]

    def _keys(self) -> list[str]:
        return [
            key
            for number in range(self._length)
            for key in self._keys_of_result(chunk_key(self.key, number))
        ]


class PassedCall:
    """One call that passed untouched: there is nothing to open, evict or release."""

    __slots__ = ("_tasks",)

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        tasks.add(self)

    def open(self, outcome: Any) -> Any:
        return outcome

    def end(self, error: BaseException | None = None) -> None:
        self._tasks.discard(self)


def plain(function: Any) -> Any:
    """Return the callable itself."""
    return function.function if type(function) is MappedFunction else function


# Types of outcomes that stand for something else.
_SEALED = frozenset({Inline, Stored, ChunkOutcome})
