"""What ``proxyexec top`` shows of a place: two looks at it, and what has changed in between.

What was stored and evicted between two looks is not seen.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from proxyexec_connectors.errors import ConnectorError

from proxyexec._cli_parts import ago
from proxyexec._sizes import format_size
from proxyexec._store_listing import in_order, owner_of, state_of, tell, totals_of
from proxyexec._top_view import Rates, Screen, ScreenTable

if TYPE_CHECKING:
    from proxyexec_connectors.listing import Listing, StoredObject, StoredSession

__all__ = ["StoreSource"]

# Of more objects than that, they are not looked at one by one.
_LISTED_AT_MOST = 20_000

# How many objects are shown.
_LARGEST = 30

# How many looks are remembered.
_REMEMBERED = 600


@dataclass(frozen=True)
class _Look:
    at: float
    sessions: list[StoredSession]
    objects: dict[tuple[str, str], StoredObject] | None
    """By session and key; ``None`` if there are too many."""


class StoreSource:
    """A source of screens; see :class:`proxyexec._top_view.Source`.

    Args:
        listing: of the place; closed with this.
    """

    def __init__(self, listing: Listing) -> None:
        self._listing = listing
        self._last: _Look | None = None
        self._screen: Screen | None = None
        self._history: deque[float] = deque(maxlen=_REMEMBERED)
        self._types: dict[tuple[str, str, float | None], str] = {}

    def screen(self) -> Screen:
        """See :class:`proxyexec._top_view.Source`.

        Raises:
            ConnectorError: the place cannot be reached, at the first look. Later ones say so.
        """
        try:
            look = self._look()
            screen = self._screen_of(look)
        except ConnectorError as error:
            before = self._screen
            if before is None:
                raise
            return Screen(
                before.title,
                before.facts,
                None,
                before.history,
                before.tables,
                (f"what is shown is old: {error}",),
            )
        self._last, self._screen = look, screen
        return screen

    def close(self) -> None:
        """See :class:`proxyexec._top_view.Source`."""
        self._listing.close()

    def _look(self) -> _Look:
        sessions = self._listing.sessions()
        objects = None
        if sum(one.objects for one in sessions) <= _LISTED_AT_MOST:
            objects = {
                (session.name, one.key): one
                for session in sessions
                if session.objects
                for one in self._listing.objects(session.name)
            }
        return _Look(time.monotonic(), sessions, objects)

    def _screen_of(self, look: _Look) -> Screen:
        totals = totals_of(look.sessions)
        self._history.append(totals.bytes)
        dead = sum(one.state == "dead" for one in look.sessions)
        facts = [
            ("sessions", f"{totals.sessions:,}{f' ({dead:,} dead)' if dead else ''}"),
            ("objects", f"{totals.objects:,}"),
            ("live", format_size(totals.bytes)),
            ("idle", format_size(totals.idle_bytes)),
        ]
        notes = []
        if look.objects is None:
            notes.append(
                f"more than {_LISTED_AT_MOST:,} objects: rates are of sums, and none is shown"
            )
        return Screen(
            f"proxyexec top - {self._listing.url}",
            facts,
            None if self._last is None else _rates(self._last, look),
            list(self._history),
            (_sessions(look), *self._largest(look)),
            notes,
        )

    def _largest(self, look: _Look) -> list[ScreenTable]:
        if look.objects is None:
            return []
        sessions = {id(one): session for (session, _), one in look.objects.items()}
        largest = in_order(list(look.objects.values()), "bytes")[:_LARGEST]
        types: dict[tuple[str, str, float | None], str] = {}
        rows = []
        for one in largest:
            session = sessions[id(one)]
            known = session, one.key, one.since
            types[known] = self._types.get(known) or tell(self._listing, session, one).type
            cells = one.key, format_size(one.bytes), _age(one.since), types[known]
            rows.append((*cells, _short(session)))
        self._types = types
        head = ("KEY", "SIZE", "AGE", "TYPE", "SESSION")
        return [ScreenTable("Largest objects", head, rows, ("SIZE", "AGE"), share=2)]


def _sessions(look: _Look) -> ScreenTable:
    by_size = sorted(look.sessions, key=lambda one: (-one.bytes, one.name))
    rows = [
        (
            one.name,
            owner_of(one),
            state_of(one),
            _age(one.since),
            f"{one.objects:,}",
            format_size(one.bytes),
        )
        for one in by_size
    ]
    head = ("SESSION", "OWNER", "STATE", "AGE", "OBJECTS", "SIZE")
    return ScreenTable("Sessions", head, rows, ("AGE", "OBJECTS", "SIZE"))


def _rates(before: _Look, now: _Look) -> Rates:
    seconds = max(now.at - before.at, 1e-9)
    if before.objects is None or now.objects is None:
        was, is_now = totals_of(before.sessions), totals_of(now.sessions)
        objects, size = is_now.objects - was.objects, is_now.bytes - was.bytes
        return Rates(
            max(objects, 0) / seconds,
            max(size, 0) / seconds,
            max(-objects, 0) / seconds,
            max(-size, 0) / seconds,
        )
    # Under a key that is free again, another object may have been stored.
    old = {(*place, one.since): one.bytes for place, one in before.objects.items()}
    new = {(*place, one.since): one.bytes for place, one in now.objects.items()}
    put, evicted = new.keys() - old.keys(), old.keys() - new.keys()
    return Rates(
        len(put) / seconds,
        sum(new[one] for one in put) / seconds,
        len(evicted) / seconds,
        sum(old[one] for one in evicted) / seconds,
    )


def _short(session: str) -> str:
    """A session's name, short enough for a column; "proxyexec store show" takes it, too."""
    return session if session.startswith("durable-") else session.removeprefix("session-")[:8]


def _age(since: float | None) -> str:
    return "" if since is None else ago(time.time() - since)
