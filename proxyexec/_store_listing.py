"""What ``proxyexec store …`` and ``proxyexec top`` show of a place; nothing in it is changed.

This is what can be told from outside. Which call has stored an object, and which futures and
proxies hold it, is known in the process that owns the session only: see ``_holders``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

from proxyexec_connectors.errors import CorruptObjectError, NotListableError
from proxyexec_connectors.listing import open_listing

from proxyexec._looks import type_of

if TYPE_CHECKING:
    from proxyexec_connectors.listing import Listing, StoredObject, StoredSession

__all__ = [
    "NotThereError",
    "ObjectTold",
    "Totals",
    "find_session",
    "in_order",
    "listing_of",
    "look_at",
    "owner_of",
    "session_in",
    "state_of",
    "tell",
    "totals_of",
]


class NotThereError(ValueError):
    """There is no such session or object, or it is not said which one."""


@dataclass(frozen=True)
class ObjectTold:
    """What can be told of an object from outside."""

    key: str
    bytes: int
    since: float | None
    type: str
    """What its type seems to be; empty if that cannot be told."""
    frames: Sequence[int]
    """The lengths of its frames."""


@dataclass(frozen=True)
class Totals:
    """What several sessions hold together."""

    sessions: int
    objects: int
    bytes: int
    idle_bytes: int


def listing_of(url: str) -> Listing:
    """Look at a place.

    Raises:
        NotListableError: it cannot be looked at from another process.
    """
    if urlsplit(url).scheme == "memory":
        raise NotListableError(url)
    return open_listing(url)


@contextlib.contextmanager
def look_at(url: str) -> Iterator[Listing]:
    """Look at a place for a moment; raises what :func:`listing_of` does."""
    with contextlib.closing(listing_of(url)) as listing:
        yield listing


def session_in(url: str) -> str | None:
    """Return the session that a URL names, if it is the address of one."""
    named = parse_qs(urlsplit(url).query).get("session")
    return named[0] if named else None


def find_session(listing: Listing, name: str | None) -> StoredSession:
    """Return the session of that name.

    Args:
        listing: of the place.
        name: of the session, or how it begins; ``None`` for the only one.

    Raises:
        NotThereError: there is none, or there are several.
    """
    sessions = listing.sessions()
    if name is None:
        found = sessions
    else:
        found = [one for one in sessions if one.name == name] or [
            one for one in sessions if one.name.startswith((name, f"session-{name}"))
        ]
    if len(found) == 1:
        return found[0]
    if not found:
        what = "no session" if name is None else f"no session {name!r}"
        raise NotThereError(f"there is {what} in {listing.url}")
    names = ", ".join(one.name for one in found[:5]) + (", ..." if len(found) > 5 else "")
    raise NotThereError(f"which session of {listing.url}? There are {names}")


def in_order(objects: Sequence[StoredObject], by: str) -> list[StoredObject]:
    """Return objects with the largest, the oldest, or the first by its key in front."""
    if by == "bytes":
        return sorted(objects, key=lambda one: (-one.bytes, one.key))
    if by == "since":
        return sorted(objects, key=lambda one: (one.since is None, one.since or 0.0, one.key))
    return sorted(objects)


def tell(listing: Listing, session: str, one: StoredObject) -> ObjectTold:
    """Look into an object."""
    try:
        start = listing.start(session, one.key)
    except CorruptObjectError:
        return ObjectTold(one.key, one.bytes, one.since, "(damaged)", ())
    if start is None:  # evicted meanwhile
        return ObjectTold(one.key, one.bytes, one.since, "(gone)", ())
    return ObjectTold(one.key, one.bytes, one.since, type_of(start), list(start.lengths))


def totals_of(sessions: Sequence[StoredSession]) -> Totals:
    """Add up what sessions hold."""
    return Totals(
        len(sessions),
        sum(one.objects for one in sessions),
        sum(one.bytes for one in sessions),
        sum(one.idle_bytes for one in sessions),
    )


def owner_of(session: StoredSession) -> str:
    """Return who owns a session, as ``host:pid``; empty if that is not known."""
    if session.pid is None:
        return ""
    return f"{session.host}:{session.pid}"


def state_of(session: StoredSession) -> str:
    """Return what a session is: that of a living owner, of a dead one, or nobody's."""
    return session.state or {"durable": "group"}.get(session.kind, session.kind)
