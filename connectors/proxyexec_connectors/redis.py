"""Objects in a Redis server: for processes on several machines.

An object is one Redis key; ``_redis_format`` says how. Its bytes are sent from where they lie,
and received into the memory where they stay. The connector does not serialize, compress or
encrypt, and does not spread objects over a cluster; commands are tried again when the server
does not answer, with growing waits, for a few seconds.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import urlencode

from proxyexec_connectors import _redis_durable
from proxyexec_connectors._anonymous import allocate
from proxyexec_connectors._host_cache import HostCache, Known
from proxyexec_connectors._layout import split
from proxyexec_connectors._redis_format import HEAD, Head, cut, run_of
from proxyexec_connectors._redis_link import Link, Options, Place
from proxyexec_connectors._redis_listing import RedisListing, objects_of
from proxyexec_connectors._redis_reading import WAYS, PieceReceiver, Start, Way
from proxyexec_connectors._redis_session import (
    SESSIONS,
    SESSIONS_TTL_MS,
    Names,
    Ownership,
    chunks,
    listed,
    size_and_time,
    unlink,
)
from proxyexec_connectors._redis_wire import Request, ready
from proxyexec_connectors.durable import DurableSession, check_max_age, check_name
from proxyexec_connectors.errors import (
    ConnectorError,
    ConnectorFullError,
    ConnectorUnavailableError,
    CorruptObjectError,
    NotDurableError,
)
from proxyexec_connectors.protocol import Usage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from typing_extensions import Buffer, Self

    from proxyexec_connectors._host_cache import Write
    from proxyexec_connectors._redis_durable import RedisClaim
    from proxyexec_connectors._redis_wire import Command, Refusal, Replies
    from proxyexec_connectors.listing import StoredObject
    from proxyexec_connectors.protocol import Frames

__all__ = ["RedisConnector"]

_logger = logging.getLogger("proxyexec.connectors.redis")

# Objects up to the first size come and go in one round trip. The pieces of larger ones keep
# server and client busy at the same time; of 256 KiB to 4 MiB, this is the fastest both ways.
# One connection carries all of them: with several, a single server on one machine took longer.
_STRING_BYTES = 1 << 20
_FIRST_BYTES = 256 << 10
_PIECE_BYTES = 1 << 20

# What one transaction carries, if it is more than one piece. The server serves nobody else
# while it executes one.
_BATCH_BYTES = 1 << 20

# From this size on, the processes of a host share what one of them has fetched. That costs the
# first one a copy into shared memory, and saves the next ones more; at 1 MiB, it does not.
_SHARED_FROM = 2 << 20

# How many transactions, pieces or small objects may be under way. Two pieces keep the server
# busy, four do when the network is slow; it keeps what it cannot send in memory, though.
_WINDOW = 4
_SMALL_WINDOW = 64

_DEFAULT = Options()

# The holder of a claim may be silent for so long, or for the time of grace if that is shorter.
_CLAIM_SECONDS = 15.0

# First write wins, decided in one step with what the index says. The temporary key is found
# incomplete when the server lost it between the transactions of a big object.
# A durable session is enlisted when it is made, and not again after it was removed.
_COMMIT = """
local whole = redis.call('HLEN', KEYS[1]) == tonumber(ARGV[3])
local taken = redis.call('EXISTS', KEYS[2]) == 1
if whole and not taken then
  redis.call('HSET', KEYS[3], ARGV[1], ARGV[2])
  redis.call('PEXPIRE', KEYS[3], ARGV[5])
  if KEYS[4] then
    redis.call('SADD', KEYS[4], ARGV[6])
    redis.call('PEXPIRE', KEYS[4], ARGV[7])
    redis.call('SET', KEYS[5], '', 'NX', 'PX', ARGV[8])
  end
  redis.call('RENAME', KEYS[1], KEYS[2])
else
  redis.call('UNLINK', KEYS[1])
