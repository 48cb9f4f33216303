"""Who may remove what: sessions of the Redis connector, their heartbeats and their sweeping.

A session's keys begin with ``proxyexec:<session>:``. An *index*, a hash from the rest of a
key's name to the size of the object there and the time at which it was stored (or to nothing, for
an object that is still being written), says what there is, so that nothing ever scans the
database. The set ``proxyexec:sessions`` names all sessions. A session's owner renews its *alive*
key; where that key has run out, the next owner who comes along removes what the index holds. The
*owner* key says who that is, for people.

A server that drops keys for want of memory may drop that of a living owner, until his next
heartbeat, or the next object. Where it has dropped any, or does not tell, sessions are removed only
by an owner who has not seen them alive for the time of grace.

Every key has a time to live as well, should nobody come along.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from typing import TYPE_CHECKING

from proxyexec_connectors import _owners
from proxyexec_connectors.errors import ConnectorError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from proxyexec_connectors._redis_link import Link, Options

_logger = logging.getLogger("proxyexec.connectors.redis")

SESSIONS = b"proxyexec:sessions"
# The set is shared by sessions of any ttl; each heartbeat renews it.
SESSIONS_TTL_MS = 7 * 24 * 3600 * 1000

# Keys in one command or one go, so that no command holds the server up for long.
_CHUNK = 1000

# A script and not a transaction: a server without memory queues no transaction, not even one
# that would free some.
# Where there is no object, one may have been on its way when its writer died: then what is there
# of it goes, which takes a look at the whole index.
_UNLINK = """
local found = redis.call('UNLINK', unpack(KEYS, 2))
redis.call('HDEL', KEYS[1], unpack(ARGV))
if found == #ARGV then return end
local evicted, prefix = {}, string.sub(KEYS[1], 1, -6)
for _, field in ipairs(ARGV) do evicted[string.sub(field, 3)] = true end
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  if string.sub(field, 1, 2) == 't:' and evicted[string.sub(field, 3, -18)] then
    redis.call('UNLINK', prefix .. field)
    redis.call('HDEL', KEYS[1], field)
  end
end
"""

# The session is forgotten in the same step that finds its index empty: a worker of a dead
# owner may store a result at any moment, which enlists the session again.
_FORGET = """
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('SREM', KEYS[2], ARGV[1])
redis.call('UNLINK', KEYS[3], KEYS[4])
return 1
"""


class Names:
    """The names of a session's keys."""

    def __init__(self, session: str) -> None:
        self.session = session.encode("utf-8", "surrogateescape")
        self.prefix = b"proxyexec:%b:" % self.session
        self.alive = self.prefix + b"alive"
        self.index = self.prefix + b"index"
        self.owner = self.prefix + b"owner"
        self.listed_in = SESSIONS
        """The set that names the session."""

    def field_of(self, key: str) -> bytes:
        """The index's field for the object under ``key``; its key's name without the prefix."""
        return b"o:" + key.encode("utf-8", "surrogatepass")

    def new_temporary(self, key: str) -> bytes:
        """A field for an object that is being written; it ends in 16 digits of its own."""
        name = self.field_of(key).removeprefix(b"o:")
        return b"t:%b:%b" % (name, secrets.token_hex(8).encode())


