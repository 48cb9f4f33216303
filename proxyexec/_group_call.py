"""One call of a task group, seen from a client.

Its future is settled by the first outcome that is written down, whoever wrote it: a worker that
this client gave the call to, or one of another client. What the call's arguments refer to is held
until then, and evicted only when there is an outcome: else somebody may yet make the call.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from proxyexec_connectors._layout import split

from proxyexec._context import Inline, Stored
from proxyexec._future import Deferred, TaskFuture, cancel, new_future
from proxyexec._group_envelope import envelope_of
from proxyexec._group_records import OutcomeRecord, check_python, outcome_key
from proxyexec._group_task import error_of, references_of
from proxyexec._ownership import Lease
from proxyexec._proxy import make_proxy
from proxyexec._waiting import Awaiting, announce
from proxyexec.errors import ProxyExecError

if TYPE_CHECKING:
    from proxyexec_connectors.protocol import Frames

    from proxyexec._group_calls import GroupCalls

__all__ = ["GroupCall"]


class GroupCall(Awaiting):
    """A call of a group; see :class:`proxyexec._future.Call` and :class:`proxyexec._tasks.Pending`.

    Args:
        key: the call's id.
        name: of its function.
        group: the executor's calls, of which it is one.
    """

    late: ClassVar[bool] = False

    def __init__(self, key: str, name: str, group: GroupCalls) -> None:
        super().__init__()
        self.key = key
        self.name = name
        self.tasks = group.tasks
        self.process = os.getpid()
        self.settled = False
        """Whether an outcome is written down, as far as this client knows."""
        self.written = True
        """Whether the call is written down, once it waits for others, or is given to a worker."""
        self._context = group.context
        self._store = group.store
        self._group = group
        self._held: list[_InputLease] = []
        self._base: Any = None
        # Guarded by the lock, as what follows.
        self._over = False
        self._state = _NEW
        self._withdrawing = False
        self._opened: tuple[Any, BaseException | None] | None = None
        self.tasks.add(self)
        self.future: TaskFuture[Any] | None = new_future(self, _Ticket(self))

    def hold(self, leases: Sequence[Lease]) -> None:
        """Keep what the call needs until it has ended."""
        self._held.extend(map(_InputLease.of, leases))

    # Giving it to the base executor, now or later.

    def launch(self, launch: Callable[[], Any]) -> None:
        """Give the call to the base executor; ``launch`` does so, and returns its future."""
        with self._lock:
            if self._over:
                return
            self._state = _GIVEN
        try:
            base = launch()
        except BaseException as error:
            self.fail(error)
            if not isinstance(error, Exception):
                raise
            return
        self._base = base
        self.tasks.launch(self)
        base.add_done_callback(self._follow)

    def launch_after(self, futures: Sequence[TaskFuture[Any]], launch: Callable[[], Any]) -> None:
        """Give the call to the base executor once these futures are done."""
        with self._lock:
            if self._over:
                return
            self._state, self._launch, self._missing = _WAITING, launch, len(futures)
        announce(self)
        for future in futures:
            future.add_done_callback(self.when_done)

    def watch(self) -> None:
        """Leave the call to whoever runs it; the watcher will say what it comes to."""
        self._state = _WATCHED
        announce(self)

    def lose(self) -> None:
        """Go on without whoever has run the call: he has died."""
        self._group.lose(self)

    def _start(self, launch: Callable[[], Any]) -> None:
        self.launch(launch)

    def _fail_as(self, future: TaskFuture[Any], error: BaseException | None) -> None:
        """End as a call that this one waits for has; what is not written down there is not here."""
        other: Any = future._call
        try:
            if self.written and getattr(other, "settled", False):
                self.settle(self._group.write_as(self, other.key))
            elif error is None:
                self.let_go()
            else:
                self.fail(error)
        except ProxyExecError as failure:
            self.fail(failure)

    def _follow(self, base: Any) -> None:
        try:
            if base.cancelled():
                with self._lock:
                    withdrawing = self._withdrawing
                if not withdrawing:
                    self.let_go()
            elif (error := base.exception()) is not None:
                self.fail(error)
            else:
                self.settle_with(split(base.result()))
        finally:
            self._base = None

    # Its end.

    def settle_with(self, frames: Frames) -> None:
        """End with an outcome as it is written down."""
        try:
            key = outcome_key(self.key)
            outcome = OutcomeRecord.read(frames, key, self._store.connector.url)
        except Exception as error:  # noqa: BLE001 - reaches who has the future
            self.fail(error)
        else:
            self.settle(outcome)

    def settle(self, outcome: OutcomeRecord) -> None:
        """End with an outcome that is written down."""
        with self._ending(settled=True) as future:
            if future is None:
                return
            if outcome.state == "cancelled":
                cancel(future)
            elif outcome.state == "failed":
                future.set_exception(error_of(self._context, outcome))
            else:
                future.set_result(outcome)

    def fail(self, error: BaseException) -> None:
        """End without an outcome: whoever reloads the group may have the call made."""
        with self._ending(settled=False) as future:
            if future is not None:
                future.set_exception(error)

    def let_go(self) -> None:
        """Cancel the future, and write nothing down."""
        with self._ending(settled=False) as future:
            if future is not None:
                cancel(future)

    cancel = let_go  # by an executor that is shut down, its futures cancelled

    def withdraw(self) -> bool:
        """Cancel the call if it has not started; tell whether it is, and write that down."""
        with self._lock:
            if self._over or self._state == _WATCHED:
                return False
            is_unknown, base = self._state == _NEW or not self.written, self._base
            if self._state == _GIVEN and base is None:  # this moment
                return False
            self._launch = None
            self._withdrawing = True
        if is_unknown:  # nothing is written down yet
            self.let_go()
            return True
        if base is not None and not base.cancel():
            with self._lock:
                self._withdrawing = False
            return False
        try:
            outcome = self._group.write_cancelled(self)
        except ProxyExecError as error:
            self.fail(error)
            return False
        self.settle(outcome)
        return outcome.state == "cancelled"  # or somebody was quicker

    def is_running(self) -> bool:
        """Tell whether the call is being made, as far as one can tell."""
        with self._lock:
            if self._over or self._state in (_NEW, _WAITING):
                return False
            base = self._base
        return self._state == _WATCHED or bool(base is not None and base.running())

    @contextmanager
    def _ending(self, *, settled: bool) -> Iterator[TaskFuture[Any] | None]:
        """Give the future to whoever is first to end the call."""
        with self._lock:
            future = None if self._over else self.future
            if future is not None:
                self._over, self.settled = True, settled
                self._launch = self.future = None
        try:
            yield future
        finally:
            if future is not None:
                future._base = None  # only now: until then, it is this call that refuses to cancel
                self.tasks.launch(self)
            del future  # an error's traceback may refer to this frame

    # For the future; see proxyexec._future.Call.

    @property
    def quota(self) -> None:
        """A group has none."""
        return None

    def open(self, outcome: Any) -> Any:
        """Return the result that an outcome stands for, the same one each time, or raise."""
        if type(outcome) is not OutcomeRecord:
            return outcome
        opened = self._opened
        if opened is None:
            try:
                opened = self._open(outcome), None
            except BaseException as error:  # noqa: BLE001 - raised below, each time
                opened = None, error
            with self._lock:  # the future's callback and its readers may all be here
                opened = self._opened = self._opened or opened
        value, failure = opened
        del opened
        if failure is not None:
            raise failure
        return value

    def end(self, error: BaseException | None = None) -> None:
        """Let go of the inputs; they are evicted if nobody will make the call again."""
        held, self._held = self._held, []
        if held:
            for lease in held:
                lease.evicts = self.settled
            self._store.start_evicting()
        del held
        self.tasks.measures.end(None, 1, error, None)
        self.tasks.discard(self)

    def _open(self, outcome: OutcomeRecord) -> Any:
        context, what = self._context, f"the result of {self.name}"
        check_python(outcome, what)
        travels = envelope_of(context).loads(outcome.body)
        # Results belong to the group; the leases keep the store open, and no more.
        leases = [self._leased(one.key) for one in references_of(travels) if self._is_here(one)]
        if type(travels) is not Stored:
            return context.unpack(travels, what) if type(travels) is Inline else travels
        lease = leases[0] if leases else None
        if context.lazy:
            return make_proxy(travels.reference, lease)
        return Deferred(self._store, travels.reference, lease, what)

    def _is_here(self, reference: Any) -> bool:
        return bool(reference.address == self._store.address)

    def _leased(self, key: str) -> Lease:
        lease = self._store.take(key)
        self._store.spare(key)
        return lease


class _InputLease(Lease):
    """A lease that evicts nothing unless it is told to, wherever it is dropped.

    A call that is forgotten, with its executor for instance, may yet be made by somebody else.
    """

    __slots__ = ("evicts",)
    evicts: bool

    @classmethod
    def of(cls, lease: Lease) -> _InputLease:
        """Take the place of a lease."""
        leases, lease._leases = lease._leases, None
        assert leases is not None  # noqa: S101 - it has not been released
        made = cls(leases, lease.key, lease._home)
        made.evicts = False
        return made

    def release(self) -> None:
        leases = self._leases
        if leases is not None and not self.evicts:
            leases.spare(self.key)
        super().release()

    __del__ = release


# What has become of a call so far.
_NEW, _WAITING, _GIVEN, _WATCHED = "new", "waiting", "given", "watched"


class _Ticket:
    """What a future asks in place of the base executor's."""

    def __init__(self, call: GroupCall) -> None:
        self._call = call

    def cancel(self) -> bool:
        return self._call.withdraw()

    def running(self) -> bool:
        return self._call.is_running()