end
redis.call('HDEL', KEYS[3], ARGV[4])
return redis.status_reply((whole or taken) and 'STORED' or 'LOST')
"""
_LOST = b"LOST"


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
        timeout: seconds to wait for a connection, for the server to take up to 1 MiB, and for
            a reply.
        host_cache: bytes of shared memory for large objects that a worker has fetched, so that the
            others on the same host need not; 0 for none.

    Raises:
        ConnectorUnavailableError: the server cannot be reached, or refuses.
        ValueError: the URL or an option makes no sense.
    """

    is_remote = True

    def __init__(
        self,
        url: str = "redis://127.0.0.1:6379/0",
        *,
        ttl: float = _DEFAULT.ttl,
        grace: float = _DEFAULT.grace,
        max_connections: int = _DEFAULT.max_connections,
        timeout: float = _DEFAULT.timeout,
        host_cache: int = _DEFAULT.host_cache,
    ) -> None:
        place = Place(url)
        options = place.with_options(Options(ttl, grace, max_connections, timeout, host_cache))
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
        is_durable = _redis_durable.is_durable(session)
        self._names = _redis_durable.durable_names(session) if is_durable else Names(session)
        self._ttl = round(options.ttl * 1000)
        self._grace = round(options.grace * 1000)
        # What follows an entry in the index: nothing stays in the server that nobody lists. Nor is
        # a session listed that is not alive, after the server has lost both: it would be swept.
        self._enlist = [ready("PEXPIRE", self._names.index, self._ttl)]
        if not is_durable:
            self._enlist += [
                ready("SADD", SESSIONS, self._names.session),
                ready("PEXPIRE", SESSIONS, SESSIONS_TTL_MS),
                ready("SET", self._names.alive, b"", "NX", "PX", self._grace),
            ]
        self._link = Link(place, options)
        self._durable = None
        if is_durable:
            self._durable = _redis_durable.Durable(
                self._link, self._names, self._ttl, min(options.grace, _CLAIM_SECONDS)
            )
        self._are_current = _CurrentOnes(self._link, self._names)
        self._host_cache = HostCache(session, options.host_cache, self._are_current)
        self._shares = False
        self._finalizer = weakref.finalize(self, _drop, self._link, ownership, self._host_cache)
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

    @classmethod
    def open_durable(
        cls, url: str, name: str, *, max_age: float | None = None, create: bool = True
    ) -> Self:
        check_max_age(max_age)
        place = Place(url)
        options = place.with_options(_DEFAULT)
        with contextlib.closing(Link(place, options._replace(max_connections=1))) as link:
            age = _redis_durable.make(link, check_name(name), max_age, create=create)
        # The age is the time to live of every key; the one that the URL may name is of others.
        session = _redis_durable.session_id(name)
        connector = _joined(cls, url, session, options._replace(ttl=age))
        try:
            connector.touch()
        except BaseException:
            connector.close()
            raise
        return connector

    @classmethod
    def durable_sessions(cls, url: str) -> list[DurableSession]:
        place = Place(url)
        options = place.with_options(_DEFAULT)._replace(max_connections=1)
        with contextlib.closing(Link(place, options)) as link:
            return _redis_durable.sessions(link)

    @classmethod
    def remove_durable(cls, url: str, name: str, *, only_expired: bool = False) -> bool:
        place = Place(url)
        options = place.with_options(_DEFAULT)._replace(max_connections=1)
        with contextlib.closing(Link(place, options)) as link:
            return _redis_durable.discard(link, check_name(name), only_expired=only_expired)

    @classmethod
    def listing(cls, url: str) -> RedisListing:
        place = Place(url)
        options = place.with_options(_DEFAULT)._replace(max_connections=1)
        return RedisListing(Link(place, options))

    def objects(self) -> list[StoredObject]:
        return objects_of(self._link, self._names)

    def durable(self, name: str, *, max_age: float | None = None) -> Self:
        return self.open_durable(self._link.place.given, name, max_age=max_age)

    def keys(self, prefix: str = "") -> list[str]:
        return self._as_durable.keys(prefix)

    def touch(self) -> None:
        self._as_durable.touch()

    def claim(self, name: str) -> RedisClaim | None:
        return self._as_durable.claim(name)

    def claimed(self, names: Sequence[str]) -> list[bool]:
        return self._as_durable.claimed(names) if names else []

    @property
    def _as_durable(self) -> _redis_durable.Durable:
        if self._durable is None:
            raise NotDurableError(f"the session {self._session} of {self.url}")
        return self._durable

    def __reduce__(self) -> tuple[object, ...]:
        return _joined, (type(self), self._link.place.given, self._session, self._options)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r}, session={self._session!r})"

    @property
    def url(self) -> str:
        return self._link.place.public

    @property
    def source(self) -> str | None:
        place = self._link.place
        if self._durable is not None:
            return place.given
        if self._ownership is None:
            return None
        said = place.with_options(_DEFAULT)
        chosen = {
            name: getattr(self._options, name)
            for name in Options._fields
            if getattr(self._options, name) != getattr(said, name)
        }
        mark = "&" if "?" in place.given else "?"
        return f"{place.given}{mark}{urlencode(chosen)}" if chosen else place.given

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
        keys = list(keys)
        for fields in chunks([self._names.field_of(key) for key in keys]):
            try:
                unlink(self._link, self._names, fields)
            except ConnectorError as error:
                errors.append(error)
                if isinstance(error, ConnectorUnavailableError):
                    break  # each of the others would be waited for as long
        # After the server has forgotten them: whoever fetches one asks it again at the end.
        self._host_cache.forget(keys)
        if errors:
            raise errors[0]

    def put_many(self, items: Mapping[str, Frames]) -> None:
        self._store([_parcel(self._names, key, frames) for key, frames in items.items()])

    def get_many(self, keys: Sequence[str]) -> list[Frames | None]:
        kept = self._kept(keys)
        asked = [key for n, key in enumerate(keys) if n not in kept] if kept else keys
        starts = iter(self._starts(asked) if asked else ())
        return [self._whole(key, kept.get(n) or next(starts)) for n, key in enumerate(keys)]

    def usage(self) -> Usage:
        [sizes] = self._link.run([("HVALS", self._names.index)])
        # An object that is still being written has no size yet.
        try:
            stored = [known[0] for known in map(size_and_time, sizes) if known is not None]
        except ValueError as error:
            reason = "it tells of a size that is no number"
            raise CorruptObjectError(self.url, "index", reason) from error
        return Usage(len(stored), sum(stored))

    def close(self) -> None:
        if self._finalizer.detach() is None:
            return
        _close(self._link, self._ownership, self._host_cache)

    def _name(self, key: str) -> bytes:
        return self._names.prefix + self._names.field_of(key)

    def _store(self, parcels: Sequence[_Parcel]) -> None:
        needed = sum(parcel.size for parcel in parcels)
        try:
            replies = self._link.exchange(
                lambda: self._puts(parcels), window=_WINDOW, needed=needed
            )
        except BaseException as error:
            self._discard([one.temporary for one in parcels if one.temporary is not None])
            if isinstance(error, ConnectorFullError):
                raise ConnectorFullError(self.url, needed, self._free_bytes()) from error.__cause__
            raise
        if self._durable is not None and replies:
            [there] = replies.pop()
            if not there:
                self._durable.undo()
        if any(_LOST in results for results in replies):
            reason = "it lost a part of an object while that was being stored"
            raise ConnectorUnavailableError(self.url, reason)

    def _free_bytes(self) -> int | None:
        """Ask the server how much memory it may still use; it need not tell."""
        try:
            [memory] = self._link.run([("INFO", "memory")], patient=False)
            return max(int(memory["maxmemory"]) - int(memory["used_memory"]), 0)
        except (ConnectorError, KeyError, TypeError):
            return None

    def _puts(self, parcels: Sequence[_Parcel]) -> Iterator[Request]:
        """What stores the parcels: small ones together, a big one in several transactions."""
        batch: list[Command | bytes] = []
        size = 0
        for parcel in parcels:
            if parcel.temporary is not None:
                yield from self._put_in_steps(parcel, parcel.temporary)
                continue
            if batch and size + parcel.size > _BATCH_BYTES:
                yield Request(batch, atomic=True)
                batch, size = [], 0
            batch += self._put(parcel, enlist=not batch)
            size += parcel.size
        if batch:
            yield Request(batch, atomic=True)
        if self._durable is not None and parcels:
            yield Request([self._durable.is_there])

    def _put(self, parcel: _Parcel, *, enlist: bool) -> Iterator[Command | bytes]:
        """Store a small object. No script: Lua looks at each byte of a value that it passes on."""
        field = self._names.field_of(parcel.key)
        yield ("HSETNX", self._names.index, field, listed(parcel.size))
        if enlist:
            yield from self._enlist
        yield ("SET", self._names.prefix + field, parcel.run, "NX", "PX", self._ttl)

    def _put_in_steps(self, parcel: _Parcel, field: bytes) -> Iterator[Request]:
        temporary = self._names.prefix + field
        # Before its last part, the key can be seen, hence is in the index. With each part, as one
        # that was sent over a lost connection may come after its removal.
        listed: Command = ("HSET", self._names.index, field, b"")
        expire: Command = ("PEXPIRE", temporary, self._ttl)
        head = Head(field[-16:], parcel.size, _FIRST_BYTES, _PIECE_BYTES)
        fields: list[Any] = [HEAD, head.written()]
        size = 0
        for number, piece in enumerate(cut(parcel.run, head)):
            if size and size + piece.nbytes > _BATCH_BYTES:
                part: Command = ("HSET", temporary, *fields)
                yield Request([listed, *self._enlist, part, expire], atomic=True)
                fields, size = [], 0
            fields += (b"%d" % number, piece.buffers)
            size += piece.nbytes
        commit = self._commit(parcel.key, head, field)
        yield Request([("HSET", temporary, *fields), expire, commit], atomic=True)

    def _commit(self, key: str, head: Head, temporary: bytes) -> Command:
        names, field = self._names, self._names.field_of(key)
        objects = (names.prefix + temporary, names.prefix + field)
        listing = () if self._durable is not None else (SESSIONS, names.alive)
        keys = (*objects, names.index, *listing)
        facts = (
            field,
            listed(head.size),
            head.pieces + 1,
            temporary,
            self._ttl,
            names.session,
            SESSIONS_TTL_MS,
            self._grace,
        )
        return ("EVAL", _COMMIT, len(keys), *keys, *facts)

    def _discard(self, temporaries: Sequence[bytes]) -> None:
        try:
            for some in chunks(temporaries):
                unlink(self._link, self._names, some, patient=False)
        except ConnectorError as error:
            # Said already by the error that brought us here; the session's end or the time to
            # live removes the rest.
            _logger.debug("temporary keys were left: %s", error)

    def _kept(self, keys: Sequence[str]) -> dict[int, Start]:
        """Map what processes of this host have fetched, by the keys' numbers, if it is current."""
        if self._is_owners or self._link.closed:
            return {}
        find = self._host_cache.find
        found = {n: one for n, key in enumerate(keys) if (one := find(key)) is not None}
        if not found:
            return {}
        self._begin_to_share()
        current = self._are_current([known for known, _ in found.values()])
        return {
            n: Start(memory=memoryview(memory))
            for (n, (_, memory)), is_current in zip(found.items(), current, strict=True)
            if is_current
        }

    @property
    def _is_owners(self) -> bool:
        return self._ownership is not None and self._ownership.is_here

    def _begin_to_share(self) -> None:
        """Remove what this host has kept for sessions that are over, of the same server.

        Nothing tells it of their end; but one that begins is a good time to look.
        """
        if self._shares:
            return
        self._shares = True
        others = [
            other
            for other in list(_joined_here)
            if other.url == self.url and other is not self and other._shares
        ]
        if not others:
            return
        replies = self._link.run(
            [("SISMEMBER", SESSIONS, other._names.session) for other in others], raw=True
        )
        for other, is_listed in zip(others, replies, strict=True):
            if is_listed == 0:
                other._shares = False  # should it come to life again
                other._host_cache.remove()

    def _starts(self, keys: Sequence[str]) -> list[Start]:
        """Fetch small objects, and the beginnings of others."""
        starts: list[Start | None] = [None] * len(keys)
        # Both ways more than once, as an object of the other form may have come in between.
        for way in WAYS * 5:
            asked = [number for number, start in enumerate(starts) if start is None]
            found = self._ask(way, [keys[number] for number in asked])
            for number, start in zip(asked, found, strict=True):
                starts[number] = start
            if None not in found:
                break
        return [start or Start(problem="neither a string nor a hash") for start in starts]

    def _ask(self, way: Way, keys: Sequence[str]) -> list[Start | None]:
        requests = [
            Request([(way.command, self._name(key), *way.fields)], receive=way.receive)
            for key in keys
        ]
        return self._link.exchange(lambda: requests, window=_SMALL_WINDOW)

    def _whole(self, key: str, start: Start) -> Frames | None:
        while start.memory is not None:
            memory: Buffer = start.memory
            if start.head is not None:
                try:
                    memory = self._rest(key, start.head, start.memory)
                except _GoneError:
                    # Evicted, and perhaps stored again, in the middle.
                    token = start.head.token
                    [start] = self._starts([key])
                    if start.head is not None and start.head.token == token:
                        reason = "a piece is missing or cut short"
                        raise CorruptObjectError(self.url, key, reason) from None
                    continue
            try:
                return split(memory)
            except ValueError as error:
                raise CorruptObjectError(self.url, key, str(error)) from error
        if start.problem is not None:
            raise CorruptObjectError(self.url, key, start.problem)
        return None

    def _rest(self, key: str, head: Head, first: memoryview) -> Buffer:
        """Return all bytes of an object whose first piece is here."""
        if head.size >= _SHARED_FROM and not self._is_owners:
            self._begin_to_share()

            def receive(write: Write) -> None:
                write(first, 0)
                # One buffer for all pieces, which stays warm. Not made before it is known that
                # an object of such a size can be kept.
                piece = memoryview(bytearray(min(head.piece, head.size - head.first)))
                self._fetch(key, head, lambda start, end: piece[: end - start], write)

            shared = self._host_cache.obtain(Known(key, head.token), head.size, receive)
            if shared is not None:
                return shared
        memory = self._allocated(key, head)
        memory[: head.first] = first
        self._fetch(key, head, lambda start, end: memory[start:end])
        return memory

    def _allocated(self, key: str, head: Head) -> memoryview:
        try:
            return allocate(head.size)
        except (MemoryError, OverflowError) as error:
            # The head may tell of more than there is: of more pieces, or longer ones.
            name, (start, end) = self._name(key), head.place(1)
            fields, length = self._link.run([("HLEN", name), ("HSTRLEN", name, b"1")])
            if (fields, length) == (head.pieces + 1, end - start):
                raise
            reason = f"its head tells of {head.size:,} bytes in {head.pieces:,} pieces"
            raise CorruptObjectError(self.url, key, reason) from error

    def _fetch(
        self,
        key: str,
        head: Head,
        place: Callable[[int, int], memoryview],
        received: Write | None = None,
    ) -> None:
        """Receive all pieces but the first.

        Args:
            key: of the object.
            head: of the object.
            place: the memory to receive the bytes between two offsets into.
            received: is given this memory and the first offset afterwards.

        Raises:
            _GoneError: one is missing, or another object's.
        """
        name = self._name(key)
        missing: list[int] = []

        def request(number: int) -> Request:
            receiver = PieceReceiver(head, *head.place(number), place, received)

            def receive(replies: Replies) -> bool | Refusal:
                found = receiver(replies)
                if found is False:
                    missing.append(number)
                return found

            return Request([("HMGET", name, HEAD, b"%d" % number)], receive=receive)

        def requests() -> Iterator[Request]:
            missing.clear()
            for number in range(1, head.pieces):
                # The others are asked for in vain, and a head may tell of any number.
                if missing:
                    return
                yield request(number)

        self._link.exchange(requests, window=_WINDOW)
        if missing:
            raise _GoneError


