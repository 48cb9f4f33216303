"""Durable sessions of the Redis connector: their names, ages and claims.

A durable session's keys are those of any session, with ``durable-<name>`` for its id; the set
``proxyexec:durable`` names all of them. In place of the *alive* key there is *about*, which says
in JSON when the session was made, and its age. Every key of the session has that age as its time
to live; touching the session renews all of them. So a session that nobody uses vanishes, and the
time that *about* has left says when it was last touched.

Who stores something looks for *about* afterwards: where it is gone, the session was removed, and
what has just been stored is removed as well.

A *claim* is a key with a short time to live, which its holder renews. Its value says who that is,
as far as one needs to know on the same machine to tell that he has died: there, nobody has to wait
for the end of the time to live. Claims have fields in the index, so that they are removed with the
session.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from proxyexec_connectors import _beats
from proxyexec_connectors._redis_session import Names, chunks, remove
from proxyexec_connectors.durable import DEFAULT_MAX_AGE, DurableSession
from proxyexec_connectors.errors import ConnectorUnavailableError, SessionMissingError

if TYPE_CHECKING:
    from proxyexec_connectors._redis_link import Link
    from proxyexec_connectors._redis_wire import Command

__all__ = ["Durable", "RedisClaim", "durable_names", "is_durable", "sessions"]

DURABLE = b"proxyexec:durable"

_PREFIX = "durable-"

# Touching means renewing every key; so not more often, and rarely enough for long ages.
_TOUCHED_EVERY = 60.0

# Takes a claim from nobody, or from the holder that was found dead.
_TAKE = """
if redis.call('EXISTS', KEYS[3]) == 0 then return redis.status_reply('GONE') end
local holder = redis.call('GET', KEYS[2])
if holder and holder ~= ARGV[3] then return holder end
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
redis.call('HSET', KEYS[1], ARGV[4], '')
redis.call('PEXPIRE', KEYS[1], ARGV[5])
return false
"""

# It may have run out; then it is taken again, unless somebody else has it by now.
_BEAT = """
if redis.call('EXISTS', KEYS[2]) == 0 then return 0 end
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""

_UNLIST = """
if redis.call('EXISTS', KEYS[1]) == 0 then redis.call('SREM', KEYS[2], ARGV[1]) end
"""

_RELEASE = """
if redis.call('GET', KEYS[2]) == ARGV[1] then
  redis.call('UNLINK', KEYS[2])
  redis.call('HDEL', KEYS[1], ARGV[2])
end
"""


def is_durable(session: str) -> bool:
    """Tell whether a session's id is that of a durable one."""
    return session.startswith(_PREFIX)


def session_id(name: str) -> str:
    """Return the session id of a durable session."""
    return _PREFIX + name


def durable_names(session: str) -> Names:
    """Return the names of the keys of a durable session."""
    names = Names(session)
    names.alive = names.prefix + b"about"
    names.listed_in = DURABLE
    return names


def sessions(link: Link) -> list[DurableSession]:
    """Return all durable sessions of a server's database."""
    [members] = link.run([("SMEMBERS", DURABLE)])
    found = []
    for member in sorted(members):
        session = member.decode("utf-8", "surrogateescape")
        known = about(link, durable_names(session), session.removeprefix(_PREFIX))
        if known is not None:
            found.append(known)
        else:  # it has vanished
            names = durable_names(session)
            link.run([("EVAL", _UNLIST, 2, names.alive, DURABLE, names.session)])
    return found


def about(link: Link, names: Names, name: str) -> DurableSession | None:
    """Return what is known of a session; ``None`` if there is none."""
    said, left, sizes = link.run(
        [("GET", names.alive), ("PTTL", names.alive), ("HVALS", names.index)]
    )
    facts = _facts(said)
    if facts is None:
        return None
    stored = [int(size) for said in sizes if (size := said.partition(b" ")[0]).isdigit()]
    used = time.time() + left / 1000 - facts["max_age"]
    return DurableSession(name, facts["created"], used, facts["max_age"], len(stored), sum(stored))


