"""Objects in a Redis server: for processes on several machines.

An object is one Redis hash: its frames, cut into pieces that Redis can hold, and their layout.
Frames are sent from where they lie. The connector does not serialize, compress, cache or
encrypt, and does not spread objects over a cluster; commands are tried again when the server
does not answer, with growing waits, for a few seconds.
"""

from __future__ import annotations

import logging
import secrets
import weakref
from pickle import PickleBuffer
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from proxyexec_connectors._redis_link import Link, Options, Place
from proxyexec_connectors._redis_session import (
    SESSIONS,
    SESSIONS_TTL_MS,
    Names,
    Ownership,
    chunks,
    unlink,
)
from proxyexec_connectors.errors import (
    ConnectorError,
    ConnectorUnavailableError,
    CorruptObjectError,
)
from proxyexec_connectors.protocol import Usage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from typing_extensions import Self

    from proxyexec_connectors._redis_link import Command
    from proxyexec_connectors.protocol import Frames

__all__ = ["RedisConnector"]

_logger = logging.getLogger("proxyexec_connectors")

# A value of Redis holds 512 MB at most. Far smaller pieces are faster both ways, as neither
# side has to grow a huge buffer, and a socket's timeout counts for one piece at a time.
_PIECE_BYTES = 4 << 20

# What one transaction carries. The server keeps a transaction's arguments in a buffer of 1 GiB
# at most, and serves nobody else while it executes.
_BATCH_BYTES = 64 << 20

# Up to this size, copying a piece is cheaper than sending it on its own.
_SMALL_BYTES = 8 << 10

_LAYOUT = b"l"

_DEFAULT = Options()

# First write wins, decided in one step with what the index says. The temporary key is found
# incomplete when the server lost it between the transactions of a big object.
_COMMIT = """
local whole = redis.call('HLEN', KEYS[1]) == tonumber(ARGV[3])
local taken = redis.call('EXISTS', KEYS[2]) == 1
if whole and not taken then
  redis.call('HSET', KEYS[3], ARGV[1], ARGV[2])
  redis.call('PEXPIRE', KEYS[3], ARGV[5])
  redis.call('SADD', KEYS[4], ARGV[6])
  redis.call('PEXPIRE', KEYS[4], ARGV[7])
  redis.call('RENAME', KEYS[1], KEYS[2])
else
  redis.call('UNLINK', KEYS[1])
end
redis.call('HDEL', KEYS[3], ARGV[4])
if whole or taken then return 1 end
return 0
"""


