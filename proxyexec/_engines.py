"""What is particular about the executors of IPython Parallel and Parsl.

Neither library is imported here: an executor of theirs is known by its class.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import Any

from proxyexec._foreign import CarriedError, ForeignExecutor, ForeignFuture, Named
from proxyexec.errors import name_of

__all__ = ["foreign"]


def foreign(executor: Any) -> ForeignExecutor:
    """Return the adapter of an executor that is not the standard library's.

    Raises:
        TypeError: it cannot be used; the message says why.
    """
    for kind in type(executor).__mro__:
        adapter = _ADAPTERS.get(name_of(kind))
        if adapter is not None:
            return adapter(executor)
    return ForeignExecutor(executor)


class _IPython(ForeignExecutor):
    """Executors of IPython Parallel's views. They end nothing, and cancel nothing."""

    def __init__(self, executor: Any) -> None:
        view = executor.view
        balanced = any(kind.__name__ == "LoadBalancedView" for kind in type(view).__mro__)
        if not balanced and not isinstance(view.targets, int):
            raise TypeError(
                f"the executor of {view!r} runs a call on each engine of the view, and a task runs "
                "once: wrap client.executor(), or the executor of one engine, client[0].executor"
            )
        super().__init__(executor)

    def _pass_on(self, fn: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        # The arguments are sent in the library's own way.
        return self.executor.submit(_IPythonCall(fn), *args, **kwargs)

    def _submit(self, task: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        # In one message, so that what is one object arrives as one.
        return self.executor.submit(_IPythonCall(task, args, kwargs))

    def _future(self, base: Any, task: Any) -> ForeignFuture:
        return _IPythonFuture(base, self.ended, base._fname)

    def _shut_down(self, *, wait: bool, cancel_futures: bool = False) -> None:
        pass  # it would wait for what others have given the view


class _IPythonFuture(ForeignFuture):
    __slots__ = ()

    def cancel(self) -> bool:
        return False  # its future would say that it is cancelled, and the task run nevertheless

    def running(self) -> bool:
        return False  # nobody here knows

    def _blob_in(self, error: BaseException | None) -> bytes | None:
        if getattr(error, "ename", None) != _TextError.__name__:
            return None
        text: Any = getattr(error, "evalue", "")
        return base64.b64decode(text)


class _IPythonCall(Named):
    """Calls a function, with arguments of its own before those that it is given."""

    def __init__(
        self, function: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> None:
        super().__init__(function)
        self._call = function, args, kwargs

    def __reduce__(self) -> tuple[Any, ...]:
        return _IPythonCall, self._call

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        function, own_args, own_kwargs = self._call
        try:
            return function(*own_args, *args, **(own_kwargs or {}), **kwargs)
        except BaseException as error:
            if type(error).__module__.startswith("ipyparallel."):
                raise  # the library's own: a dependency that is not met, say
            carried = _TextError(error)
        raise carried


class _TextError(CarriedError):
    """Goes where the text of errors is sent only."""

    def __str__(self) -> str:
        return base64.b64encode(self.blob).decode()


class _Parsl(ForeignExecutor):
    """Parsl's pool. It cancels nothing, and keeps each function that it is given."""

    def _submit(self, task: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        return self.executor.submit(_ParslCall(task), task, *args, **kwargs)

    def _shut_down(self, *, wait: bool, cancel_futures: bool = False) -> None:
        super()._shut_down(wait=wait)  # it would warn that it cannot cancel


class _ParslCall(Named):
    """Calls the task that it is given first: the same object for all of one name."""

    def __call__(self, task: Any, /, *args: Any, **kwargs: Any) -> Any:
        try:
            return task(*args, **kwargs)
        except BaseException as error:  # noqa: BLE001 - as pools do
            carried = CarriedError(error)
        raise carried  # here, where the error is not its context: Parsl would send that, too

    def __eq__(self, other: object) -> bool:
        return type(other) is _ParslCall and vars(other) == vars(self)

    def __hash__(self) -> int:
        return hash((self.__module__, self.__name__))


_ADAPTERS: dict[str, Callable[[Any], ForeignExecutor]] = {
    "ipyparallel.client.view.ViewExecutor": _IPython,
    "parsl.concurrent.ParslPoolExecutor": _Parsl,
}