def make(link: Link, name: str, max_age: float | None, *, create: bool) -> float:
    """Make a session if it is not there; return its age.

    Raises:
        SessionMissingError: it is not there, and is not to be made.
    """
    names = durable_names(session_id(name))
    wanted = {"created": time.time(), "max_age": max_age or DEFAULT_MAX_AGE}
    if create:
        ttl = round(wanted["max_age"] * 1000)
        link.run(
            [
                ("SET", names.alive, json.dumps(wanted), "NX", "PX", ttl),
                ("SADD", DURABLE, names.session),
            ],
            atomic=True,
        )
    [said] = link.run([("GET", names.alive)])
    found = _facts(said)
    if found is None:
        raise SessionMissingError(link.place.public, name)
    if max_age is not None and found["max_age"] != max_age:
        found["max_age"] = max_age
        link.run([("SET", names.alive, json.dumps(found), "PX", round(max_age * 1000))])
    return found["max_age"]


def discard(link: Link, name: str, *, only_expired: bool) -> bool:
    """Remove a session; tell whether there was one, and it was to be removed."""
    names = durable_names(session_id(name))
    if only_expired:
        known = about(link, names, name)
        if known is None or not known.is_expired():
            return False
    # First what says that it is there, or whoever stores something just now would leave it.
    [found, _] = link.run([("UNLINK", names.alive), ("SREM", DURABLE, names.session)])
    remove(link, names)
    return bool(found)


class Durable:
    """What a connector does for a durable session, beside what it does for any.

    Args:
        link: to the server.
        names: of the session's keys.
        ttl: of its keys, in milliseconds.
        grace: seconds for which the holder of a claim may be silent.
    """

    def __init__(self, link: Link, names: Names, ttl: int, grace: float) -> None:
        self._link = link
        self._names = names
        self._ttl = ttl
        self._claim_ttl = round(grace * 1000)
        self._touched = 0.0

    @property
    def is_there(self) -> Command:
        """Asks whether the session is there; sent after what is stored in it."""
        return ("EXISTS", self._names.alive)

    def undo(self) -> NoReturn:
        """Remove what was stored in a session that was gone.

        Raises:
            ConnectorUnavailableError: always; it says so.
        """
        remove(self._link, self._names)
        raise self._gone()

    def keys(self, prefix: str) -> list[str]:
        """Return the keys of objects."""
        [index] = self._link.run([("HGETALL", self._names.index)], raw=False)
        pairs: dict[bytes, bytes] = (
            index if isinstance(index, dict) else dict(zip(index[::2], index[1::2], strict=True))
        )
        start = b"o:" + prefix.encode()
        return sorted(
            field[2:].decode("utf-8", "surrogatepass")
            for field, size in pairs.items()
            if size and field.startswith(start)
        )

    def touch(self, *, now: bool = True) -> None:
        """Renew all keys; if not ``now``, only when it is time."""
        if not now and time.monotonic() - self._touched < min(_TOUCHED_EVERY, self._ttl / 3000):
            return
        self._touched = time.monotonic()
        names = self._names
        [fields, *_] = self._link.run(
            [
                ("HKEYS", names.index),
                ("PEXPIRE", names.index, self._ttl),
                ("PEXPIRE", names.alive, self._ttl),
            ]
        )
        objects = [field for field in fields if not field.startswith(b"c:")]
        for some in chunks(objects):
            self._link.run([("PEXPIRE", names.prefix + field, self._ttl) for field in some])

    def claim(self, name: str) -> RedisClaim | None:
        """Take a claim, unless somebody has it."""
        names, field = self._names, b"c:" + name.encode()
        mine = _holder() + b"/" + secrets.token_hex(8).encode()
        keys = (names.index, names.prefix + field, names.alive)
        dead = b""
        while True:
            facts = (mine, self._claim_ttl, dead, field, self._ttl)
            [holder] = self._link.run([("EVAL", _TAKE, 3, *keys, *facts)])
            # Sent twice, the second may find that the first one took it.
            if holder is None or holder == mine:
                return RedisClaim(self, name, mine)
            if holder == b"GONE":
                raise self._gone()
            if not _is_dead(holder):
                return None
            dead = holder

    def claimed(self, claims: Sequence[str]) -> list[bool]:
        """Tell which claims somebody has."""
        keys = [self._names.prefix + b"c:" + name.encode() for name in claims]
        holders: list[bytes | None] = []
        for some in chunks(keys):
            holders += self._link.run([("MGET", *some)])[0]
        return [holder is not None and not _is_dead(holder) for holder in holders]

    def renew(self, claim: RedisClaim) -> None:
        """Give a claim its time to live again."""
        keys = (self._names.prefix + b"c:" + claim.name.encode(), self._names.alive)
        self._link.run([("EVAL", _BEAT, 2, *keys, claim.holder, self._claim_ttl)], patient=False)
        self.touch(now=False)

    def release(self, claim: RedisClaim) -> None:
        """Let go of a claim."""
        field = b"c:" + claim.name.encode()
        keys = (self._names.index, self._names.prefix + field)
        self._link.run([("EVAL", _RELEASE, 2, *keys, claim.holder, field)])

    def _gone(self) -> ConnectorUnavailableError:
        name = self._names.session.decode("utf-8", "surrogateescape")
        reason = f"its session {name} is gone: it was removed, or has expired"
        return ConnectorUnavailableError(self._link.place.public, reason)

    @property
    def claim_interval(self) -> float:
        """How many seconds may pass between two beats of a claim."""
        # It is with the claims that the session is touched.
        return min(self._claim_ttl / 5000, self._ttl / 3000)


