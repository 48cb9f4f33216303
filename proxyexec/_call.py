"""One call, seen from the client: what it holds, and what becomes of its outcome.

Whatever happens to a task, what its call has stored is evicted when nobody can need it any
more: arguments when the task has ended, the result when it failed. Result keys are made up
here, so that this holds for a worker that died as well.

Knows nothing of base executors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor, CancelledError
from typing import TYPE_CHECKING, Any, ClassVar

from proxyexec._carried import callable_name
from proxyexec._context import PARTS_AT_MOST, Context, Inline, Packed, Stored, part_key
from proxyexec._future import Deferred, TaskFuture
from proxyexec._proxy import Kept, Reference, make_proxy
from proxyexec._store import is_in_memory, leases_of, store_at
from proxyexec._task import (
    HEAVIEST_BYTES,
    ChunkOutcome,
    ChunkTask,
    Failed,
    Task,
    TimedChunkTask,
    TimedOutcome,
    chunk_key,
    unpacked_error,
    weight_of,
)
from proxyexec.errors import ArrivalError, ConnectorUnavailableError

if TYPE_CHECKING:
    from proxyexec_connectors.protocol import Frames

    from proxyexec._ownership import Lease
    from proxyexec._quota import Quota
    from proxyexec._tasks import Tasks

__all__ = ["Call", "ChunkCall", "MappedFunction", "PassedCall", "TimedChunkCall", "plain"]


class MappedFunction:
    """A callable for all tasks of one ``map``; what it carries is stored once.

    Where it may change while items are drawn, it is packed for each task, as the standard library
    does. What has not changed is found again by its content, and held until the map has ended.

    Args:
        function: the callable.
        tasks: the executor's.
        kind: the class of its calls.
        may_change: whether code of others runs between one task and the next.
    """

    takes_parts = True

    def __init__(self, function: Any, tasks: Tasks, kind: type[Call], *, may_change: bool) -> None:
        self.function = function
        self.kind = kind
        self._may_change = may_change
        self._store = tasks.store
        self._packed: Packed | None = None

    def pack(self, context: Context, *, crossing: bool) -> Packed:
        """Make it ready to travel once more."""
        if self._packed is not None and not self._may_change:
            return self._packed
        # Let go of what was packed before only then, so that it is found.
        self._packed = context.pack_function(self.function, self, crossing=crossing)
        return self._packed

    def keep(self, obj: Any, frames: Frames, embedded: Sequence[Kept]) -> Kept:
        """Store an object; see :class:`proxyexec._context.Keeper`."""
        return self._store.hold(obj, frames, embedded, dedupe=True)

    keep_part = keep


class Call:
    """One call, seen from the client: what it holds, and what becomes of its outcome."""

    __slots__ = (
        "_called",
        "_context",
        "_crosses",
        "_held",
        "_lent_to",
        "_opened",
        "_packed",
        "_tasks",
        "key",
    )

    kind: ClassVar[type[Task]] = Task
    """What the base executor is given to call."""

    late: ClassVar[bool] = False
    """Whether it may be made after the executor was shut down."""

    def __init__(self, tasks: Tasks, context: Context, crosses: bool, function: Any) -> None:
        # Its name only: what has been called is not kept alive.
        self._called = callable_name(function)
        self._tasks = tasks
        self._context = context
        self._crosses = crosses
        # Leases, then futures that this call is linked to, and what their calls hold, which are
        # lists like this one: shared, so that a long chain costs no more than its links.
        self._held: list[Any] | None = None
        # What travels for the arguments so far, by identity: one object stays one object.
        self._packed: dict[int, tuple[Any, Any]] | None = None
        self._opened: tuple[Any, BaseException | None] | None = None
        # Calls that are handed this one's result so, and have to hold it once it is there.
        self._lent_to: list[Call] | None = None
        self.key = context.store.new_key()
        tasks.add(self)

    @property
    def quota(self) -> Quota | None:
        return self._tasks.store.quota

    def pack_function(self, function: Any) -> Any:
        """Make the callable ready to travel."""
        if type(function) is MappedFunction:
            return self._take(function.pack(self._context, crossing=self._crosses))
        packed = self._context.pack_function(function, self._tasks, crossing=self._crosses)
        return self._take(packed)

    def pack(self, obj: Any, name: int | str, *, later: bool = False) -> Any:
        """Make an argument ready to travel, and hold what it needs until the task has ended.

        Args:
            obj: the argument.
            name: its place, or its keyword.
            later: whether it is sent later, so that it has to be serialized now.
        """
        context = self._context
        packed = self._packed
        if packed is not None and id(obj) in packed:
            return packed[id(obj)][1]
        if context.passes(obj) and not (later and context.may_change(obj)):
            return obj
        if packed is None:
            packed = self._packed = {}
        value = obj._peek() if type(obj) is TaskFuture else obj
        borrowed = self._borrowed(value) if type(value) is Deferred else None
        if borrowed is not None:
            travels = self._take(context.refer(borrowed))
        else:
            value = value.get() if type(value) is Deferred else value
            what = f"argument {name!r} of {self._called}"
            travels = self._take(context.pack(value, self._tasks, what, crossing=self._crosses))
        packed[id(obj)] = obj, travels
        return travels

    def link(self, future: TaskFuture[Any], travels: Any) -> bool:
        """Have ``travels`` go in place of a future that is not done; tell whether it still is not.

        Its result is needed until this task has ended, and so is all that it was made of: a worker
        that dies takes outcomes with it, and they are made again, along the whole chain.
        """
        self._hold([future])
        other = future._call
        if isinstance(other, Call):
            held = other._held
            if held is not None:
                self._hold([held])
        if future.done() or (isinstance(other, Call) and not other._lend_to(self)):
            return False  # it may have let go of what it held
        if self._packed is None:
            self._packed = {}
        self._packed[id(future)] = future, travels
        return True

    def _lend_to(self, borrower: Call) -> bool:
        with self._tasks.lock:
            opened = self._opened
            if opened is None:
                self._lent_to = [*(self._lent_to or ()), borrower]
                return True
        return borrower._borrow(opened[0])

    def _borrow(self, result: Any) -> bool:
        """Hold a result until this call ends; ``False`` if it has been fetched, and evicted.

        One that is a proxy is held by the future that has it.
        """
        if type(result) is not Deferred or self._held is None:
            return True
        kept = result.borrow()
        if kept is not None and kept.lease is not None:
            self._hold([kept.lease])
        return kept is not None

    def seal(self) -> None:
        """Forget the arguments: all of them are packed."""
        self._packed = None

    def values(
        self, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Iterator[tuple[int | str, Any]]:
        """The arguments, with their names."""
        yield from enumerate(args)
        yield from kwargs.items()

    def pack_early(self, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """Make ready to travel, later, what is there of the arguments: it will be found again."""
        for name, value in self.values(args, kwargs):
            if type(value) is not TaskFuture:
                self.pack(value, name, later=True)

    def pack_all(
        self, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> tuple[Sequence[Any], dict[str, Any]]:
        """Make the arguments ready to travel."""
        return (
            [self.pack(value, place) for place, value in enumerate(args)],
            {name: self.pack(value, name) for name, value in kwargs.items()},
        )

    def open(self, outcome: Any) -> Any:
        """Return the result that an outcome stands for; see :class:`proxyexec._future.Call`."""
        if type(outcome) not in _SEALED:
            return outcome
        opened = self._opened
        if opened is None:
            try:
                opened = self._open(outcome, self.key), None
            except BaseException as error:  # noqa: BLE001 - raised below, each time
                opened = None, error
            opened = self._publish(opened)
        value, failure = opened
        del opened
        if failure is not None:
            raise failure
        return value

    def _publish(
        self, opened: tuple[Any, BaseException | None]
    ) -> tuple[Any, BaseException | None]:
        while True:
            # The future's callback and its readers may all be here; there is one result.
            with self._tasks.lock:
                lent, self._lent_to = self._lent_to, None
                if not lent:
                    if self._opened is None:
                        self._opened = opened
                    return self._opened
            # Before anybody can see it, fetch it, and have it evicted.
            for borrower in lent:
                borrower._borrow(opened[0])

    def end(self, error: BaseException | None = None) -> None:
        """Let go of the inputs, and evict the result if the call failed."""
        if error is not None and not self._never_ran(error):
            broken = isinstance(error, BrokenExecutor) and not isinstance(error, ArrivalError)
            # A worker that lives has removed the parts of what it could not deliver.
            self._context.store.evict_soon(
                self._keys(parts=not self._is_from_worker(error)),
                # A task that was cancelled while it ran goes on, and stores what it comes to.
                twice=isinstance(error, (ConnectorUnavailableError, CancelledError)),
            )
            if broken:
                self._tasks.doubtful.append(self._keys)
        self._lent_to = None
        held, self._held = self._held, None
        if held is not None:
            self._context.store.start_evicting()
            del held  # which releases the leases, unless others hold them
        self._tasks.discard(self)

    def _borrowed(self, result: Deferred) -> Kept | None:
        if self._crosses and is_in_memory(result.reference):
            return None
        return result.borrow()

    def _never_ran(self, error: BaseException) -> bool:
        """Tell that a worker cannot have stored anything: pools cancel what has not started."""
        return isinstance(error, CancelledError) and self._tasks.cancels_before_start

    def _is_from_worker(self, error: BaseException) -> bool:
        return not self._crosses or type(error.__cause__).__name__.endswith("RemoteTraceback")

    def _take(self, packed: Packed) -> Any:
        """Hold what a packed object refers to, and return what travels."""
        if packed.embedded:
            self._hold(leases_of(packed.embedded))
        return packed.travels

    def _hold(self, objects: Sequence[Any]) -> None:
        if self._held is None:
            self._held = []
        self._held.extend(objects)

    def _open(self, outcome: Any, key: str) -> Any:
        return self._open_one(outcome, key)

    def _open_one(self, outcome: Any, key: str) -> Any:
        if type(outcome) is Inline:
            leases = self._leases_on(outcome.embedded, key)
            try:
                return self._context.unpack(outcome, self._what)  # proxies in it join the leases
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
        if lease is None and reference.key == key:
            store.count(reference)
            if self._tasks.ownership:
                lease = store.take(key, companions)
                store.start_evicting()
        if self._context.lazy:
            return make_proxy(reference, lease)
        return Deferred(store, reference, lease, self._what)

    @property
    def _what(self) -> str:
        """What a result is to the caller, for messages."""
        return f"the result of {self._called}"

    def _leases_on(self, references: Sequence[Reference], key: str) -> list[Lease]:
        """Hold what the result under ``key`` refers to: parts of it, and what it was given."""
        leases = []
        for reference in references:
            store = store_at(reference.address)
            if not self._tasks.ownership:
                store.spare(reference.key)
            lease = store.join(reference.key)
            if lease is None and reference.key.startswith(f"{key}+"):
                store.count(reference)
                if self._tasks.ownership:
                    lease = store.take(reference.key)
                    store.start_evicting()
            if lease is not None:
                leases.append(lease)
        return leases

    def _keys(self, *, parts: bool = True) -> list[str]:
        """All keys that a worker may have stored a result under, and its parts."""
        return self._keys_of_result(self.key, parts=parts)

    def _keys_of_result(self, key: str, *, parts: bool) -> list[str]:
        context = self._context
        number_of_parts = PARTS_AT_MOST if parts and context.nested and context.lazy else 0
        return [key, *(part_key(key, number) for number in range(number_of_parts))]


class ChunkCall(Call):
    """Several calls that travel together; its outcome is a list of theirs."""

    __slots__ = ("_length",)

    kind = ChunkTask

    def __init__(
        self, tasks: Tasks, context: Context, crosses: bool, function: Any, length: int
    ) -> None:
        super().__init__(tasks, context, crosses, function)
        self._length = length

    def values(
        self, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Iterator[tuple[int | str, Any]]:
        for one in args:
            yield from enumerate(one)

    def pack_all(
        self, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> tuple[Sequence[Any], dict[str, Any]]:
        return [
            tuple(self.pack(value, place) for place, value in enumerate(one)) for one in args
        ], kwargs

    def _open(self, outcome: Any, key: str) -> Any:
        return [self._open_one(one, chunk_key(key, number)) for number, one in enumerate(outcome)]

    def _keys(self, *, parts: bool = True) -> list[str]:
        return [
            key
            for number in range(self._length)
            for key in self._keys_of_result(chunk_key(self.key, number), parts=parts)
        ]


class TimedChunkCall(ChunkCall):
    """Several calls that travel together, each as if it were alone.

    Its outcome is a :class:`TimedOutcome`. Not all of the calls need to have been made.
    """

    __slots__ = ("_unsent",)

    kind = TimedChunkTask
    late = True  # the map is announced; see proxyexec._chunks

    def __init__(
        self, tasks: Tasks, context: Context, crosses: bool, function: Any, length: int
    ) -> None:
        super().__init__(tasks, context, crosses, function, length)
        # By number, why calls could not be sent.
        self._unsent: dict[int, Exception] = {}

    def pack_all(
        self, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> tuple[Sequence[Any], dict[str, Any]]:
        chunk: list[tuple[Any, ...]] = []
        weight = 0
        quota = self.quota
        before = None if quota is None else quota.counted_here()
        for number, one in enumerate(args):
            try:
                # What may change is serialized now: in one message, it would be one object.
                travels = tuple(
                    self.pack(value, place, later=True) for place, value in enumerate(one)
                )
            except Exception as error:  # noqa: BLE001 - this call's, not the others'
                self._unsent[number] = error
                travels = (_UNSENT,)
            chunk.append(travels)
            weight += sum(map(weight_of, travels))
            # What is stored takes room, and there is to be some for the next item.
            if weight > HEAVIEST_BYTES or (quota is not None and quota.counted_here() != before):
                break  # the rest will be sent again
        return chunk, kwargs

    def _open(self, outcome: Any, key: str) -> Any:
        results = outcome.results
        if self._unsent or not _PACKED.isdisjoint(map(type, results)):
            results = [self._open_if_any(one, key, number) for number, one in enumerate(results)]
        return TimedOutcome(results, outcome.seconds)

    def _open_if_any(self, result: Any, key: str, number: int) -> Any:
        if number in self._unsent:
            return Failed(self._unsent[number])
        key = chunk_key(key, number)
        if type(result) is Failed:
            # A worker that lives has removed the parts of what it could not deliver.
            self._context.store.evict_soon(self._keys_of_result(key, parts=False))
            return Failed(unpacked_error(result.error, self._context.errors(), self._called))
        try:
            return self._open_one(result, key)
        except Exception as error:  # noqa: BLE001 - it is raised in its turn
            return Failed(error)


class PassedCall:
    """One call that passed untouched: there is nothing to open, evict or release."""

    __slots__ = ("_tasks",)

    late: ClassVar[bool] = False

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        tasks.add(self)

    @property
    def quota(self) -> Quota | None:
        return self._tasks.store.quota

    def open(self, outcome: Any) -> Any:
        return outcome

    def end(self, error: BaseException | None = None) -> None:
        self._tasks.discard(self)


def plain(function: Any) -> Any:
    """Return the callable itself."""
    return function.function if type(function) is MappedFunction else function


# Types of outcomes that stand for something else.
_SEALED = frozenset({Inline, Stored, ChunkOutcome, TimedOutcome})

# Types of results that stand for something else, or for none.
_PACKED = frozenset({Inline, Stored, Failed})

# Travels in place of the arguments of a call that cannot be sent; cannot be unpacked.
_UNSENT = Inline(b"")
