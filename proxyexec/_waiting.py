"""Calls whose arguments are results that are not there yet.

An argument that is a :class:`TaskFuture` is replaced by its result. Until all of them are there,
the call waits here, in the client, and no worker waits for it; then it goes to the base executor.
When one of them fails or is cancelled, so is the call. Results that are stored stay where they
are: the call gets their references.
"""

from __future__ import annotations

import concurrent.futures.process
import concurrent.futures.thread  # noqa: F401 - see the end
import functools
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from proxyexec._future import Follower, TaskFuture, cancel, new_future

if TYPE_CHECKING:
    from proxyexec._call import Call
    from proxyexec._tasks import Pending, Tasks

__all__ = ["Awaiting", "Waiting", "announce", "future_after"]


def future_after(
    futures: Sequence[TaskFuture[Any]], call: Call, launch: Callable[[], Any], tasks: Tasks
) -> TaskFuture[Any]:
    """Return the future of a call that waits.

    Args:
        futures: what it waits for.
        call: the call.
        launch: hands the call to the base executor, and returns its future.
        tasks: the executor's.
    """
    waiting = Waiting(launch, len(futures), tasks)
    mine = waiting.future = new_future(call, waiting)
    announce(waiting)
    for future in futures:
        future.add_done_callback(waiting.when_done)
    return mine


def announce(waiting: Pending) -> None:
    """Have an executor, and the end of the program, wait for what has tasks to give yet."""
    waiting.tasks.wait(waiting)
    _waiting.add(waiting)


class Awaiting:
    """A call that is given to the base executor when the results that it waits for are there."""

    def __init__(self) -> None:
        self._launch: Callable[[], Any] | None = None
        self._missing = 0
        # Guards these two, and is held for no longer than that takes.
        self._lock = threading.Lock()

    def go_on(self) -> None:
        """Do nothing: it waits for results, not for room."""

    def when_done(self, future: Any) -> None:
        """See what has become of a future that the call waits for."""
        _in_turn(functools.partial(self._see, future))

    def _see(self, future: TaskFuture[Any]) -> None:
        error = None if future.cancelled() else future._error()
        if error is not None or future.cancelled():
            if self._take_launch() is not None:
                self._fail_as(future, error)
            return
        with self._lock:
            self._missing -= 1
            if self._missing:
                return
        launch = self._take_launch()
        if launch is not None:
            self._start(launch)

    def _take_launch(self) -> Callable[[], Any] | None:
        """Whoever gets it decides what becomes of the call."""
        with self._lock:
            launch, self._launch = self._launch, None
        return launch

    def _start(self, launch: Callable[[], Any]) -> None:
        """Give the call to the base executor."""
        raise NotImplementedError

    def _fail_as(self, future: TaskFuture[Any], error: BaseException | None) -> None:
        """End as a future that the call waits for has: with an error, or cancelled."""
        raise NotImplementedError


class Waiting(Awaiting):
    """Stands in for the base executor's future of a call, for as long as the call waits.

    Args:
        launch: hands the call to the base executor, and returns its future.
        missing: how many results are to come before that.
        tasks: the executor's.
    """

    future: TaskFuture[Any] | None

    def __init__(self, launch: Callable[[], Any], missing: int, tasks: Tasks) -> None:
        super().__init__()
        self.tasks = tasks
        self.process = os.getpid()
        self._launch, self._missing = launch, missing

    def cancel(self) -> bool:
        """Cancel the call; called by its future."""
        if self._take_launch() is None:
            return False  # it is on its way, or settled
        self._settle(None)
        return True

    def running(self) -> bool:
        """Tell that the call is not run; called by its future."""
        return False

    def _fail_as(self, future: TaskFuture[Any], error: BaseException | None) -> None:
        self._settle(error)

    def _start(self, launch: Callable[[], Any]) -> None:
        try:
            base = launch()
        except BaseException as error:
            self._settle(error)
            # In the main thread, it may be that of a signal. Any other one delivers the results
            # of a pool, or is a worker of it, and would end of it.
            if not isinstance(error, Exception) and _is_main_thread():
                raise
            return
        future = self._take_future()
        future._base = base
        self.tasks.launch(self)
        base.add_done_callback(Follower(future))

    def _settle(self, error: BaseException | None) -> None:
        """Fail the call, or cancel it if there is no error."""
        future = self._take_future()
        try:
            if error is None:
                cancel(future)
            else:
                future.set_exception(error)
        finally:
            future._base = None  # only now: until then, it is this object that refuses to cancel
            self.tasks.launch(self)

    def _take_future(self) -> TaskFuture[Any]:
        # An error's traceback may refer to this object, and the future to the error.
        future, self.future = self.future, None
        assert future is not None  # noqa: S101 - there is one launch, hence one who gets here
        return future


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _in_turn(step: Callable[[], None]) -> None:
    """Run a step, now, or after those that this thread is in if they are many.

    A failure passes through a chain of calls by callbacks of callbacks; a long chain would
    otherwise be deeper than Python's stack.
    """
    depth = getattr(_steps, "depth", 0)
    if depth == 0:
        _steps.pending = []
    elif depth >= _DEEP:
        _steps.pending.append(step)
        return
    _steps.depth = depth + 1
    try:
        step()
        while depth == 0 and _steps.pending:
            _steps.pending.pop()()
    finally:
        _steps.depth = depth


def _launch_all() -> None:
    """Wait until no call of this process waits for others."""
    for waiting in _waiting.copy():
        if waiting.process == os.getpid():
            waiting.tasks.hurry()
            launched = threading.Event()
            if waiting.tasks.when_launched(launched.set):
                launched.wait()


def _after_fork() -> None:
    global _steps
    _steps = threading.local()  # the steps that the parent's thread is in are not ours


_steps = threading.local()
os.register_at_fork(after_in_child=_after_fork)

# Callbacks of callbacks that this many levels of Python's stack have room for.
_DEEP = 20

_waiting: weakref.WeakSet[Pending] = weakref.WeakSet()

# At the end of a program, the pools of the standard library finish what they were given, and take
# no more. What waits here was given to us: it has to be theirs before. Hooks run last in, first
# out, and theirs are there since the import above.
_register_atexit = getattr(threading, "_register_atexit", None)
if _register_atexit is not None:
    _register_atexit(_launch_all)
