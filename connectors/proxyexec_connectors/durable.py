"""Durable sessions: objects that belong to a name, not to a process.

A session as :mod:`proxyexec_connectors.protocol` has it ends with its owner. A *durable* one has
no owner: any number of processes open it by its name, and it stays when they are gone, until it is
removed as a whole, or has not been used for longer than its *age*: then :func:`collect` may
remove it (and a server that can do so forgets it by itself).

While a process is at something that others must not begin as well, it holds a *claim*: a name that
one process at most has at a time. A claim goes away when its process dies, however that dies.

The functions here take the URL of a place. Directories and Redis have durable sessions; connectors
of others do if their class has the methods of :class:`DurableConnector`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast, runtime_checkable

from proxyexec_connectors.errors import NotDurableError
from proxyexec_connectors.protocol import Connector
from proxyexec_connectors.registry import connector_class, without_password

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "DEFAULT_MAX_AGE",
    "Claim",
    "DurableConnector",
    "DurableSession",
    "check_max_age",
    "check_name",
    "collect",
    "open_session",
    "remove_session",
    "sessions",
]

DEFAULT_MAX_AGE = 7 * 24 * 3600.0
"""Seconds without use after which a durable session may be collected, unless it was told."""

# Ten years: what clocks and servers take.
_OLDEST = 10 * 366 * 24 * 3600.0

_IS_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}").fullmatch


class DurableSession(NamedTuple):
    """What is known of a durable session from outside."""

    name: str
    created: float
    """When it was made, in seconds since the epoch."""
    used: float
    """When it was last used, about, in seconds since the epoch."""
    max_age: float
    """How many seconds after that it may be collected."""
    objects: int
    """Number of objects in it."""
    bytes: int
    """Their size in bytes as stored."""

    def is_expired(self, now: float | None = None) -> bool:
        """Tell whether it has not been used for longer than its age."""
        return (time.time() if now is None else now) - self.used > self.max_age


class Claim(Protocol):
    """A name that this process has, and no other one."""

    @property
    def name(self) -> str: ...

    def release(self) -> None:
        """Let go of the name. Twice is fine; in a forked child, nothing happens."""
        ...


@runtime_checkable
class DurableConnector(Connector, Protocol):
    """A connector whose place has durable sessions; see the module's documentation.

    A connector of a durable session removes nothing when it is closed. Beside what
    :class:`~proxyexec_connectors.protocol.Connector` promises, and
    :class:`proxyexec_connectors.testing.DurableSuite` checks:

    - The first put under a key wins, whatever processes put at the same time.
    - Who stores something in a session that was removed gets a
      :class:`~proxyexec_connectors.errors.ConnectorUnavailableError`, and leaves nothing behind.
    """

    @classmethod
    def open_durable(
        cls, url: str, name: str, *, max_age: float | None = None, create: bool = True
    ) -> Self:
        """Open the durable session of that name in the place that ``url`` names.

        Args:
            url: of the place.
            name: letters, digits, ``_``, ``.`` and ``-``, at most 100.
            max_age: seconds without use after which it may be collected; ``None`` leaves that as
                it is, or takes :data:`DEFAULT_MAX_AGE`.
            create: whether to make it if it is not there.

        Raises:
            SessionMissingError: it is not there, and is not to be made.
        """
        ...

    @classmethod
    def durable_sessions(cls, url: str) -> list[DurableSession]:
        """Return all durable sessions of a place, by name."""
        ...

    @classmethod
    def remove_durable(cls, url: str, name: str, *, only_expired: bool = False) -> bool:
        """Remove a durable session with all that is in it.

        Args:
            url: of the place.
            name: of the session.
            only_expired: whether to leave one that has not expired, or that somebody has a claim
                in.

        Returns:
            Whether there was one, and it has been removed.
        """
        ...

    def durable(self, name: str, *, max_age: float | None = None) -> Self:
        """Open a durable session in the place of this connector."""
        ...

    def keys(self, prefix: str = "") -> list[str]:
        """Return the keys that begin with ``prefix``, in order.

        Of keys that are not made of letters, digits, ``_``, ``.``, ``+`` and ``-``, or are longer
        than 200, it is not said whether they are among them.
        """
        ...

    def touch(self) -> None:
        """Say that the session is used: its age begins again, and that of all that is in it."""
        ...

    def claim(self, name: str) -> Claim | None:
        """Take a name, unless another process, or thread, that lives has it.

        Args:
            name: as for a key that :meth:`keys` returns.
        """
        ...

    def claimed(self, names: Sequence[str]) -> list[bool]:
        """Tell for each name whether somebody has it who lives."""
        ...


def check_name(name: str) -> str:
    """Return ``name`` if it is one for a durable session.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(name, str) or not _IS_NAME(name):
        raise ValueError(
            f"{name!r} is no name for a durable session: it takes up to 100 letters, digits, "
            "'_', '.' and '-', and begins with a letter or a digit"
        )
    return name


def check_max_age(max_age: float | None) -> None:
    """Raise ``ValueError`` unless this is an age for a durable session, or none."""
    if max_age is not None and not 0 < max_age <= _OLDEST:
        raise ValueError(f"max_age must be a number of seconds above zero, not {max_age!r}")


def open_session(
    url: str, name: str, *, max_age: float | None = None, create: bool = True
) -> DurableConnector:
    """Open a durable session; see :meth:`DurableConnector.open_durable`.

    Raises:
        NotDurableError: the place has no durable sessions.
    """
    return _class_for(url).open_durable(url, check_name(name), max_age=max_age, create=create)


def sessions(url: str) -> list[DurableSession]:
    """Return the durable sessions of a place; see :meth:`DurableConnector.durable_sessions`."""
    return _class_for(url).durable_sessions(url)


def remove_session(url: str, name: str) -> bool:
    """Remove a durable session; see :meth:`DurableConnector.remove_durable`."""
    return _class_for(url).remove_durable(url, check_name(name))


def collect(url: str) -> list[DurableSession]:
    """Remove the durable sessions of a place that have expired; return what they were."""
    kind = _class_for(url)
    return [
        one
        for one in kind.durable_sessions(url)
        if one.is_expired() and kind.remove_durable(url, one.name, only_expired=True)
    ]


def _class_for(url: str) -> type[DurableConnector]:
    kind = connector_class(url)
    if not callable(getattr(kind, "open_durable", None)):
        raise NotDurableError(without_password(url))
    return cast("type[DurableConnector]", kind)
