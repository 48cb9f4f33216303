"""What the Redis connector has stored, seen from outside: keys are read, and nothing else.

What a session's keys hold is said in ``_redis_session``, ``_redis_durable`` and ``_redis_format``.
An index may be long, and the server serves nobody else while it reads one as a whole; so it is
read in pieces.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from proxyexec_connectors import _redis_durable
from proxyexec_connectors._layout import beginnings
from proxyexec_connectors._owners import Owner
from proxyexec_connectors._redis_session import (
    SESSIONS,
    Names,
    may_have_dropped_keys,
    size_and_time,
)
from proxyexec_connectors.errors import CorruptObjectError
from proxyexec_connectors.listing import ObjectStart, StoredObject, StoredSession

if TYPE_CHECKING:
    from proxyexec_connectors._redis_link import Link
    from proxyexec_connectors._redis_wire import Command

__all__ = ["RedisListing", "objects_of"]

# How many entries of an index are read at a time.
_AT_A_TIME = 1000

# What is read of an object to say how it begins.
_START_BYTES = 64 * 1024


class RedisListing:
    """See :class:`proxyexec_connectors.listing.Listing`.

    Args:
        link: to the server; closed with this.
    """

    def __init__(self, link: Link) -> None:
        self._link = link

    @property
    def url(self) -> str:
        return self._link.place.public

    def sessions(self) -> list[StoredSession]:
        owned, durable = self._link.run(
            [("SMEMBERS", SESSIONS), ("SMEMBERS", _redis_durable.DURABLE)]
        )
        names = [Names(_text(member)) for member in sorted(owned)]
        asked: list[Command] = [
            command
            for one in names
            for command in (
                ("EXISTS", one.alive),
                ("GET", one.owner),
                # One that has just been closed has not died.
                ("SISMEMBER", SESSIONS, one.session),
            )
        ]
        replies = iter(self._link.run(asked) if asked else ())
        told = list(zip(names, replies, replies, replies, strict=True))
        names = [one for one, _, _, is_there in told if is_there]
        signs = [(bool(alive), Owner.read(said)) for _, alive, said, is_there in told if is_there]
        tells = None in {_is_alive(*one) for one in signs} and not may_have_dropped_keys(self._link)
        found = [
            self._owned(one, *sign, tells=tells) for one, sign in zip(names, signs, strict=True)
        ]
        found += filter(None, map(self._durable, map(_text, durable)))
        return sorted(found)

    def objects(self, session: str) -> list[StoredObject]:
        return objects_of(self._link, _names_of(session))

    def start(self, session: str, key: str) -> ObjectStart | None:
        names = _names_of(session)
        name = names.prefix + names.field_of(key)
        [kind] = self._link.run([("TYPE", name)])
        if kind == b"none":
            return None
        # An object may be evicted, and another one come, between the two.
        command: Command = (
            ("HGET", name, b"0") if kind == b"hash" else ("GETRANGE", name, 0, _START_BYTES - 1)
        )
        [start] = self._link.run([command], raw=True)
        if start is None or start == b"":
            return None
        if not isinstance(start, bytes):
            raise CorruptObjectError(self.url, key, "neither a string nor a hash")
        try:
            return ObjectStart(*beginnings(start[:_START_BYTES]))
        except ValueError as error:
            raise CorruptObjectError(self.url, key, str(error)) from error

    def close(self) -> None:
        self._link.close()

    def _owned(
        self, names: Names, is_alive: bool, owner: Owner | None, *, tells: bool
    ) -> StoredSession:
        state = {True: "alive", False: "dead", None: "dead" if tells else "unknown"}
        sizes = [one.bytes for one in _indexed(self._link, names)]
        return StoredSession(
            _text(names.session),
            "session",
            state[_is_alive(is_alive, owner)],
            None if owner is None else owner.host,
            None if owner is None else owner.pid,
            None if owner is None else owner.since,
            len(sizes),
            sum(sizes),
        )

    def _durable(self, session: str) -> StoredSession | None:
        names = _redis_durable.durable_names(session)
        known = _redis_durable.about(self._link, names, session)
        if known is None:
            return None
        held = known.objects, known.bytes
        return StoredSession(session, "durable", "", None, None, known.created, *held)


def objects_of(link: Link, names: Names) -> list[StoredObject]:
    """Return the objects of a session, without those that the server has lost."""
    found: list[StoredObject] = []
    listed = _indexed(link, names)
    for start in range(0, len(listed), _AT_A_TIME):
        some = listed[start : start + _AT_A_TIME]
        there = link.run([("EXISTS", names.prefix + names.field_of(one.key)) for one in some])
        found += [one for one, is_there in zip(some, there, strict=True) if is_there]
    return found


def _indexed(link: Link, names: Names) -> list[StoredObject]:
    """Return what the index says there is."""
    found = {}
    for field, said in _fields(link, names):
        if field.startswith(b"o:"):
            try:
                known = size_and_time(said)
            except ValueError as error:
                reason = "it tells of a size that is no number"
                raise CorruptObjectError(link.place.public, "index", reason) from error
            if known is not None:
                key = field[2:].decode("utf-8", "surrogatepass")
                found[key] = StoredObject(key, *known)
    return sorted(found.values())


def _fields(link: Link, names: Names) -> Iterator[tuple[bytes, bytes]]:
    cursor: bytes | int = 0
    while True:
        # One that changes meanwhile may be read twice.
        [(cursor, pairs)] = link.run([("HSCAN", names.index, cursor, "COUNT", _AT_A_TIME)])
        yield from _pairs(pairs)
        if int(cursor) == 0:
            return


def _pairs(read: dict[bytes, bytes] | Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
    if isinstance(read, dict):
        yield from read.items()
    else:
        yield from zip(read[::2], read[1::2], strict=True)


def _is_alive(beats: bool, owner: Owner | None) -> bool | None:
    """Tell whether an owner lives: as the kernel has it where that is seen, or as he has it."""
    is_running = None if owner is None else owner.is_running()
    return is_running if is_running is not None else beats or None


def _names_of(session: str) -> Names:
    if _redis_durable.is_durable(session):
        return _redis_durable.durable_names(session)
    return Names(session)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