class RedisConnector:
    """A session in one database of a Redis server.

    Args:
        url: ``redis://``, ``rediss://`` (TLS; the query may hold redis-py's ``ssl_*`` options)
            or ``unix:///path?db=0``, with user and password where the server wants them. The
            options below may stand in its query too, and win there.
        ttl: seconds after which an object vanishes, should everything else fail. The owner
            renews it for as long as it lives.
        grace: seconds for which an owner may be silent before its session is swept.
        max_connections: connections at once; the owner has one more, for its heartbeats.
        timeout: seconds to wait for a connection, for the server to take up to 4 MiB, and for
            a reply.

    Raises:
        ConnectorUnavailableError: the server cannot be reached, or refuses.
        ValueError: the URL or an option makes no sense.
    """

    def __init__(
        self,
        url: str = "redis://127.0.0.1:6379/0",
        *,
        ttl: float = _DEFAULT.ttl,
        grace: float = _DEFAULT.grace,
        max_connections: int = _DEFAULT.max_connections,
        timeout: float = _DEFAULT.timeout,
    ) -> None:
        place = Place(url)
        options = place.with_options(Options(ttl, grace, max_connections, timeout))
        session = secrets.token_hex(8)
        link = Link(place, options._replace(max_connections=1))
        ownership = Ownership(link, Names(session), options)
        try:
            ownership.start()
        except BaseException:
            link.close()
            raise
        self._join(place, session, options, ownership)

    def _join(
        self, place: Place, session: str, options: Options, ownership: Ownership | None = None
    ) -> None:
        self._session, self._options, self._ownership = session, options, ownership
        self._names = Names(session)
        self._link = Link(place, options)
        self._finalizer = weakref.finalize(self, _drop, self._link, ownership)
        _joined_here.add(self)

    @classmethod
    def from_url(cls, url: str) -> Self:
        return cls(url)

    @classmethod
    def attach(cls, address: str) -> Self:
        place = Place(address)
        if place.session is None:
            raise ValueError(f"{place.public} is not the address of a session")
        session, options = place.session, place.with_options(_DEFAULT)
        for other in list(_joined_here):
            known = other._link.place
            if known.public == place.public and known.password is not None:
                place = known
        connector = _joined(cls, place.given, session, options)
        try:
            connector._link.run([("PING",)])
        except BaseException:
            connector.close()
            raise
        return connector

    def __reduce__(self) -> tuple[object, ...]:
        return _joined, (type(self), self._link.place.given, self._session, self._options)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r}, session={self._session!r})"

    @property
    def url(self) -> str:
        return self._link.place.public

    @property
    def address(self) -> str:
        return self._link.place.address(self._session, self._options)

    def put(self, key: str, frames: Frames) -> None:
        self.put_many({key: frames})

    def get(self, key: str) -> Frames | None:
        return self.get_many([key])[0]

    def exists(self, key: str) -> bool:
        [found] = self._link.run([("EXISTS", self._name(key))])
        return bool(found)

    def evict(self, keys: Iterable[str]) -> None:
        errors: list[ConnectorError] = []
        for fields in chunks([self._names.field_of(key) for key in keys]):
            try:
                unlink(self._link, self._names, fields)
            except ConnectorError as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def put_many(self, items: Mapping[str, Frames]) -> None:
        batch: list[_Parcel] = []
        size = 0
        for key, frames in items.items():
            parcel = _parcel(key, frames)
            if batch and size + parcel.nbytes > _BATCH_BYTES:
                self._store(batch)
                batch, size = [], 0
            batch.append(parcel)
            size += parcel.nbytes
        self._store(batch)

    def get_many(self, keys: Sequence[str]) -> list[Frames | None]:
        replies = self._link.run([("HGETALL", self._name(key)) for key in keys], raw=True)
        return [self._opened(key, reply) for key, reply in zip(keys, replies, strict=True)]

    def usage(self) -> Usage:
        [sizes] = self._link.run([("HVALS", self._names.index)])
        # An object that is still being written has no size yet.
        stored = [int(size) for size in sizes if size]
        return Usage(len(stored), sum(stored))

    def close(self) -> None:
        if self._finalizer.detach() is None:
            return
        self._link.close()
        if self._ownership is not None:
            self._ownership.end()

    def _name(self, key: str) -> bytes:
        return self._names.prefix + self._names.field_of(key)

    def _store(self, parcels: Sequence[_Parcel]) -> None:
        """Store parcels in one transaction; a single big one may take several."""
        ttl = round(self._options.ttl * 1000)
        needed = sum(parcel.nbytes for parcel in parcels)
        commands: list[Command] = []
        temporaries: list[bytes] = []
        try:
            for parcel in parcels:
                field = self._names.new_temporary()
                temporary = self._names.prefix + field
                temporaries.append(field)
                *groups, last = _groups(parcel.fields)
                for group in groups:
                    # Before the last transaction the key can be seen, hence is in the index.
                    self._link.run(
                        [
                            ("HSET", self._names.index, field, b""),
                            ("PEXPIRE", self._names.index, ttl),
                            ("SADD", SESSIONS, self._names.session),
                            ("PEXPIRE", SESSIONS, SESSIONS_TTL_MS),
                            ("HSET", temporary, *group),
                            ("PEXPIRE", temporary, ttl),
                        ],
                        atomic=True,
                        needed=needed,
                    )
                commands += [
                    ("HSET", temporary, *last),
                    ("PEXPIRE", temporary, ttl),
                    self._commit(parcel, field, ttl),
                ]
            replies = self._link.run(commands, atomic=True, needed=needed)
        except BaseException:
            self._discard(temporaries)
            raise
        if not all(replies[2::3]):
            reason = "it lost a part of an object while that was being stored"
            raise ConnectorUnavailableError(self.url, reason)

    def _commit(self, parcel: _Parcel, temporary: bytes, ttl: int) -> Command:
        names, field = self._names, self._names.field_of(parcel.key)
        keys = (names.prefix + temporary, names.prefix + field, names.index, SESSIONS)
        size, count = parcel.nbytes, len(parcel.fields)
        facts = (field, size, count, temporary, ttl, names.session, SESSIONS_TTL_MS)
        return ("EVAL", _COMMIT, len(keys), *keys, *facts)

    def _discard(self, temporaries: Sequence[bytes]) -> None:
        try:
            for some in chunks(temporaries):
                unlink(self._link, self._names, some, patient=False)
        except ConnectorError as error:
            # Said already by the error that brought us here; the session's end or the time to
            # live removes the rest.
            _logger.debug("temporary keys were left: %s", error)

    def _opened(self, key: str, reply: Any) -> Frames | None:
        """Put the frames of one object together again."""
        if isinstance(reply, Exception):
            raise CorruptObjectError(self.url, key, str(reply)) from reply
        if not reply:
            return None
        layout = reply.pop(_LAYOUT, None)
        if layout is None:
            raise CorruptObjectError(self.url, key, "its layout is missing")
        pieces = [reply.get(b"%d" % number, b"") for number in range(len(reply))]
        frames: list[memoryview] = []
        taken = 0
        try:
            for sizes in layout.split():
                expected = [int(size) for size in sizes.split(b"+") if int(size)]
                found = pieces[taken : taken + len(expected)]
                if [len(piece) for piece in found] != expected:
                    raise CorruptObjectError(self.url, key, "a piece is missing or cut short")
                taken += len(expected)
                frames.append(memoryview(found[0] if len(found) == 1 else b"".join(found)))
        except ValueError as error:
            if isinstance(error, CorruptObjectError):
                raise
            raise CorruptObjectError(self.url, key, "its layout is unreadable") from error
        if taken != len(pieces):
            raise CorruptObjectError(self.url, key, "there are more pieces than it has")
        return frames


