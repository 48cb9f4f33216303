"""Futures of tasks: ``concurrent.futures.Future``, whatever the base executor returns.

The future that a base executor of the standard library returns *becomes* a :class:`TaskFuture`;
a second future, to be settled when the first one is, would cost as much as all the rest of a
small task. Futures of other kinds are followed by one of ours.

An executor's future is set to what came back from the worker, an *outcome*. What that means to
the caller is known to the :class:`Call` that the future belongs to. Nothing here knows of
policies or stores.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from proxyexec._proxy import Kept
from proxyexec.errors import DeserializationError, arrival_error

if TYPE_CHECKING:
    from proxyexec._ownership import Lease
    from proxyexec._proxy import Reference
    from proxyexec._quota import Quota
    from proxyexec._store import Store

__all__ = [
    "Call",
    "Deferred",
    "Follower",
    "TaskFuture",
    "cancel",
    "failed_future",
    "future_of",
    "new_future",
]

R = TypeVar("R")


class Call(Protocol):
    """The client's side of a task."""

    @property
    def quota(self) -> Quota | None:
        """Of the store, if it has one."""
        ...

    def open(self, outcome: Any) -> Any:
        """Return the result that an outcome stands for, the same one each time, or raise."""
        ...

    def end(self, error: BaseException | None = None) -> None:
        """Let go of what the task needed; after a failure, of what it may have stored too."""
        ...


class TaskFuture(Future[R]):
    """The future of one task. Made by executors, not by hand."""

    _call: Call
    _base: Any = None
    # What could not be sent.
    _unsent: Call | None = None

    def result(self, timeout: float | None = None) -> R:
        """Return the task's result, as :meth:`concurrent.futures.Future.result` does.

        Raises:
            CancelledError: the task was cancelled.
            TimeoutError: it did not finish within ``timeout`` seconds.
            Exception: what the task raised, or what kept its data from arriving.
        """
        try:
            outcome = super().result(timeout)
            value = self._call.open(outcome)
            return cast("R", value.get() if type(value) is Deferred else value)
        finally:
            del self  # as the standard library does: an error's traceback refers to this frame

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what :meth:`result` would raise, if anything.

        A result that the caller is to get as the object itself is fetched for this: whether it
        can be made again shows only then, and who is told of no error goes on to read it.
        (``asyncio`` does; it would wait for ever if that raised.)

        Raises:
            CancelledError: the task was cancelled.
            TimeoutError: it did not finish within ``timeout`` seconds.
        """
        error = super().exception(timeout)
        if error is None:
            try:
                self.result(0)
            except Exception as raised:  # noqa: BLE001 - it is what the caller asks for
                return raised
        return error

    def add_done_callback(self, fn: Callable[[Future[R]], object]) -> None:
        """Call ``fn`` when the task has ended, as the standard library's does."""
        call: Call | None = getattr(self, "_call", None)
        quota = None if call is None else call.quota
        # It is called by who delivers results, hence room: it must not wait for that.
        super().add_done_callback(fn if quota is None else quota.freely(fn))

    def _get_snapshot(self) -> tuple[bool, bool, Any, BaseException | None]:
        # What asyncio reads from Python 3.14 on, in place of result() and exception().
        done, cancelled = self.done(), self.cancelled()
        error = self.exception() if done and not cancelled else None
        result = self.result() if done and not cancelled and error is None else None
        return done, cancelled, result, error

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError(
            "a future cannot be sent to a task inside of something else; pass it as an argument of "
            "its own, as in submit(function, *futures), and it is replaced by its result"
        )

    # For executors; not part of the public interface.

    def _peek(self) -> Any:
        """Return the result of a task that has ended, without fetching it; raise its error."""
        error = super().exception(0)
        if error is not None:
            raise error
        return self._call.open(self._result)

    def _error(self) -> BaseException | None:
        """Return what the task raised, if it has ended; nothing is fetched for this."""
        return super().exception(0)

    def cancel(self) -> bool:
        """Cancel the task if it has not started; tell whether it is cancelled."""
        base = self._base
        if base is None:
            return super().cancel()
        if not base.cancel():
            return False
        cancel(self)  # at once: it may be another thread's business to follow, and it has not yet
        return True

    def running(self) -> bool:
        """Tell whether the task is being run."""
        base = self._base
        return super().running() if base is None else bool(base.running())


