"""Objects in the memory of this process: for thread pools and tests.

A put snapshots the frames, so that what the caller does to its data afterwards is not seen;
a get returns read-only views of that snapshot. Nothing is ever sent to another process:
there, an unpickled ``MemoryConnector`` raises
:class:`~proxyexec_connectors.errors.ForeignProcessError` when it is used.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from proxyexec_connectors._copying import bytes_of
from proxyexec_connectors.errors import ConnectorClosedError, ForeignProcessError
from proxyexec_connectors.listing import ObjectStart, StoredObject, StoredSession
from proxyexec_connectors.protocol import Usage

if TYPE_CHECKING:
    from proxyexec_connectors.protocol import Frames

__all__ = ["MemoryConnector"]

_URL = "memory://"

# What a listing shows of each frame.
_START_BYTES = 64 * 1024


class MemoryConnector:
    """A session in this process's memory."""

    def __init__(self) -> None:
        self._session = secrets.token_hex(8)
        self._owner = os.getpid()
        # With the time at which each was stored.
        self._objects: dict[str, tuple[tuple[memoryview, ...], float]] | None = {}
        self._since = time.time()
        # Makes "count, then insert" one step; held for dictionary operations only.
        self._lock = threading.Lock()
        _here[self._session] = self

    @classmethod
    def from_url(cls, url: str) -> MemoryConnector:
        """Open a new session; every ``memory://`` URL names the same place, this process."""
        return cls()

    @classmethod
    def attach(cls, address: str) -> MemoryConnector:
        """Return the session's own connector, or, in another process, one that says no.

        Raises:
            ValueError: this is not the address of a session.
        """
        # Process numbers do not end where those of ports do.
        session, _, owner = urlsplit(address).netloc.partition(":")
        if not (session.isalnum() and owner.isdecimal() and owner.isascii() and len(owner) < 20):
            raise ValueError(f"{address!r} is not the address of a session")
        return _attach(session, int(owner))

    def __reduce__(self) -> tuple[object, ...]:
        return _attach, (self._session, self._owner)

    def __repr__(self) -> str:
        return f"MemoryConnector(session={self._session!r})"

    @property
    def url(self) -> str:
        return _URL

    @property
    def source(self) -> str:
        return _URL

    @property
    def address(self) -> str:
        return f"{_URL}{self._session}:{self._owner}"

    def put(self, key: str, frames: Frames) -> None:
        snapshot = tuple(memoryview(bytes_of(frame)) for frame in frames)
        objects = self._open()
        with self._lock:
            objects.setdefault(key, (snapshot, time.time()))

    def get(self, key: str) -> Frames | None:
        found = self._open().get(key)
        return None if found is None else found[0]

    def exists(self, key: str) -> bool:
        return key in self._open()

    def evict(self, keys: Iterable[str]) -> None:
        objects = self._open()
        for key in keys:
            objects.pop(key, None)

    def put_many(self, items: Mapping[str, Frames]) -> None:
        for key, frames in items.items():
            self.put(key, frames)

    def get_many(self, keys: Sequence[str]) -> list[Frames | None]:
        return [self.get(key) for key in keys]

    def usage(self) -> Usage:
        objects = self._open()
        with self._lock:
            snapshots = list(objects.values())
        return Usage(len(snapshots), sum(frame.nbytes for one, _ in snapshots for frame in one))

    def objects(self) -> list[StoredObject]:
        objects = self._open()
        with self._lock:
            found = list(objects.items())
        return sorted(
            StoredObject(key, sum(frame.nbytes for frame in frames), since)
            for key, (frames, since) in found
        )

    @classmethod
    def listing(cls, url: str) -> _MemoryListing:
        return _MemoryListing()

    def close(self) -> None:
        self._objects = None

    @property
    def _is_open(self) -> bool:
        return self._objects is not None and self._owner == os.getpid()

    def _open(self) -> dict[str, tuple[tuple[memoryview, ...], float]]:
        objects = self._objects
        if self._owner != os.getpid():
            raise ForeignProcessError(_URL, self._owner, os.getpid())
        if objects is None:
            raise ConnectorClosedError(_URL)
        return objects


class _MemoryListing:
    """The sessions of this process; see :class:`proxyexec_connectors.listing.Listing`."""

    url = _URL

    def sessions(self) -> list[StoredSession]:
        host, process = socket.gethostname(), os.getpid()
        return [
            StoredSession(name, "session", "alive", host, process, one._since, *one.usage())
            for name, one in sorted(_here.items())
            if one._is_open
        ]

    def objects(self, session: str) -> list[StoredObject]:
        one = self._session(session)
        return [] if one is None else one.objects()

    def start(self, session: str, key: str) -> ObjectStart | None:
        one = self._session(session)
        frames = None if one is None else one.get(key)
        if frames is None:
            return None
        views = [memoryview(frame) for frame in frames]
        return ObjectStart(
            [view.nbytes for view in views], [bytes(view[:_START_BYTES]) for view in views]
        )

    def close(self) -> None:
        pass

    def _session(self, name: str) -> MemoryConnector | None:
        one = _here.get(name)
        return one if one is not None and one._is_open else None


_here: weakref.WeakValueDictionary[str, MemoryConnector] = weakref.WeakValueDictionary()


def _attach(session: str, owner: int) -> MemoryConnector:
    """The connector of ``session`` in this process; a closed or foreign one elsewhere."""
    found = _here.get(session)
    if found is not None:
        return found
    stranger = MemoryConnector.__new__(MemoryConnector)
    stranger._session, stranger._owner = session, owner
    stranger._objects, stranger._lock = None, threading.Lock()
    return stranger


def _renew_locks_after_fork() -> None:
    # Another thread of the parent may have held a lock at the fork; it never lets go here.
    for connector in list(_here.values()):
        connector._lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_locks_after_fork)
