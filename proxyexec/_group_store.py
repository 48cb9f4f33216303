"""The store of a task group: one durable session, as the clients and workers of a group see it.

A client has one for each group that it has open, whatever executors share it. Its name, made up at
random, is in the keys of all that it stores; and for as long as it lives, it has a claim of that
name. So whoever opens the group later knows which of its inputs nobody will ever remove.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import uuid
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakValueDictionary

from proxyexec_connectors import durable
from proxyexec_connectors.registry import without_password

from proxyexec._group_records import CALL, INPUT, client_claim, id_of, number_of, task_id
from proxyexec._store import Store
from proxyexec.errors import ConnectorError, NotDurableError, name_of

if TYPE_CHECKING:
    from proxyexec_connectors.durable import Claim, DurableConnector

__all__ = ["GroupStore", "open_group"]


class GroupStore(Store):
    """Objects in the durable session of a group.

    Args:
        group: the group's id.
        session: of the group.
    """

    group: str
    client: str | None = None
    """What this client is called in the group; ``None`` for workers."""
    calls: int = 0
    """How many calls are written down, as far as this client knows."""
    _claim: Claim | None = None

    def __init__(self, group: str, session: DurableConnector) -> None:
        # Nobody keeps a secret that outlives all processes: so there is no seal.
        super().__init__(f"group {group}", session, integrity=False)
        self.group = group
        self.client = secrets.token_hex(6)
        self._claim = session.claim(client_claim(self.client))
        self._tasks_lock = threading.Lock()
        self._number = 0
        self.know(session.keys(CALL))

    @property
    def session(self) -> DurableConnector:
        """Where everything is."""
        return cast("DurableConnector", self.connector)

    def know(self, call_keys: list[str]) -> None:
        """Take note of the calls that are written down."""
        numbers = [number_of(id_of(key)) for key in call_keys]
        with self._tasks_lock:
            self.calls = max(self.calls, len(numbers))
            self._number = max(self._number, max(numbers, default=0))

    def new_task(self) -> str:
        """Make up the id of a call."""
        assert self.client is not None  # noqa: S101 - workers submit nothing
        with self._tasks_lock:
            self._number += 1
            return task_id(self._number, self.client)

    def add(self, calls: int) -> None:
        """Count calls that have been written down."""
        with self._tasks_lock:
            self.calls += calls

    def new_key(self) -> str:
        key = super().new_key()
        return key if self.client is None else f"{INPUT}{self.client}.{key}"

    def close(self) -> None:
        claim, self._claim = self._claim, None
        try:
            if claim is not None:
                with contextlib.suppress(ConnectorError):  # it runs out
                    claim.release()
        finally:
            super().close()

    def leave(self, *, close: bool) -> None:
        with _lock:
            super().leave(close=close)
            if not self._users:  # it may close at any moment
                _open.pop(self.address, None)

    def _after_fork(self) -> None:
        self.client = None
        super()._after_fork()


def open_group(place: Any, group: bool | str | uuid.UUID, max_age: float | None) -> GroupStore:
    """Open a group, made if it is not there, and count an executor in that uses it.

    Args:
        place: a URL, or a connector.
        group: its name; ``True`` for a new one.
        max_age: seconds without use after which it may be collected.

    Raises:
        NotDurableError: nothing is kept for good in that place.
        ValueError: this is no name for a group.
        TypeError: nor is it a text, or the place is none.
    """
    if group is False or not isinstance(group, (bool, str, uuid.UUID)):
        raise TypeError(f"task_group must be True, a name or a UUID, not {group!r}")
    name = str(uuid.uuid4()) if group is True else durable.check_name(str(group))
    session = _session(place, name, max_age)
    with _lock:
        store = _open.get(session.address)
        if store is None or store.closed or not store.is_owner:
            try:
                store = GroupStore(name, session)
            except BaseException:
                session.close()
                raise
            _open[session.address] = store
        else:
            session.close()
        store.enter()
    return store


def _session(place: Any, name: str, max_age: float | None) -> DurableConnector:
    if isinstance(place, str):
        return durable.open_session(place, name, max_age=max_age)
    if isinstance(place, Store) or (place is not None and not hasattr(place, "get_many")):
        raise TypeError(
            "with a task_group, store is a URL or a connector, in whose place the group has a "
            f"session of its own, not an object of type {name_of(type(place))}"
        )
    if not callable(getattr(place, "durable", None)):
        raise NotDurableError("memory" if place is None else without_password(place.url))
    connector: Any = place
    session: DurableConnector = connector.durable(name, max_age=max_age)
    return session


_open: WeakValueDictionary[str, GroupStore] = WeakValueDictionary()
_lock = threading.RLock()


def _renew_lock() -> None:
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_renew_lock)