class Deferred:
    """A result that stays where it is stored until somebody asks for it.

    Args:
        store: has it.
        reference: says which one it is.
        lease: keeps it there until it is fetched.
        what: what it is to the caller, for messages.
    """

    __slots__ = ("_error", "_lease", "_lock", "_reference", "_store", "_value", "_what")

    def __init__(self, store: Store, reference: Reference, lease: Lease | None, what: str) -> None:
        self._store: Store | None = store
        self._what = what
        self._reference = reference
        self._lease = lease
        self._value: Any = None
        self._error: BaseException | None = None
        self._lock = threading.Lock()

    def get(self) -> Any:
        """Return the object, the same one each time, or raise what fetching it raised."""
        store = self._store
        if store is not None:
            value: Any = None
            error: Exception | None = None
            try:
                value = store.get(self._reference)
            except DeserializationError as raised:
                error = arrival_error(self._what, raised)
                error.__cause__ = raised
            except Exception as raised:  # noqa: BLE001 - it is raised below, each time
                error = raised
            self._settle(value, error)
            del error
        if self._error is not None:
            raise self._error
        return self._value

    @property
    def reference(self) -> Reference:
        """Says where the object is, or was."""
        return self._reference

    def borrow(self) -> Kept | None:
        """Hold the object where it is; ``None`` if somebody has fetched it already."""
        with self._lock:
            store = self._store
            if store is None:
                return None
            return Kept(self._reference, store.join(self._reference.key))

    def _settle(self, value: Any, error: BaseException | None) -> None:
        with self._lock:
            # Two threads may have fetched at the same time: the first one's object counts.
            if self._store is None:
                return
            self._value, self._error = value, error
            self._store = None
            lease, self._lease = self._lease, None
        if lease is not None:
            lease.release()


def future_of(base: Any, call: Call) -> TaskFuture[Any]:
    """Return the future of ``call``, whose task the base executor promised ``base`` for."""
    if type(base) is Future:
        # Its executor may be setting it right now, or have done so: what it sets is an outcome
        # all the same, and the callback runs in any case.
        base._call = call  # type: ignore[attr-defined]
        base.__class__ = TaskFuture
        Future.add_done_callback(base, _end)
        return cast("TaskFuture[Any]", base)
    future = new_future(call, base)
    base.add_done_callback(Follower(future))
    return future


def new_future(call: Call, base: Any) -> TaskFuture[Any]:
    """Return a future of ``call`` that is to be settled when ``base`` is."""
    future: TaskFuture[Any] = TaskFuture()
    future._call = call
    future._base = base
    Future.add_done_callback(future, _end)
    return future


def failed_future(error: BaseException, call: Call | None = None) -> TaskFuture[Any]:
    """Return the future of a call that never became a task."""
    future: TaskFuture[Any] = TaskFuture()
    future._unsent = call
    future.set_exception(error)
    return future


def _end(future: Any) -> None:
    # Here while the executor delivers results and their readers wait for the interpreter: read
    # the attributes of a future that is done instead of going through its lock three times.
    call, error = future._call, future._exception
    if error is None and future._state != "FINISHED":
        error = CancelledError()
    elif error is None:
        try:
            future._result = call.open(future._result)
        except BaseException as raised:  # noqa: BLE001 - raised again by result()
            error = raised
    call.end(error)
    del future, error  # an error's traceback may refer to this frame


class Follower:
    """Settles a future of ours when one of another kind is done."""

    def __init__(self, future: TaskFuture[Any]) -> None:
        self.future = future

    def __call__(self, base: Any) -> None:
        future, error = self.future, None
        try:
            if base.cancelled():
                cancel(future)
            elif (error := base.exception()) is not None:
                future.set_exception(error)
            else:
                future.set_result(base.result())
        finally:
            # The base future may keep its callbacks, hence this future, for ever: break the cycle.
            # Only now: until then, it is the base future that refuses to cancel.
            future._base = None
            del error, future  # an error's traceback may refer to this frame


def cancel(future: TaskFuture[Any]) -> None:
    """Settle a future of ours: its task is cancelled. Two threads may say so."""
    Future.cancel(future)
    with future._condition:
        if future._state == "CANCELLED":
            future.set_running_or_notify_cancel()
