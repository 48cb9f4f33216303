"""Calls on their way to an executor, off the thread that made them.

Whoever must not be kept waiting, an event loop, leaves its calls with a :class:`Packer`. A thread
of it hands them to the executor in order; arguments are pickled and stored there.

Under a quota, a call may have to wait for room, which calls make that come after it: one that is
given a result, say, and lets go of it. So nobody stands behind a call that waits. It leaves the
thread, what it has stored by then is evicted, and it goes to a second one, where those that need
room stand in line. A call is packed twice at most.

Knows nothing of event loops.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol

from proxyexec._executor import StoreExecutor
from proxyexec._future import TaskFuture, failed_future
from proxyexec._waiting import announce

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from proxyexec._quota import Quota

__all__ = ["Owner", "PackedExecutor", "Packer", "Submission"]

# A thread that has had nothing to do for so long ends.
_IDLE_SECONDS = 1.0


class PackedExecutor(StoreExecutor):
    """An executor that a :class:`Packer` hands calls to.

    A future that is an argument is replaced by its result over every base executor, and a call
    that is cancelled while it is packed does not get to that.
    """

    def _submit_to_base(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        submission: Submission | None = getattr(_here, "submission", None)
        if submission is not None and submission.cancelled:
            raise CancelledError
        return super()._submit_to_base(fn, *args, **kwargs)

    def _needs_care(self, fn: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
        return super()._needs_care(fn, args, kwargs) or any(
            type(value) is TaskFuture for value in (*args, *kwargs.values())
        )

    def _awaited(self, values: Any) -> list[TaskFuture[Any]]:
        return [value for _, value in values if type(value) is TaskFuture]


class Owner(Protocol):
    """Whoever waits for a call's result."""

    def when_done(self, future: Any) -> object:
        """See the future of the task, which is done; not called if the call was cancelled."""
        ...

    def when_refused(self) -> object:
        """See that the call is cancelled, and not by its owner."""
        ...


class Submission:
    """One call on its way.

    Args:
        fn: the function.
        args: the arguments by position; submissions stand for the results of their calls.
        kwargs: those by keyword.
        owner: told what becomes of it.
        when_packed: called by the packer's thread when the call is packed, or will never be.
        freely: whether it waits for no room.
    """

    __slots__ = (
        "_context",
        "_followers",
        "_lock",
        "_packed",
        "_quota",
        "args",
        "cancelled",
        "fn",
        "freely",
        "future",
        "kwargs",
        "owner",
        "packer",
        "stored",
        "when_packed",
    )

    def __init__(
        self,
        fn: Any,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        *,
        owner: Owner,
        when_packed: Callable[[], object] | None = None,
        freely: bool = False,
    ) -> None:
        self.fn: Any = fn
        self.args = args
        self.kwargs = kwargs
        self.freely = freely
        self.owner: Owner | None = owner
        self.when_packed = when_packed
        self.packer: Packer | None = None
        self.future: TaskFuture[Any] | None = None
        """That of the task, once the call is packed; ``None`` again if it was cancelled."""
        self.cancelled = False
        self.stored: int | None = None
        """How many bytes it took of the quota, once it is packed."""
        # Pickling and policies run in it, as if they ran where the call was made.
        self._context = contextvars.copy_context()
        self._followers: list[Submission] = []
        self._packed = False
        self._quota: Quota | None = None
        # Guards what follows from being cancelled and from being packed; never held for long.
        self._lock = threading.Lock()

    def needs(self) -> list[Submission]:
        """Return the calls whose results are arguments."""
        return [value for value in (*self.args, *self.kwargs.values()) if type(value) is Submission]

    def cancel(self) -> None:
        """Keep the call from becoming a task, or cancel that if it has not started."""
        with self._lock:
            self.cancelled = True
            future, self.future = self.future, None
            quota = self._quota
        if future is not None:
            future.cancel()
        elif quota is not None:
            quota.wake()  # it may be waiting for room

    def postpone(self, other: Submission) -> bool:
        """Have another call, which needs this one's future, wait for that; tell whether it does."""
        with self._lock:
            if not self._packed:
                self._followers.append(other)
            return not self._packed

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function as if that were done where the call was made."""
        return self._context.run(function, *args)

    def wait_in(self, quota: Quota | None) -> None:
        """Say what is to be woken if the call is cancelled."""
        with self._lock:
            self._quota = quota

    def end(self, future: TaskFuture[Any] | None) -> list[Submission]:
        """Take the task's future, if there is a task; return who waited for that."""
        with self._lock:
            self._packed, self._quota = True, None
            cancelled = self.cancelled
            if not cancelled:
                self.future = future
            followers, self._followers = self._followers, []
        owner, self.owner = self.owner, None
        # Handles, which may be kept for long, refer to this.
        self.fn, self.args, self.kwargs, self.packer = None, (), {}, None
        self._context = contextvars.Context()
        if future is not None:
            if cancelled:
                future.cancel()
            elif owner is not None:
                future.add_done_callback(owner.when_done)
        when_packed, self.when_packed = self.when_packed, None
        if when_packed is not None:
            when_packed()
        return followers


