"""Futures of tasks: ``concurrent.futures.Future``, whatever the base executor returns.

A :class:`TaskFuture` follows the base executor's future and settles when that does. It knows
nothing of policies or stores: what becomes of the base future's outcome is decided by the
:class:`Receiver` that it was given.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxyexec._ownership import Lease

__all__ = ["Deferred", "Receiver", "TaskFuture"]

R = TypeVar("R")


class Receiver(Protocol):
    """Takes what a base future came to. Exactly one of its methods is called, once."""

    def accept(self, outcome: Any) -> Any:
        """Return the result for an outcome, or a :class:`Deferred` one; may raise."""
        ...

    def reject(self, error: BaseException | None) -> None:
        """Clean up after a task that failed, or was cancelled (``None``)."""
        ...


class Deferred:
    """A result that stays where it is stored until somebody asks for it.

    Args:
        fetch: returns the object.
        lease: keeps it there until then.
    """

    __slots__ = ("_error", "_fetch", "_lease", "_lock", "_value")

    def __init__(self, fetch: Callable[[], Any], lease: Lease | None) -> None:
        self._fetch: Callable[[], Any] | None = fetch
        self._lease = lease
        self._value: Any = None
        self._error: BaseException | None = None
        self._lock = threading.Lock()

    def get(self) -> Any:
        """Return the object, the same one each time, or raise what fetching it raised."""
        error = self.error()
        if error is not None:
            try:
                raise error
            finally:
                del error  # the traceback refers to this frame
        return self._value

    def error(self) -> BaseException | None:
        """Return what fetching the object raised, if it did."""
        fetch = self._fetch
        if fetch is not None:
            value, error = None, None
            try:
                value = fetch()
            except Exception as raised:  # noqa: BLE001 - it is raised by get()
                error = raised
            with self._lock:
                # Two threads may have fetched at the same time: the first one's object counts.
                if self._fetch is not None:
                    self._value, self._error = value, error
                    self._fetch = None
                    lease, self._lease = self._lease, None
                    if lease is not None:
                        lease.release()
        return self._error


class TaskFuture(Future[R]):
    """The future of one task. Made by executors, not by hand."""

    def __init__(self) -> None:
        super().__init__()
        self._base: Any = None
        self._receiver: Receiver | None = None

    def follow(self, base: Any, receiver: Receiver) -> None:
        """Settle when ``base`` does, with what ``receiver`` makes of its outcome."""
        self._receiver = receiver
        self._base = base
        base.add_done_callback(self._settle)

    def cancel(self) -> bool:
        """Cancel the task if it has not started; tell whether it is cancelled."""
        base = self._base
        if base is None:  # settled, or about to be
            return self.cancelled()
        cancelled: bool = base.cancel()
        return cancelled

    def running(self) -> bool:
        """Tell whether the task is being run."""
        base = self._base
        return base is not None and not self.done() and bool(base.running())

    def result(self, timeout: float | None = None) -> R:
        """Return the task's result, as :meth:`concurrent.futures.Future.result` does.

        Raises:
            CancelledError: the task was cancelled.
            TimeoutError: it did not finish within ``timeout`` seconds.
            Exception: what the task raised, or what kept its data from arriving.
        """
        try:
            value: Any = super().result(timeout)
            return value.get() if type(value) is Deferred else value
        finally:
            del self  # as the standard library does: the traceback refers to this frame

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what :meth:`result` would raise, if anything.

        Raises:
            CancelledError: the task was cancelled.
            TimeoutError: it did not finish within ``timeout`` seconds.
        """
        error = super().exception(timeout)
        if error is None:
            value: Any = super().result(0)
            if type(value) is Deferred:
                return value.error()
        return error

    def _settle(self, base: Any) -> None:
        receiver = self._receiver
        if receiver is None:
            return
        # The base future keeps its callbacks, hence this future, for ever: break the cycle.
        self._base = self._receiver = None
        try:
            if base.cancelled():
                receiver.reject(None)
                super().cancel()
                self.set_running_or_notify_cancel()
                return
            error = base.exception()
            if error is None:
                value = receiver.accept(base.result())
            else:
                receiver.reject(error)
        except BaseException as raised:  # noqa: BLE001 - it reaches the caller by the future
            error = raised
        if error is None:
            self.set_result(value)
        else:
            self.set_exception(error)
        del self, base, receiver, error  # the error's traceback may refer to this frame