def chunks(names: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Cut a long list of names into lists that one command may take."""
    for start in range(0, len(names), _CHUNK):
        yield names[start : start + _CHUNK]


def unlink(link: Link, names: Names, fields: Sequence[bytes], *, patient: bool = True) -> None:
    """Remove objects and what the index says of them, in one step."""
    keys = [names.index, *(names.prefix + field for field in fields)]
    link.run([("EVAL", _UNLINK, len(keys), *keys, *fields)], patient=patient)


def remove(link: Link, names: Names) -> None:
    """Remove a whole session."""
    keys = (names.index, names.listed_in, names.alive, names.owner)
    forgotten = False
    while not forgotten:
        [fields] = link.run([("HKEYS", names.index)])
        for some in chunks(fields):
            unlink(link, names, some)
        [forgotten] = link.run([("EVAL", _FORGET, len(keys), *keys, names.session)])


def listed(size: int) -> bytes:
    """What the index says of an object that is stored now."""
    return b"%d %.3f" % (size, time.time())


def size_and_time(said: bytes) -> tuple[int, float | None] | None:
    """Understand what the index says of an object; ``None`` if that is still being written.

    Raises:
        ValueError: it makes no sense.
    """
    if not said:
        return None
    size, *times = said.split()
    return int(size), float(times[0]) if times else None


def sweep(link: Link) -> list[Names]:
    """Remove the sessions whose owners have died; return those that may have lost their key."""
    [members] = link.run([("SMEMBERS", SESSIONS)])
    # Whoever may write to the server can have put anything there.
    sessions = [Names(member.decode("utf-8", "surrogateescape")) for member in members]
    silent = _silent(link, sessions)
    if silent and may_have_dropped_keys(link):
        return silent
    for names in silent:
        _remove_dead(link, names)
    return []


def _remove_dead(link: Link, names: Names) -> None:
    remove(link, names)
    _logger.info("removed what a dead process left: session %s", names.session)


def _silent(link: Link, sessions: Sequence[Names]) -> list[Names]:
    alive = link.run([("EXISTS", names.alive) for names in sessions])
    return [names for names, is_alive in zip(sessions, alive, strict=True) if not is_alive]


def may_have_dropped_keys(link: Link) -> bool:
    """Tell whether the server has dropped keys for want of memory, or does not tell."""
    # A user of the server may not be allowed to ask.
    [stats] = link.run([("INFO", "stats")], raw=True)
    return not isinstance(stats, dict) or stats.get("evicted_keys") != 0


class Ownership:
    """The owner's side of a session: a thread that keeps it alive, and its end.

    It has a link of its own, so that big transfers never hold up a heartbeat, and no
    reference to the connector, so that a connector can be dropped while the thread runs.
    """

    def __init__(self, link: Link, names: Names, options: Options) -> None:
        self._link = link
        self._names = names
        self._ttl, self._grace, self._timeout = options.ttl, options.grace, options.timeout
        self._process = os.getpid()
        self._owner = _owners.here().written()
        self._renewed = self._suspected = time.monotonic()
        self._suspects: list[Names] = []
        self._stop = threading.Event()
        self._removes_itself = False
        self._thread = threading.Thread(
            target=self._keep_alive, name="proxyexec-redis-heartbeat", daemon=True
        )

    def start(self) -> None:
        """Sweep dead sessions, enlist this one, and keep it alive from now on."""
        # In this order, as there may be no memory for one more before that.
        self._suspects = sweep(self._link)
        self._enlist()
        self._thread.start()

    def _enlist(self) -> None:
        # One step: a session that is enlisted and not alive would be swept.
        self._link.run(
            [
                ("SET", self._names.alive, self._process, "PX", round(self._grace * 1000)),
                ("SADD", SESSIONS, self._names.session),
                ("PEXPIRE", SESSIONS, SESSIONS_TTL_MS),
                ("SET", self._names.owner, self._owner, "PX", round(self._ttl * 1000)),
            ],
            atomic=True,
        )

    def beat(self) -> None:
        """Say that the owner is alive; renew the objects' time to live when it is due."""
        # A server without memory still executes these, and refuses SET and SADD. They are
        # needed only where it has lost its data, or this process was stopped for too long.
        alive, enlisted, _ = self._link.run(
            [
                ("PEXPIRE", self._names.alive, round(self._grace * 1000)),
                ("SISMEMBER", SESSIONS, self._names.session),
                ("PEXPIRE", SESSIONS, SESSIONS_TTL_MS),
            ]
        )
        if not (alive and enlisted):
            self._enlist()
        if self._suspects:
            self._look_again()
        if time.monotonic() - self._renewed >= self._ttl / 3:
            self.renew()

    def _look_again(self) -> None:
        self._suspects = _silent(self._link, self._suspects)
        if time.monotonic() - self._suspected >= self._grace:
            for names in self._suspects:
                _remove_dead(self._link, names)
            self._suspects = []

    def renew(self) -> None:
        """Give every object of the session its full time to live again."""
        self._renewed = time.monotonic()
        ttl = round(self._ttl * 1000)
        [fields, *_] = self._link.run(
            [
                ("HKEYS", self._names.index),
                ("PEXPIRE", self._names.index, ttl),
                ("PEXPIRE", self._names.owner, ttl),
            ]
        )
        for some in chunks(fields):
            self._link.run([("PEXPIRE", self._names.prefix + field, ttl) for field in some])

    @property
    def is_here(self) -> bool:
        """Whether this process is the owner, and not a forked child of it."""
        return os.getpid() == self._process

    def end(self) -> None:
        """Remove the session; in a forked child of the owner, do nothing."""
        if not self.is_here:
            return
        self._stop.set()
        if threading.current_thread() is self._thread:
            # A garbage collection in the middle of a heartbeat found the connector dropped.
            # That heartbeat has the link's connection, and would enlist the session again.
            self._removes_itself = True
            return
        if self._thread.ident is not None:
            self._thread.join(self._timeout)
        try:
            remove(self._link, self._names)
        finally:
            self._link.close()

    def _keep_alive(self) -> None:
        while not self._stop.wait(min(self._grace, self._ttl) / 3):
            try:
                self.beat()
            except ConnectorError as error:
                _logger.warning("a heartbeat was lost: %s", error)
        if self._removes_itself:
            try:
                remove(self._link, self._names)
            except ConnectorError as error:
                _logger.warning("a dropped session was left to its time to live: %s", error)
            finally:
                self._link.close()
