"""The ``Connector`` protocol: bytes by key, and what every backend promises about them.

An object is a sequence of *frames* (buffers of bytes) under a string key that the caller made
up. Connectors never serialize and never look into a frame; they move bytes, translate their
library's errors into :mod:`proxyexec_connectors.errors`, and clean up after themselves.

One connector object is one *session*: a part of the place (directory, database, memory) that
it shares with nobody. The process that constructed the connector owns the session. Unpickling
a connector, or :meth:`Connector.attach`, opens the same session from another process without
owning it. When the owner closes it, or dies, every object of the session goes away.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    from typing_extensions import Buffer, Self

    Frames: TypeAlias = Sequence[Buffer]

__all__ = ["Connector", "Usage"]


class Usage(NamedTuple):
    """What a session holds now."""

    objects: int
    """Number of objects."""
    bytes: int
    """Their size in bytes as stored, headers and padding included."""


@runtime_checkable
class Connector(Protocol):
    """Frames by key, in one session of one place.

    Promises, checked by :class:`proxyexec_connectors.testing.ConnectorSuite`:

    - A put is atomic: a reader sees the whole object or none.
    - The first put under a key wins; later ones change nothing.
    - A put has copied what it was given when it returns.
    - Frames come back with the same bytes and in the same number and order.
    - Frames that come back writable are private to the caller: writing into them is seen by
      nobody else. Read-only ones may be shared.
    - Connectors may be used from several threads, survive a fork, and are picklable.
    - Backend failures are raised as :class:`proxyexec_connectors.errors.ConnectorError`.
    """

    @property
    def url(self) -> str:
        """The place, for messages: without password, without session."""
        ...

    @property
    def address(self) -> str:
        """The place and the session as a URL that :meth:`attach` takes; never a password."""
        ...

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Open a new session in the place that ``url`` names."""
        ...

    @classmethod
    def attach(cls, address: str) -> Self:
        """Open an existing session, without owning it."""
        ...

    def put(self, key: str, frames: Frames) -> None:
        """Store ``frames`` under ``key``, unless the key is taken."""
        ...

    def get(self, key: str) -> Frames | None:
        """Return the frames under ``key``, or ``None`` when there are none."""
        ...

    def exists(self, key: str) -> bool:
        """Tell whether there is an object under ``key``."""
        ...

    def evict(self, keys: Iterable[str]) -> None:
        """Remove the objects under ``keys``; keys without an object are passed over.

        One failure stops no other: all keys are tried, then the first error is raised.
        """
        ...

    def put_many(self, items: Mapping[str, Frames]) -> None:
        """Store several objects, each atomically, in as few round trips as possible."""
        ...

    def get_many(self, keys: Sequence[str]) -> list[Frames | None]:
        """Return what :meth:`get` would for each key, in as few round trips as possible."""
        ...

    def usage(self) -> Usage:
        """Count what this session holds."""
        ...

    def close(self) -> None:
        """Let go of the place; as the owner, remove the session and all its objects.

        Closing twice is fine. In a forked child of the owner nothing is removed.
        """
        ...
