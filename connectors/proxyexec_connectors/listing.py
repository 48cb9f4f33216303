"""What is stored in a place, seen from outside: its sessions, their owners, their objects.

Looking changes nothing: no session is opened or swept, no lock is taken that anybody waits for, no
time to live is renewed, and no object is unpickled. What is seen is of one moment, or of several
that follow each other: objects may come and go between them.

The functions here take the URL of a place. Directories and Redis can be looked at, and from within
a process its ``memory://``; connectors of others can if their class has the methods of
:class:`ListingConnector`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol, cast, runtime_checkable

from proxyexec_connectors.errors import NotListableError
from proxyexec_connectors.protocol import Connector
from proxyexec_connectors.registry import connector_class, without_password

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "Listing",
    "ListingConnector",
    "ObjectStart",
    "StoredObject",
    "StoredSession",
    "open_listing",
]


class StoredSession(NamedTuple):
    """One session of a place."""

    name: str
    """Its id, as in the address of a connector."""
    kind: str
    """``"session"``; ``"durable"`` for one that belongs to nobody; ``"copies"`` for what a host
    keeps of objects of a Redis server, which goes with the last process that uses it."""
    state: str
    """Whether the owner is ``"alive"``, ``"dead"``, or ``"unknown"``; empty where there is none."""
    host: str | None
    """Where the owner runs, by the name that it gives its host."""
    pid: int | None
    """The owner's process id there."""
    since: float | None
    """When it was opened, in seconds since the epoch."""
    objects: int
    """Number of objects."""
    bytes: int
    """Their size in bytes as stored."""
    idle_bytes: int = 0
    """Bytes that belong to no object, as they are kept for the next ones, or being written."""


class StoredObject(NamedTuple):
    """One object of a session."""

    key: str
    """Its key; or what stands for it, where only a digest of it is known."""
    bytes: int
    """Its size in bytes as stored."""
    since: float | None
    """When it was stored, in seconds since the epoch."""


class ObjectStart(NamedTuple):
    """How an object begins."""

    lengths: Sequence[int]
    """Of its frames, in bytes."""
    starts: Sequence[bytes]
    """The first bytes of the first frames."""


class Listing(Protocol):
    """A place that somebody looks at."""

    @property
    def url(self) -> str:
        """The place, for messages: without password."""
        ...

    def sessions(self) -> list[StoredSession]:
        """Return all sessions, those of dead owners included, by name."""
        ...

    def objects(self, session: str) -> list[StoredObject]:
        """Return the objects of a session, by key; none if there is no such session."""
        ...

    def start(self, session: str, key: str) -> ObjectStart | None:
        """Return how an object begins; ``None`` if there is none.

        Raises:
            CorruptObjectError: what is there is no object.
        """
        ...

    def close(self) -> None:
        """Let go of the place."""
        ...


@runtime_checkable
class ListingConnector(Connector, Protocol):
    """A connector whose place can be looked at; see the module's documentation.

    :class:`proxyexec_connectors.testing.ListingSuite` checks what is promised.
    """

    @classmethod
    def listing(cls, url: str) -> Listing:
        """Look at the place that ``url`` names."""
        ...

    def objects(self) -> list[StoredObject]:
        """Return the objects of this session, by key."""
        ...


def open_listing(url: str) -> Listing:
    """Look at the place that ``url`` names.

    Raises:
        NotListableError: its connector does not tell.
        ConnectorError: the place cannot be reached.
        ValueError: the URL cannot be read.
    """
    kind = connector_class(url)
    if not callable(getattr(kind, "listing", None)):
        raise NotListableError(without_password(url))
    return cast("type[ListingConnector]", kind).listing(url)
