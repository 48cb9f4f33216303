"""Task groups from outside: what there is in a place, how far it is, and an end to it.

A group is made, and gone on with, by an executor: ``StoreExecutor(..., task_group=…)``. What is
here needs none, and unpickles nothing: whoever may read the place can look, whatever ran there.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from proxyexec_connectors import durable
from proxyexec_connectors.registry import without_password

from proxyexec._group_records import (
    CALL,
    CANCELLED,
    CallRecord,
    OutcomeRecord,
    call_key,
    id_of,
    outcome_key,
    read_many,
    task_claim,
)
from proxyexec._group_task import written

if TYPE_CHECKING:
    from types import TracebackType

    from proxyexec_connectors.durable import DurableSession
    from typing_extensions import Self

__all__ = ["STATES", "Group", "GroupTaskInfo", "collect_groups", "list_groups"]

STATES = ("submitted", "running", "done", "failed", "cancelled")
"""What a task can be, in the order in which it may be so."""


class GroupTaskInfo(NamedTuple):
    """One task of a group."""

    id: str
    name: str
    """Of the function."""
    state: str
    """One of :data:`STATES`. A task that nobody runs, and that has not ended, is submitted."""
    created: float | None
    """When it was submitted, in seconds since the epoch; ``None`` if that is not known."""
    ended: float | None
    """When its outcome was written down, in seconds since the epoch."""
    seconds: float | None
    """How long its function ran."""
    error: str
    """Type and message of what it raised; empty if it did not."""


def list_groups(url: str) -> list[DurableSession]:
    """Return the groups of a place.

    Args:
        url: of the place.

    Raises:
        NotDurableError: there can be none in that place.
        ConnectorError: it cannot be reached.
    """
    return durable.sessions(url)


def collect_groups(url: str) -> list[DurableSession]:
    """Remove the groups of a place that have not been used for longer than their age.

    A group that somebody has open, or whose tasks are running, is used.

    Returns:
        What they were.

    Raises:
        NotDurableError: there can be none in that place.
        ConnectorError: it cannot be reached.
    """
    return durable.collect(url)


class Group:
    """One task group, seen from outside.

    Args:
        url: of its place.
        id: its name.

    Raises:
        SessionMissingError: there is no such group.
        NotDurableError: there can be none in that place.
    """

    def __init__(self, url: str, id: str) -> None:  # noqa: A002 - it is called that everywhere
        self.id = id
        self._url = url
        self._session = durable.open_session(url, id, create=False)

    def __repr__(self) -> str:
        return f"Group({without_password(self._url)!r}, {self.id!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the place; the group stays as it is."""
        self._session.close()

    def tasks(self) -> list[GroupTaskInfo]:
        """Return the tasks of the group, in the order of their submission."""
        session = self._session
        tasks = [id_of(key) for key in session.keys(CALL)]
        # Claims first: whoever lets go of one has written the outcome by then.
        claimed = session.claimed([task_claim(task) for task in tasks])
        outcomes = read_many(session, [outcome_key(task) for task in tasks])
        records = read_many(session, [call_key(task) for task in tasks])
        is_cancelled = session.exists(CANCELLED)
        return [
            self._told(task, record, outcome, is_claimed=one, is_cancelled=is_cancelled)
            for task, record, outcome, one in zip(tasks, records, outcomes, claimed, strict=True)
        ]

    def counts(self) -> dict[str, int]:
        """Return how many tasks are in each state."""
        counted = Counter(task.state for task in self.tasks())
        return {state: counted[state] for state in STATES}

    def cancel(self) -> int:
        """Have no task of the group started any more; those that run go on.

        Returns:
            How many had not been started.
        """
        session = self._session
        session.put(CANCELLED, [b"{}"])
        waiting = [task for task in self.tasks() if task.ended is None and task.state != "running"]
        for task in waiting:
            # A worker that takes the claim now finds the mark.
            written(session, task.id, OutcomeRecord("cancelled", task.name))
        return len(waiting)

    def delete(self) -> None:
        """Remove the group with all its data. What its tasks that run come to is lost."""
        self._session.close()
        durable.remove_session(self._url, self.id)

    def _told(
        self, task: str, found: Any, ended: Any, *, is_claimed: bool, is_cancelled: bool
    ) -> GroupTaskInfo:
        url = self._session.url
        name, created = task, None
        with contextlib.suppress(ValueError):  # somebody else may have written there
            if found is not None:
                record = CallRecord.read(found, call_key(task), url)
                name, created = record.name, record.created
        if ended is not None:
            outcome = OutcomeRecord.read(ended, outcome_key(task), url)
            seconds = None if outcome.state == "cancelled" else outcome.seconds
            return GroupTaskInfo(
                task, name, outcome.state, created, outcome.created, seconds, outcome.error
            )
        state = "running" if is_claimed else "cancelled" if is_cancelled else "submitted"
        return GroupTaskInfo(task, name, state, created, None, None, "")
