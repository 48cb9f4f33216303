"""One call, seen from the client: what it holds, and what becomes of its outcome.

Whatever happens to a task, what its call has stored is evicted when nobody can need it any
more: arguments when the task has ended, the result when it failed. Result keys are made up
here, so that this holds for a worker that died as well.

Knows nothing of base executors.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor
from typing import TYPE_CHECKING, Any

from proxyexec._future import Deferred
from proxyexec._proxy import make_proxy
from proxyexec._store import Store, leases_on, store_at
from proxyexec._task import ChunkOutcome, Context, Inline, Packed, Stored, chunk_key

if TYPE_CHECKING:
    from proxyexec._ownership import Lease

__all__ = ["Call", "ChunkCall", "PassedCall", "Tasks"]


class Tasks:
    """The tasks of one executor that are in flight, and what happens after the last one."""

    def __init__(self, store: Store, *, close_store: bool, ownership: bool) -> None:
        self.store = store
        self.ownership = ownership
        # Reentrant, as the executor's finalizer may run inside.
        self.lock = threading.RLock()
        # Results of tasks whose pool broke: other workers may have been writing when their
        # futures failed, so these keys are evicted once more when all workers are gone.
        self.doubtful: list[str] = []
        self._close_store = close_store
        store.enter()
        # Adding and discarding are atomic; a lock here would cost every task two rounds of it.
        self._in_flight: set[Call | PassedCall] = set()
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

    def _finish_after_last(self) -> None:
        with self.lock:
            if self._in_flight or self._finished:
                return
            self._finished = True
        self.store.evict_soon(self.doubtful)
        self.store.leave(close=self._close_store and self.ownership)


class Call:
    """One call, seen from the client: what it holds, and what becomes of its outcome."""

    __slots__ = ("_context", "_crosses", "_leases", "_lock", "_opened", "_packed", "_tasks", "key")

    def __init__(self, tasks: Tasks, context: Context, crosses: bool) -> None:
        self._tasks = tasks
        self._context = context
        self._crosses = crosses
        self._leases: list[Lease] | None = None
        # What travels for the arguments so far, by identity: one object stays one object.
        self._packed: dict[int, tuple[Any, Any]] | None = None
        self._opened: tuple[Any, BaseException | None] | None = None
        self._lock: threading.Lock | None = None
        self.key = context.store.new_key()
        tasks.add(self)

    def pack_function(self, function: Any) -> Any:
        """Make the callable ready to travel."""
        return self._take(self._context.pack_function(function, crossing=self._crosses))

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
        what = f"argument {name!r} of {getattr(function, '__qualname__', type(function).__name__)}"
        key = context.store.new_key()
        try:
            travels = self._take(context.pack(obj, key, what, crossing=self._crosses))
        except BaseException:
            context.store.evict_soon([key])  # a put that failed may have been carried out
            raise
        packed[id(obj)] = obj, travels
        return travels

    def seal(self) -> None:
        """Forget the arguments: all of them are packed."""
        self._packed = None

    def pack_chunk(self, arguments: Sequence[Any], name: int, function: Any) -> tuple[Any, ...]:
        """Make the arguments of one call of several ready to travel."""
        return tuple(self.pack(value, place, function) for place, value in enumerate(arguments))

    def open(self, outcome: Any) -> Any:
        """Return the result that an outcome stands for; see :class:`proxyexec._future.Call`."""
        if type(outcome) not in _SEALED:
            return outcome
        # The future's callback and its first reader may both be here; there is one result.
        with self._tasks.lock:
            lock = self._lock = self._lock or threading.Lock()
        with lock:
            if self._opened is None:
                try:
                    self._opened = self._open(outcome, self.key), None
                except Exception as error:  # noqa: BLE001 - raised below, each time
                    self._opened = None, error
        value, failure = self._opened
        if failure is not None:
            raise failure
        return value

    def end(self, error: BaseException | None = None) -> None:
        """Let go of the inputs, and evict the result if the call failed."""
        if error is not None:
            keys = self._keys()
            self._context.store.evict_soon(keys)
            if isinstance(error, BrokenExecutor):
                self._tasks.doubtful.extend(keys)
        if self._leases is not None:
            self._context.store.start_evicting()
            for lease in self._leases:
                lease.release()
            self._leases = None
        self._tasks.discard(self)

    def _take(self, packed: Packed) -> Any:
        """Hold what a packed object needs, and return what travels."""
        travels, key, proxies = packed
        if key is not None or proxies:
            leases = leases_on(proxies)
            if key is not None:
                leases = [self._context.store.take(key, leases)]
            self._leases = leases if self._leases is None else self._leases + leases
        return travels

    def _open(self, outcome: Any, key: str) -> Any:
        if type(outcome) is Inline:
            return self._context.load(outcome)
        if type(outcome) is not Stored:
            return outcome
        reference = outcome.reference
        store = store_at(reference.address)
        if not self._tasks.ownership:
            for one in (reference, *outcome.embedded):
                store_at(one.address).spare(one.key)
        lease = store.join(reference.key)
        if lease is None and reference.key == key and self._tasks.ownership:
            lease = store.take(key, leases_on(map(make_proxy, outcome.embedded)))
            store.start_evicting()
        if self._context.lazy:
            return make_proxy(reference, lease)
        return Deferred(lambda: store.get(reference), lease)

    def _keys(self) -> list[str]:
        return [self.key]


class ChunkCall(Call):
    """Several calls that travel together; its outcome is a list of theirs."""

    __slots__ = ("_length",)

    def __init__(self, tasks: Tasks, context: Context, crosses: bool, length: int) -> None:
        super().__init__(tasks, context, crosses)
        self._length = length

    def _open(self, outcome: Any, key: str) -> Any:
        return [
            super(ChunkCall, self)._open(one, chunk_key(key, number))
            for number, one in enumerate(outcome)
        ]

    def _keys(self) -> list[str]:
        return [chunk_key(self.key, number) for number in range(self._length)]


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


# Types of outcomes that stand for something else.
_SEALED = frozenset({Inline, Stored, ChunkOutcome})
