"""Errors, as one tree; ``proxyexec.errors`` continues it.

::

    ProxyExecError
    └── ConnectorError
        ├── ConnectorClosedError      (ValueError)       used after close()
        ├── ForeignProcessError       (RuntimeError)     in-memory data asked for elsewhere
        ├── ConnectorFullError        (OSError, ENOSPC)  no room for an object
        ├── ConnectorUnavailableError (ConnectionError)  the backend does not answer
        ├── CorruptObjectError        (ValueError)       stored bytes are not an object
        ├── NotDurableError           (ValueError)       a place that keeps nothing for good
        ├── NotListableError          (ValueError)       a place that nobody can look at
        ├── SessionMissingError       (LookupError)      no durable session of that name
        ├── UnsafeDirectoryError      (PermissionError)  a directory others control
        ├── UnknownSchemeError        (ValueError)       no connector for a URL
        └── MissingExtraError         (ImportError)      a connector's library is absent

Each is also the standard type that a caller would already catch. Constructors take facts
and write the sentence; facts are attributes; every error survives pickling.
"""

from __future__ import annotations

import errno
import inspect
from typing import Any

__all__ = [
    "ConnectorClosedError",
    "ConnectorError",
    "ConnectorFullError",
    "ConnectorUnavailableError",
    "CorruptObjectError",
    "ForeignProcessError",
    "MissingExtraError",
    "NotDurableError",
    "NotListableError",
    "ProxyExecError",
    "SessionMissingError",
    "UnknownSchemeError",
    "UnsafeDirectoryError",
]


class ProxyExecError(Exception):
    """Root of every error that proxyexec and its connectors raise.

    Subclasses keep each fact that their constructor takes as an attribute of the same name.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the facts, so that the sentence is written again on the other side."""
        _, *facts = inspect.signature(type(self).__init__).parameters
        # The constructor of an error without facts of its own takes (self, *args, **kwargs).
        values = self.args if "args" in facts else [getattr(self, fact) for fact in facts]
        return type(self), tuple(values), self.__dict__


class ConnectorError(ProxyExecError):
    """Something went wrong in the place where bytes are kept."""


class ConnectorClosedError(ConnectorError, ValueError):
    """A connector was used after it had been closed."""

    def __init__(self, url: str) -> None:
        self.url = url
        super().__init__(f"the connector for {url} is closed; open a new one")


class ForeignProcessError(ConnectorError, RuntimeError):
    """Data in the memory of one process was asked for in another."""

    def __init__(self, url: str, owner: int, here: int) -> None:
        self.url, self.owner, self.here = url, owner, here
        super().__init__(
            f"{url} lives in the memory of process {owner} and cannot be used from process "
            f"{here}; with process pools use a FileConnector or a RedisConnector"
        )


class ConnectorFullError(ConnectorError, OSError):
    """There is no room for an object of ``needed`` bytes (``free`` were left)."""

    def __init__(self, url: str, needed: int, free: int | None = None) -> None:
        self.url, self.needed, self.free = url, needed, free
        left = "" if free is None else f", {free:,} bytes are free"
        super().__init__(
            errno.ENOSPC,
            f"no room for an object of {needed:,} bytes in {url}{left}; "
            "evict objects, or give the store more space",
        )


class ConnectorUnavailableError(ConnectorError, ConnectionError):
    """The backend does not answer, or stopped answering."""

    def __init__(self, url: str, reason: str) -> None:
        self.url, self.reason = url, reason
        super().__init__(f"{url} is not available: {reason}")


class CorruptObjectError(ConnectorError, ValueError):
    """What is stored under a key is not a whole object."""

    def __init__(self, url: str, key: str, reason: str) -> None:
        self.url, self.key, self.reason = url, key, reason
        super().__init__(f"object {key!r} in {url} is damaged: {reason}")


class NotDurableError(ConnectorError, ValueError):
    """Something was to outlive its process in a place where nothing does."""

    def __init__(self, url: str) -> None:
        self.url = url
        super().__init__(
            f"{url} keeps nothing for longer than a process lives; use a directory, as in "
            "'file:///a/directory', or Redis, as in 'redis://host:6379'"
        )


class NotListableError(ConnectorError, ValueError):
    """Somebody wanted to look at a place that does not tell what it holds."""

    def __init__(self, url: str) -> None:
        self.url = url
        super().__init__(
            f"what is in {url} cannot be seen from outside; directories and Redis can be looked "
            "at, and in the process that uses it, an executor's leaks() tells"
        )


class SessionMissingError(ConnectorError, LookupError):
    """There is no durable session of that name: it was removed, collected, or never made."""

    def __init__(self, url: str, name: str) -> None:
        self.url, self.name = url, name
        super().__init__(f"there is no durable session {name!r} in {url}")


class UnsafeDirectoryError(ConnectorError, PermissionError):
    """A directory belongs to someone else, or others may write into it."""

    def __init__(self, directory: str, reason: str) -> None:
        self.directory, self.reason = directory, reason
        super().__init__(f"refusing to keep objects in {directory}: {reason}")


class UnknownSchemeError(ConnectorError, ValueError):
    """A URL names a connector that is not installed."""

    def __init__(self, url: str, known: tuple[str, ...]) -> None:
        self.url, self.known = url, known
        super().__init__(
            f"no connector for {url!r}: known schemes are {', '.join(known)}; others come from "
            "distributions with an entry point in the group 'proxyexec.connectors'"
        )


class MissingExtraError(ConnectorError, ImportError):
    """A connector needs a library that is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        self.what, self.extra = what, extra
        super().__init__(f"{what} needs the extra {extra!r}: pip install 'proxyexec[{extra}]'")