class _GoneError(Exception):
    """The object that is being fetched is not there any more."""


class _Parcel(NamedTuple):
    """An object on its way to the server."""

    key: str
    run: list[memoryview | bytes]
    size: int
    # Where it is put together, if that takes several steps; what it ends in is the object's token.
    temporary: bytes | None


def _parcel(names: Names, key: str, frames: Frames) -> _Parcel:
    run, size = run_of(frames)
    return _Parcel(key, run, size, names.new_temporary(key) if size > _STRING_BYTES else None)


class _CurrentOnes:
    """Asks the server which objects are still there; holds no connector, so that one can go."""

    def __init__(self, link: Link, names: Names) -> None:
        self._link = link
        self._names = names

    def __call__(self, objects: Sequence[Known]) -> list[bool]:
        commands: list[Command] = [
            ("HGET", self._names.prefix + self._names.field_of(known.key), HEAD)
            for known in objects
        ]
        # A refusal among the replies says that there is an object of the other form by now.
        replies = self._link.run(commands, raw=True)
        heads = [Head.read(raw) if isinstance(raw, bytes) else None for raw in replies]
        return [
            head is not None and head.token == known.token
            for head, known in zip(heads, objects, strict=True)
        ]


_Kind = TypeVar("_Kind", bound=RedisConnector)

_joined_here: weakref.WeakSet[RedisConnector] = weakref.WeakSet()


def _joined(kind: type[_Kind], url: str, session: str, options: Options) -> _Kind:
    """Open an existing session, without owning it; nothing is sent yet."""
    connector = kind.__new__(kind)
    connector._join(Place(url), session, options)
    return connector


def _close(link: Link, ownership: Ownership | None, host_cache: HostCache) -> None:
    link.close()
    try:
        if ownership is not None:
            ownership.end()
    finally:
        if ownership is not None and ownership.is_here:
            host_cache.remove()
        else:
            host_cache.leave()


def _drop(link: Link, ownership: Ownership | None, host_cache: HostCache) -> None:
    """What close() does, for a connector that was dropped or outlived its interpreter."""
    try:
        _close(link, ownership, host_cache)
    except ConnectorError as error:
        _logger.warning("a dropped session was left to its time to live: %s", error)