class Packer:
    """Hands calls to an executor in order, in a thread of its own.

    Args:
        executor: the executor.
    """

    def __init__(self, executor: PackedExecutor) -> None:
        self.tasks = executor._tasks
        self.process = os.getpid()
        self._executor = executor
        self._unpacked: set[Submission] = set()
        # Guards that; signalled when it is empty.
        self._none_left = threading.Condition()
        self._at_once = _Lane()
        self._in_line = _Lane()

    def put(self, submission: Submission) -> None:
        """Have a call handed over."""
        submission.packer = self
        with self._none_left:
            self._unpacked.add(submission)
            if len(self._unpacked) == 1:
                announce(self)  # the end of the program waits for it
        try:
            self._go(submission)
        except BaseException:  # there is no thread to be had
            self._count_out(submission)
            raise

    def cancel(self) -> None:
        """Hand over none of the calls that have not been."""
        with self._none_left:
            unpacked = list(self._unpacked)
        for submission in unpacked:
            owner = submission.owner
            submission.cancel()
            if owner is not None:
                owner.when_refused()

    def go_on(self) -> None:
        """Do nothing: who waits for room has been woken."""

    def hurry(self) -> None:
        """Hand over what is left whether there is room or not."""
        self.tasks.hurry()

    def finish(self) -> None:
        """Hand over what is left, whether there is room or not, and wait until that is done."""
        self.hurry()
        with self._none_left:
            self._none_left.wait_for(lambda: not self._unpacked)

    def _go(self, submission: Submission) -> None:
        self._at_once.put(functools.partial(self._process, submission, waits=False))

    def _process(self, submission: Submission, *, waits: bool) -> None:
        if any(need.postpone(submission) for need in submission.needs()):
            return
        future = None
        if not submission.cancelled:
            try:
                future = submission.run(self._submitted, submission, waits)
            except _NoRoomNow:
                self._in_line.put(functools.partial(self._process, submission, waits=True))
                return
        for follower in submission.end(future):
            if follower.packer is not None:
                follower.packer._go(follower)
        self._count_out(submission)

    def _count_out(self, submission: Submission) -> None:
        with self._none_left:
            self._unpacked.discard(submission)
            if not self._unpacked:
                self.tasks.launch(self)
                self._none_left.notify_all()

    def _submitted(self, submission: Submission, waits: bool) -> TaskFuture[Any] | None:
        args = [_future_in(value) for value in submission.args]
        kwargs = {name: _future_in(value) for name, value in submission.kwargs.items()}
        if any(value is _CANCELLED for value in (*args, *kwargs.values())):
            return None  # and so is this call, by who cancelled the other
        quota = self.tasks.store.quota
        before = 0 if quota is None else quota.counted_here()
        _here.submission = submission
        try:
            with self._place(submission, quota, waits):
                future = self._executor.submit(submission.fn, *args, **kwargs)
        except _NoRoomNow:
            raise
        except BaseException as error:  # noqa: BLE001 - it is raised for who waits for the result
            future = failed_future(error)
        finally:
            del _here.submission
            del args, kwargs  # an error's traceback refers to this frame
        submission.stored = 0 if quota is None else quota.counted_here() - before
        return future

    def _place(
        self, submission: Submission, quota: Quota | None, waits: bool
    ) -> AbstractContextManager[None]:
        """Where a call stands when it needs room."""
        if quota is None:
            return contextlib.nullcontext()
        if submission.freely:
            return quota.unbounded()
        if waits:
            submission.wait_in(quota)

        def is_to_wait() -> bool:
            if submission.cancelled:
                raise CancelledError
            if not (waits or self.tasks.hurried):
                raise _NoRoomNow
            return not self.tasks.hurried

        return quota.turn(is_to_wait)


class _NoRoomNow(BaseException):
    """A call would have to wait for room where others stand behind it; passes for no error."""


class _Lane:
    """A thread that takes steps one after the other, while there are any.

    It refers to nothing but these: whoever they belong to can go meanwhile.
    """

    def __init__(self) -> None:
        self._steps: SimpleQueue[Callable[[], object]] = SimpleQueue()
        self._lock = threading.Lock()
        self._runs = False

    def put(self, step: Callable[[], object]) -> None:
        self._steps.put(step)
        with self._lock:
            if not self._runs:
                # Not left to threading's own end: what there is to do then has been announced.
                threading.Thread(target=self._run, name="proxyexec-pack", daemon=True).start()
                self._runs = True

    def _run(self) -> None:
        while True:
            try:
                step = self._steps.get(timeout=_IDLE_SECONDS)
            except Empty:
                with self._lock:
                    if self._steps.empty():
                        self._runs = False
                        return
                continue
            step()
            del step


def _future_in(value: Any) -> Any:
    if type(value) is not Submission:
        return value
    future = value.future
    return _CANCELLED if future is None else future


_CANCELLED = object()

# The call that this thread packs.
_here = threading.local()
