"""Executors that are not the standard library's, made to do what these do.

An executor is anything with ``submit``, and what that returns anything with ``result`` and
``add_done_callback``. All else is done here where it is missing, or otherwise than
:mod:`concurrent.futures` has it: a future that cannot be cancelled says so, shutting down cancels
what is pending, and waits, or does not, for what is under way.

What a task raises travels in our own serialized form, inside of an error that any library can
send. Some send the text of errors only; others break, or hang, if one cannot be pickled, or not be
unpickled. To the executor, a task that has failed is one that has failed: it may run it again.

Knows nothing of stores, and no library by its name.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from types import BuiltinFunctionType, FunctionType
from typing import Any

from proxyexec._carried import callable_name
from proxyexec._context import Inline
from proxyexec._serialize import PickleSerializer
from proxyexec._task import packed_error, unpacked_error
from proxyexec.errors import name_of

__all__ = ["CarriedError", "ForeignExecutor", "ForeignFuture", "Named", "in_a_thread"]


class ForeignExecutor:
    """An executor of another library, or of somebody's own.

    Args:
        executor: has a method ``submit``, and may have a method ``shutdown``.
    """

    ends = True
    """Whether shutting this down shuts down the other library's executor."""

    def __init__(self, executor: Any) -> None:
        self.executor = executor
        self._names = _own_names(executor.submit)
        # Guards what follows. Reentrant, as the garbage collector may end a future inside.
        self._changed = threading.Condition(threading.RLock())
        self._under_way: dict[Any, None] = {}
        self._when_idle: Callable[[], object] | None = None

    @property
    def _max_workers(self) -> Any:
        return getattr(self.executor, "_max_workers", None)

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> ForeignFuture:
        """Give the executor a call, and return a future that has all that one has.

        Raises:
            TypeError: what the executor returns is not a future.
        """
        if kwargs and not self._names.isdisjoint(kwargs):
            fn, kwargs = functools.partial(fn, **kwargs), {}
        if isinstance(fn, (FunctionType, BuiltinFunctionType, type)):
            base = self._pass_on(fn, args, kwargs)
        else:
            base = self._submit(fn, args, kwargs)
        missing = [
            name
            for name in ("result", "add_done_callback")
            if not callable(getattr(base, name, None))
        ]
        if missing:
            raise TypeError(
                f"{name_of(type(self.executor))}.submit() returned {base!r}, of type "
                f"{name_of(type(base))}, which is not a future: it has no method "
                f"{' and no method '.join(missing)}"
            )
        future = self._future(base, fn)
        with self._changed:
            self._under_way[future] = None
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Shut the executor down, as :meth:`concurrent.futures.Executor.shutdown` says.

        It is told only when nothing is under way any more, as some would stop that.
        """
        if cancel_futures:
            with self._changed:
                futures = list(self._under_way)
            while futures:  # the last first: a worker takes the next one, which is the first
                futures.pop().cancel()
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: not self._under_way)
            elif self._under_way:
                self._when_idle = functools.partial(in_a_thread, self._shut_down, wait=False)
                return
        self._shut_down(wait=wait, cancel_futures=cancel_futures)

    def ended(self, future: Any) -> None:
        """Count out a future that has been settled."""
        with self._changed:
            self._under_way.pop(future, None)
            if self._under_way:
                return
            self._changed.notify_all()
            when_idle, self._when_idle = self._when_idle, None
        if when_idle is not None:
            when_idle()

    def _pass_on(self, fn: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Submit what passes untouched: a function that workers find by its name."""
        return self.executor.submit(fn, *args, **kwargs)

    def _submit(self, task: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Submit a task."""
        return self.executor.submit(_Carrying(task), *args, **kwargs)

    def _future(self, base: Any, task: Any) -> ForeignFuture:
        return ForeignFuture(base, self.ended, _name_of(task))

    def _shut_down(self, *, wait: bool, cancel_futures: bool = False) -> None:
        shutdown = getattr(self.executor, "shutdown", None)
        if not self.ends or not callable(shutdown):
            return  # there is nothing to end, or not here
        options: dict[str, bool] = {}
        if _takes(shutdown, "wait"):
            options["wait"] = wait
        if cancel_futures and _takes(shutdown, "cancel_futures"):
            options["cancel_futures"] = True
        shutdown(**options)


class ForeignFuture:
    """What an executor has returned, with all that a future has to have.

    Args:
        future: has methods ``result`` and ``add_done_callback``.
        ended: called with this object when it has been settled, and its callback has run.
        called: the name of what is called, for messages.
    """

    __slots__ = ("_callback", "_called", "_ended", "_future")

    def __init__(self, future: Any, ended: Callable[[Any], object], called: str) -> None:
        self._future = future
        self._ended = ended
        self._called = called
        self._callback: Callable[[Any], object] | None = None

    def add_done_callback(self, fn: Callable[[Any], object]) -> None:
        """Call ``fn`` with this object when the task has ended; there is one callback at most."""
        self._callback = fn
        self._future.add_done_callback(self._call_back)

    def cancel(self) -> bool:
        """Cancel the task if that can be done; tell whether it is cancelled."""
        return self._asked("cancel")

    def cancelled(self) -> bool:
        """Tell whether the task, which has ended, was cancelled."""
        if callable(getattr(self._future, "cancelled", None)):
            return self._asked("cancelled")
        return isinstance(self._raised(), CancelledError)

    def running(self) -> bool:
        """Tell whether the task is being run, if that is known."""
        return self._asked("running")

    def exception(self) -> BaseException | None:
        """Return what the task, which has ended, raised."""
        exception: Any = getattr(self._future, "exception", None)
        found: Any = exception() if callable(exception) else self._raised()
        error: BaseException | None = found
        blob = self._blob_in(error)
        if blob is None:
            return error
        return unpacked_error(Inline(blob), PickleSerializer(), self._called)

    def result(self) -> Any:
        """Return the result of the task, which has ended."""
        return self._future.result()

    def _blob_in(self, error: BaseException | None) -> bytes | None:
        return error.blob if isinstance(error, CarriedError) else None

    def _asked(self, name: str) -> bool:
        method = getattr(self._future, name, None)
        try:
            return callable(method) and bool(method())
        except Exception:  # noqa: BLE001 - some have the method, and say in this way that it is not
            return False

    def _raised(self) -> BaseException | None:
        try:
            self._future.result()
        except BaseException as error:  # noqa: BLE001 - it is what is asked for
            return error
        return None

    def _call_back(self, _: object) -> None:
        # The future may be kept for ever, by some library, and its callbacks with it.
        callback, self._callback = self._callback, None
        try:
            if callback is not None:
                callback(self)
        finally:
            self._ended(self)


class CarriedError(Exception):
    """Takes what a task has raised, and the text of its traceback, to the client.

    Args:
        error: what it has raised.
    """

    blob: bytes

    def __init__(self, error: BaseException) -> None:
        super().__init__(f"{name_of(type(error))}: {error}")
        self.blob = packed_error(error, PickleSerializer(main="value")).blob

    def __reduce__(self) -> tuple[Any, ...]:
        return _carried, (self.args, self.blob)


class Named:
    """Looks like a function: executors show names to their users.

    Args:
        function: the one.
    """

    def __init__(self, function: Any) -> None:
        self.__module__ = getattr(function, "__module__", __name__)
        self.__name__ = self.__qualname__ = _name_of(function)


class _Carrying(Named):
    """Calls a task; what that raises is carried."""

    def __init__(self, task: Any) -> None:
        super().__init__(task)
        self._task = task

    def __reduce__(self) -> tuple[Any, ...]:
        return _carrying, (self._task,)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        try:
            return self._task(*args, **kwargs)
        except BaseException as error:  # noqa: BLE001 - as pools do
            carried = CarriedError(error)
        raise carried  # here, where the error is not its context: some send that, too


def _carrying(task: Any) -> _Carrying:
    call = _Carrying.__new__(_Carrying)  # in a worker, which has no use for the name
    call._task = task
    return call


def _carried(args: tuple[str], blob: bytes) -> CarriedError:
    error = CarriedError.__new__(CarriedError, *args)
    error.blob = blob
    return error


def _name_of(function: Any) -> str:
    return getattr(function, "__name__", None) or callable_name(function)


def _own_names(method: Any) -> frozenset[str]:
    """Return the keywords that a method cannot hand on, as its own parameters are called so."""
    try:
        parameters = inspect.signature(getattr(method, "__func__", method)).parameters.values()
    except (TypeError, ValueError):
        return frozenset()
    return frozenset(one.name for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD)


def _takes(method: Any, name: str) -> bool:
    """Tell whether a method takes an argument of this name; if nobody knows, it does."""
    try:
        parameters = inspect.signature(method).parameters.values()
    except (TypeError, ValueError):
        return True
    return any(one.name == name or one.kind is one.VAR_KEYWORD for one in parameters)


def in_a_thread(function: Callable[..., None], **kwargs: Any) -> None:
    """Call it where no lock is held: pools settle futures of broken ones with theirs in hand."""
    thread = threading.Thread(
        target=function, kwargs=kwargs, name="proxyexec-shutdown", daemon=False
    )
    try:
        thread.start()
    except RuntimeError:  # the program is ending
        function(**kwargs)