class _Parcel(NamedTuple):
    """An object as the fields of a hash."""

    key: str
    fields: list[tuple[bytes, bytes | memoryview]]
    nbytes: int


def _parcel(key: str, frames: Frames) -> _Parcel:
    """Cut frames into pieces; the layout has ``size+size`` for a frame of two pieces."""
    layout: list[bytes] = []
    pieces: list[memoryview] = []
    for frame in frames:
        # Unlike memoryview.cast, raw() takes empty buffers and Fortran order.
        view = PickleBuffer(frame).raw()
        starts = range(0, view.nbytes, _PIECE_BYTES)
        cut = [view[start : start + _PIECE_BYTES] for start in starts]
        layout.append(b"+".join(b"%d" % piece.nbytes for piece in cut) or b"0")
        pieces += cut
    head = b" ".join(layout)
    fields: list[tuple[bytes, bytes | memoryview]] = [(_LAYOUT, head)]
    for number, piece in enumerate(pieces):
        small = piece.nbytes <= _SMALL_BYTES
        fields.append((b"%d" % number, bytes(piece) if small else piece))
    return _Parcel(key, fields, len(head) + sum(piece.nbytes for piece in pieces))


def _groups(
    fields: Sequence[tuple[bytes, bytes | memoryview]],
) -> Iterator[tuple[bytes | memoryview, ...]]:
    """Arguments for HSET, in groups that fit into one transaction each."""
    group: list[bytes | memoryview] = []
    size = 0
    for name, value in fields:
        if group and size + len(value) > _BATCH_BYTES:
            yield tuple(group)
            group, size = [], 0
        group += (name, value)
        size += len(value)
    yield tuple(group)


_Kind = TypeVar("_Kind", bound=RedisConnector)

_joined_here: weakref.WeakSet[RedisConnector] = weakref.WeakSet()


def _joined(kind: type[_Kind], url: str, session: str, options: Options) -> _Kind:
    """Open an existing session, without owning it; nothing is sent yet."""
    connector = kind.__new__(kind)
    connector._join(Place(url), session, options)
    return connector


def _drop(link: Link, ownership: Ownership | None) -> None:
    """What close() does, for a connector that was dropped or outlived its interpreter."""
    link.close()
    if ownership is not None:
        try:
            ownership.end()
        except ConnectorError as error:
            _logger.warning("a dropped session was left to its time to live: %s", error)
