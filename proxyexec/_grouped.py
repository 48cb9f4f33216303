"""What an executor that has a task group does with it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from proxyexec._task import blob_of

if TYPE_CHECKING:
    from proxyexec._context import Context
    from proxyexec._future import TaskFuture
    from proxyexec._group_calls import GroupCalls
    from proxyexec._group_store import GroupStore
    from proxyexec._tasks import Tasks

__all__ = ["Grouped"]

# No process has this id.
_NOBODY = 0


class Grouped:
    """The part of a :class:`~proxyexec.StoreExecutor` that writes calls down, if it is asked to."""

    _group: GroupCalls | None = None

    if TYPE_CHECKING:
        _base: Any
        _context: Context
        _blob: bytes
        _tasks: Tasks

    @property
    def task_group_id(self) -> str | None:
        """The name of the task group; ``None`` without one."""
        return None if self._group is None else self._group.store.group

    @property
    def task_count_submitted(self) -> int:
        """How many calls of the task group are written down, as far as this executor knows.

        Those that were there when the group was opened, or reloaded, and those submitted here.

        Raises:
            ValueError: there is no group.
        """
        return self._in_group("task_count_submitted").store.calls

    def reload_tasks(self, *, resubmit: bool = True) -> list[TaskFuture[Any]]:
        """Return the futures of all calls of the task group, in the order of their submission.

        Those that have ended are done. Those that somebody runs are watched. The others are
        submitted again, as are those whose worker or client has died. Nothing that has an outcome
        is run again, and of several who run the same call, the first outcome counts for all.

        Args:
            resubmit: whether to do so. If not, futures of calls that nobody runs have a
                :class:`~proxyexec.errors.TaskLostError`.

        Raises:
            ValueError: there is no group.
            ConnectorError: its place cannot be reached.
        """
        return self._in_group("reload_tasks()").reload(resubmit=resubmit)

    def register(self, fn: Callable[..., Any], /) -> str:
        """Store a function in the task group, once, and return its id.

        The id is a digest of the function as it is stored: the same function has the same one.

        Raises:
            ValueError: there is no group.
            SerializationError: the function cannot be pickled.
        """
        return self._in_group("register()").register(fn)

    def submit_registered(self, function_id: str, /, *args: Any, **kwargs: Any) -> TaskFuture[Any]:
        """Submit a call of a function that somebody has registered in the task group.

        Raises:
            ValueError: there is no group.
            ObjectMissingError: there is no such function in it.
        """
        group = self._in_group("submit_registered()")
        return group.submit(self._base.submit, None, args, kwargs, registered=function_id)

    def batch(self) -> contextlib.AbstractContextManager[None]:
        """Return a context manager: calls that are submitted within are sent when it ends.

        They and their arguments are written down in one go, and submitted one after the other. If
        an error leaves the block, none is, and their futures have that error. What is submitted by
        other threads meanwhile goes its own way.

        Raises:
            ValueError: there is no task group.
        """
        return self._in_group("batch()").batch()

    def _in_group(self, what: str) -> GroupCalls:
        if self._group is None:
            raise ValueError(
                f"{what} needs a task group, as in StoreExecutor(executor, 'file:///a/directory', "
                "task_group=True): only there, calls are written down"
            )
        return self._group

    def _set_up_group(self, store: GroupStore) -> None:
        from proxyexec._group_calls import GroupCalls  # noqa: PLC0415 - most have none

        # What is written down is for other processes, whoever writes it.
        self._context = self._context._replace(client=_NOBODY)
        self._blob = blob_of(self._context)
        # Not a method of ours: executors that are dropped go at once.
        submit = self._base.submit
        self._group = GroupCalls(store, self._context, self._blob, self._tasks, submit)
