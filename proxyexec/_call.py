"""One call, seen from the client: what it holds, and what becomes of its outcome.

Whatever happens to a task, what its call has stored is evicted when nobody can need it any
more: arguments when the task has ended, the result when it failed. Result keys are made up
here, so that this holds for a worker that died as well.

Knows nothing of base executors.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor, CancelledError
from time import perf_counter as clock
from typing import TYPE_CHECKING, Any, ClassVar

from proxyexec._accounts import close_account
from proxyexec._carried import callable_name
from proxyexec._context import PARTS_AT_MOST, Context, Inline, Packed, Stored, part_key
from proxyexec._events import Sent, moved
from proxyexec._future import Deferred, TaskFuture
from proxyexec._mapped import MappedFunction
from proxyexec._measures import SMALL_AT_MOST
from proxyexec._opening import open_outcome
from proxyexec._record import Measured
from proxyexec._sizes import TINY
from proxyexec._store import is_in_memory, leases_of, note_all
from proxyexec._task import ChunkOutcome, Task, TimedOutcome
from proxyexec.errors import ArrivalError, ConnectorUnavailableError

if TYPE_CHECKING:
    from proxyexec._events import Moving, State
    from proxyexec._proxy import Kept
    from proxyexec._quota import Quota
    from proxyexec._record import Report
    from proxyexec._tasks import Tasks

__all__ = ["Call", "PassedCall"]

_log = logging.getLogger("proxyexec.executor")


class Call:
    """One call, seen from the client: what it holds, and what becomes of its outcome."""

    __slots__ = (
        "_called",
        "_context",
        "_crosses",
        "_ended",
        "_held",
        "_lent_to",
        "_opened",
        "_packed",
        "_report",
        "_sent",
        "_tasks",
        "key",
        "since",
    )

    kind: ClassVar[type[Task]] = Task
    """What the base executor is given to call."""

    late: ClassVar[bool] = False
    """Whether it may be made after the executor was shut down."""

    length = 1
    """How many calls it is."""

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
        # What was measured of what was sent, and by the worker.
        self._sent: list[tuple[Moving, int | str | None, Sent]] | None = None
        self._report: Report | None = None
        self._ended: tuple[State, str, float] | None = None
        self.since = 0.0
        """When the base executor was given it; 0 if it was not."""
        self.key = context.store.new_key()
        tasks.add(self)

    @property
    def quota(self) -> Quota | None:
        return self._tasks.store.quota

    def pack_function(self, function: Any) -> Any:
        """Make the callable ready to travel."""
        if type(function) is MappedFunction:
            packed = function.pack(self._context, crossing=self._crosses)
        else:
            packed = self._context.pack_function(function, self._tasks, crossing=self._crosses)
        return self._take(packed, "function", None)

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
            if type(obj) not in TINY or self._tasks.measures.every:
                self._see(obj, name)
            return obj
        if packed is None:
            packed = self._packed = {}
        value = obj._peek() if type(obj) is TaskFuture else obj
        borrowed = self._borrowed(value) if type(value) is Deferred else None
        if borrowed is not None:
            travels = self._take(context.refer(borrowed), "argument", name)
        else:
            value = value.get() if type(value) is Deferred else value
            what = f"argument {name!r} of {self._called}"
            ready = context.pack(value, self._tasks, what, crossing=self._crosses)
            if type(obj) is TaskFuture:
                ready = self._told_from(ready, obj)
            travels = self._take(ready, "argument", name)
        packed[id(obj)] = obj, travels
        return travels

    def _told_from(self, ready: Packed, future: TaskFuture[Any]) -> Packed:
        """Say whose result it is that is sent on, to who wants to know everything."""
        sent = ready.sent
        if sent is None or sent.path != "inline" or not self._tasks.measures.every:
            return ready
        return ready._replace(sent=sent._replace(key=getattr(future._call, "key", "")))

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
        if type(outcome) is Measured:
            self._report = outcome.report
            outcome = outcome.outcome
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
                if not self._tasks.doubtful:
                    _log.info(
                        "a worker was lost, and with it a call of %s: %s", self._called, error
                    )
                self._tasks.doubtful.append(self._keys)
        self._lent_to = None
        measures = self._tasks.measures
        if (
            error is None
            and self._report is None
            and self._sent is None
            and self.length == 1
            and not measures.every
        ):
            measures.small.append(clock() - self.since)
            if len(measures.small) > SMALL_AT_MOST:
                measures.settle()
        else:
            close_account(self, error)
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

    def _take(self, packed: Packed, what: Moving, name: int | str | None) -> Any:
        """Hold what a packed object refers to, and return what travels."""
        if packed.embedded:
            note_all(packed.embedded, what, name, self._called)
            self._hold(leases_of(packed.embedded))
        if packed.sent is not None:
            self._tasks.measures.send(packed.sent)
            if self._crosses and packed.sent.is_estimate:
                self._tasks.measures.see((packed.travels,))
            self._note(what, name, packed.sent)
        return packed.travels

    def _see(self, obj: Any, name: int | str) -> None:
        """Count an argument that travels as it is."""
        measures = self._tasks.measures
        sent = None
        if measures.every:
            sent = self._context.weighed(obj, crossing=self._crosses)
            self._note("argument", name, sent)
        if sent is not None and sent.exact:
            measures.send(sent)
        elif self._crosses:
            measures.see((obj,))

    def _note(self, what: Moving, name: int | str | None, sent: Sent) -> None:
        if self._sent is None:
            self._sent = []
        self._sent.append((what, name, sent))
        measures = self._tasks.measures
        if measures.observed:
            for event in moved(what, name, sent, self._context.policy, self.key):
                measures.tell(event)

    def _hold(self, objects: Sequence[Any]) -> None:
        if self._held is None:
            self._held = []
        self._held.extend(objects)

    def _open(self, outcome: Any, key: str) -> Any:
        return open_outcome(outcome, key, self._context, self._called, owns=self._tasks.ownership)

    def _keys(self, *, parts: bool = True) -> list[str]:
        """All keys that a worker may have stored a result under, and its parts."""
        return self._keys_of_result(self.key, parts=parts)

    def _keys_of_result(self, key: str, *, parts: bool) -> list[str]:
        context = self._context
        number_of_parts = PARTS_AT_MOST if parts and context.nested and context.lazy else 0
        return [key, *(part_key(key, number) for number in range(number_of_parts))]


class PassedCall:
    """One call that passed untouched: there is nothing to open, evict or release."""

    __slots__ = ("_crosses", "_length", "_tasks", "since")

    late: ClassVar[bool] = False

    def __init__(self, tasks: Tasks, crosses: bool, length: int = 1) -> None:
        self._tasks = tasks
        # Until its result is counted.
        self._crosses = crosses
        self._length = length
        self.since = 0.0
        tasks.add(self)

    @property
    def quota(self) -> Quota | None:
        return self._tasks.store.quota

    def open(self, outcome: Any) -> Any:
        if self._crosses and type(outcome) not in TINY:
            self._crosses = False
            self._tasks.measures.see((outcome,) if self._length == 1 else outcome)
        return outcome

    def end(self, error: BaseException | None = None) -> None:
        measures, ended = self._tasks.measures, clock()
        if error is None and self._length == 1:
            measures.small.append(ended - self.since)
            if len(measures.small) > SMALL_AT_MOST:
                measures.settle()
        else:
            measures.end(ended - self.since if self.since else None, self._length, error, None)
        self._tasks.discard(self)


# Types of outcomes that stand for something else.
_SEALED = frozenset({Inline, Stored, ChunkOutcome, TimedOutcome, Measured})
