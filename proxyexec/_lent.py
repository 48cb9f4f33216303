"""Base executors that somebody else ends, or that are ended in a way of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any, NamedTuple

from proxyexec._foreign import ForeignExecutor, in_a_thread

__all__ = ["Lent", "lent"]


class Lent(NamedTuple):
    """Something to wrap that is not shut down as others are.

    Args:
        executor: a base executor, as :class:`~proxyexec.StoreExecutor` takes it.
        end: called when it is shut down, and no task is under way; ``None`` leaves it running.
    """

    executor: Any
    end: Callable[[], object] | None


def lent(base: Any, end: Callable[[], object] | None) -> Any:
    """Return a base executor, adapted already, for one who ends it by ``end``, or not at all.

    What was submitted by that one is cancelled, or waited for, as ever.
    """
    if isinstance(base, Executor):
        base = _LentPool(base)
    if hasattr(base, "ends"):
        base.ends = False
    return base if end is None else _Ending(base, end)


class _LentPool(ForeignExecutor):
    """One that knows what was submitted here."""

    def _submit(self, task: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        return self.executor.submit(task, *args, **kwargs)


class _Ending:
    """A base executor, ended in another way than its own. All else is its own."""

    def __init__(self, base: Any, end: Callable[[], object]) -> None:
        self._base = base
        self._end = end

    def __getattr__(self, name: str) -> Any:
        return getattr(self._base, name)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Shut it down, then end it."""
        if cancel_futures:
            self._base.shutdown(wait=False, cancel_futures=True)
        if wait:
            self._base.shutdown(wait=True)
            self._end()
        else:
            in_a_thread(self.shutdown, wait=True)