class RedisClaim:
    """A claim that this process has; see :class:`proxyexec_connectors.durable.Claim`."""

    def __init__(self, durable: Durable, name: str, holder: bytes) -> None:
        self.name = name
        self.holder = holder
        self.interval = durable.claim_interval
        self._durable = durable
        self._process = os.getpid()
        self._held = True
        self._lock = threading.Lock()
        _beats.hold(self)

    def beat(self) -> None:
        with self._lock:
            if self._held:
                self._durable.renew(self)

    def release(self) -> None:
        if not self._held or self._process != os.getpid():
            return
        with self._lock:  # a beat that is under way would take it again
            if not self._held:
                return
            self._held = False
            _beats.let_go(self)
            self._durable.release(self)


def _facts(said: Any) -> dict[str, float] | None:
    if not said:
        return None
    try:
        facts = json.loads(said)
        return {name: float(facts[name]) for name in ("created", "max_age")}
    except (ValueError, KeyError, TypeError):
        return {"created": 0.0, "max_age": DEFAULT_MAX_AGE}


def _holder() -> bytes:
    """Say which process this is: the machine's boot, its process ids, and which one of them."""
    boot, space = _machine()
    return f"{boot}/{space}/{os.getpid()}/{_started(os.getpid())}".encode()


def _is_dead(holder: bytes) -> bool:
    """Tell that a holder has died, as far as that can be seen from here."""
    try:
        boot, space, process, started, _ = holder.decode().split("/")
        if (boot, space) != _machine():
            return False
        return _started(int(process)) != started
    except ValueError:
        return False


def _started(process: int) -> str:
    """Return when a process was started; nothing if there is none, or it is a zombie."""
    with contextlib.suppress(OSError), open(f"/proc/{process}/stat", "rb") as file:
        # The name, in parentheses, may hold anything.
        fields = file.read().rpartition(b")")[2].split()
        return "" if fields[0] in (b"Z", b"X") else fields[19].decode()
    return ""


def _machine() -> tuple[str, str]:
    with open("/proc/sys/kernel/random/boot_id") as boot:
        return boot.read().strip(), os.readlink("/proc/self/ns/pid")
