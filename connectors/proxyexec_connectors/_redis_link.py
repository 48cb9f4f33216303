"""How the Redis connector talks to its server: URLs, connections, retries, errors.

A :class:`Link` runs lists of commands and knows nothing of objects or sessions. Errors of
redis-py end here; what leaves is a :class:`~proxyexec_connectors.errors.ConnectorError` that
never holds a password.
"""

from __future__ import annotations

import contextlib
import os
import ssl
import threading
import time
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit

from redis import BlockingConnectionPool, Redis
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.connection import parse_url
from redis.exceptions import AuthenticationError, RedisError, ResponseError
from redis.retry import Retry

from proxyexec_connectors._redis_wire import Packer, converse
from proxyexec_connectors.errors import (
    ConnectorClosedError,
    ConnectorError,
    ConnectorFullError,
    ConnectorUnavailableError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from proxyexec_connectors._redis_wire import Command, Request

# redis-py is annotated in parts only.
_parse_url: Any = parse_url
_open_pool: Any = BlockingConnectionPool

# Attempts wait 0.1, 0.2, 0.4, 0.8 and 1 second for each other. None is begun when the first one has
# failed longer ago than the timeout: a server that is silent is asked twice, not six times.
_RETRIES = 5
_FIRST_WAIT, _LONGEST_WAIT = 0.05, 1.0

# A process cannot have more descriptors than that, usually.
_CONNECTIONS_AT_MOST = 1 << 16

_T = TypeVar("_T")


class Options(NamedTuple):
    """What can be chosen for a connector, as arguments or in its URL's query."""

    ttl: float = 3600.0
    grace: float = 60.0
    max_connections: int = 16
    timeout: float = 30.0
    host_cache: int = 1 << 30


class Place:
    """What a Redis URL names: how to connect, and how to speak of it without its secrets.

    Raises:
        ValueError: the URL cannot be read, or has an option in its query that nobody knows.
    """

    def __init__(self, url: str) -> None:
        try:
            parts = urlsplit(url)
            settings = _parse_url(url)
            if _is_miswritten(parts):
                raise ValueError
        except ValueError:
            # Not chained: the message may quote a piece of an unescaped password.
            raise ValueError(
                f"a {url.partition(':')[0]}:// URL could not be read: an option in its query is "
                "no number, or its password has a character that must be percent-encoded"
            ) from None
        self.given = url
        self.session: str | None = settings.pop("session", None)
        self._options = {name: settings.pop(name) for name in Options._fields if name in settings}
        self.settings: dict[str, Any] = settings
        if parts.scheme == "rediss" and settings.get("ssl_cert_reqs", "required") == "required":
            # Older versions of redis-py take any host's certificate otherwise.
            settings.setdefault("ssl_check_hostname", True)
        self.password: str | None = settings.get("password")
        user = settings.get("username")
        login = f"{quote(user, safe='')}@" if user else ""
        if parts.scheme == "unix":
            self.public = f"unix://{login}{quote(unquote(parts.path))}?db={settings.get('db', 0)}"
        else:
            host, port = settings.get("host", "localhost"), settings.get("port", 6379)
            host = quote(host, safe=":")  # or what follows its "#" is no part of the address
            host = f"[{host}]" if ":" in host else host
            self.public = f"{parts.scheme}://{login}{host}:{port}/{settings.get('db', 0)}"
        # An address repeats what is needed to connect, and nothing that could be a secret.
        query = parse_qsl(parts.query)
        self._repeated = [
            (name, value)
            for name, value in query
            if name.startswith("ssl_") and name not in {"ssl_password", "ssl_ca_data"}
        ]
        if not all(_may_be_in_query(name) for name, _ in query):
            # Not quoted: a password with a "?" or "&" that was not encoded ends up here.
            known = ", ".join(sorted({*Options._fields, *_SETTINGS} - _NOT_IN_QUERIES))
            raise ValueError(
                f"unknown option in the query of {self.public}: there are {known}, "
                "and those of redis-py that start with ssl_ or socket_"
            )

    def with_options(self, options: Options) -> Options:
        """``options``, with those from the URL's query in their place."""
        chosen = options._replace(**self._options)
        chosen = chosen._replace(
            ttl=float(chosen.ttl), grace=float(chosen.grace), host_cache=int(chosen.host_cache)
        )
        if min(chosen[:-1]) <= 0 or chosen.host_cache < 0:
            raise ValueError(f"every option of {self.public} must be above zero: {chosen}")
        # No clock takes longer times, nor those that are no numbers; and redis-py makes a queue
        # with a place for each connection.
        times = (chosen.ttl, chosen.grace, chosen.timeout)
        if not (
            all(one <= threading.TIMEOUT_MAX for one in times)
            and chosen.max_connections <= _CONNECTIONS_AT_MOST
        ):
            raise ValueError(f"an option of {self.public} is too large: {chosen}")
        return chosen

    def address(self, session: str, options: Options) -> str:
        """The URL of one session in this place, without a password."""
        named = [("session", session), *options._asdict().items(), *self._repeated]
        return f"{self.public}{'&' if '?' in self.public else '?'}{urlencode(named)}"


def _is_miswritten(parts: SplitResult) -> bool:
    """Tell whether a password was cut in pieces, as it was not encoded."""
    if parts.scheme == "unix":
        # There is no host, so what is in its place is a login, with all that belongs to it.
        in_path = bool(parts.netloc) and (parts.netloc[-1] != "@" or "@" in parts.path)
    else:
        in_path = "@" in parts.path
    in_query = any(
        "@" in name + value and not _may_be_in_query(name)
        for name, value in parse_qsl(parts.query, keep_blank_values=True)
    )
    return in_path or in_query or "@" in parts.fragment


def _may_be_in_query(name: str) -> bool:
    if name in _NOT_IN_QUERIES:
        return False
    return name in {"session", *Options._fields, *_SETTINGS} or name.startswith(("ssl_", "socket_"))


_SETTINGS = {
    *("connection_class", "host", "port", "path", "db", "username", "password"),
    *("client_name", "health_check_interval"),
}
_NOT_IN_QUERIES = {"connection_class", "host", "port", "path"}


class Link:
    """A bounded set of connections to one place, for any number of threads."""

    def __init__(self, place: Place, options: Options) -> None:
        self.place = place
        self.closed = False
        self._options = options
        # Attempts are repeated in run() and not by redis-py as well, or they would multiply.
        self._retry = Retry(ExponentialBackoff(_LONGEST_WAIT, _FIRST_WAIT), _RETRIES)
        self.renew()
        _links.add(self)

    def renew(self) -> None:
        """Start again with no connection; none is made before the first command."""
        self._pool = _open_pool(
            **{
                # Nothing here needs the types of protocol 3.
                "protocol": 2,
                "command_packer": Packer(),
                "retry": Retry(NoBackoff(), 0),
                "max_connections": self._options.max_connections,
                "timeout": self._options.timeout,
                "socket_timeout": self._options.timeout,
                "socket_connect_timeout": self._options.timeout,
                **self.place.settings,
            }
        )
        self._client: Any = Redis(connection_pool=self._pool)

    def run(
        self,
        commands: Sequence[Command],
        *,
        atomic: bool = False,
        needed: int = 0,
        raw: bool = False,
        patient: bool = True,
    ) -> list[Any]:
        """Send ``commands`` in one go and return their replies.

        Args:
            commands: the commands, which must bear being sent twice.
            atomic: run all of them, with nobody else's between them, or none.
            needed: bytes that they store, for the error that says that there is no room.
            raw: leave refusals of single commands among the replies.
            patient: try again, with growing waits, when the server does not answer.
        """
        replies = self._patiently(lambda: self._attempt(commands, atomic), needed, patient)
        refused = [reply for reply in replies if isinstance(reply, ResponseError)]
        if refused and not raw:
            raise self._translated(refused[0], needed) from refused[0]
        return replies

    def exchange(
        self, requests: Callable[[], Iterable[Request]], *, window: int, needed: int = 0
    ) -> list[Any]:
        """Send requests over one connection, pipelined; return what each received.

        Objects travel this way: sent from where they lie, received to where they stay.

        Args:
            requests: makes the requests, which must bear being sent twice; called once for each
                attempt.
            window: how many may be sent before the reply to the first has been read.
            needed: bytes that they store, for the error that says that there is no room.
        """
        return self._patiently(lambda: self._converse(requests(), window), needed, patient=True)

    def _patiently(self, attempt: Callable[[], _T], needed: int, patient: bool) -> _T:
        last_start: float | None = None

        def before_retry(error: Exception) -> None:
            nonlocal last_start
            now = time.monotonic()
            if last_start is None:
                last_start = now + self._options.timeout
            if not patient or now >= last_start or _is_final(error):
                raise error

        try:
            result: _T = self._retry.call_with_retry(attempt, before_retry)
        except (RedisError, OSError) as error:
            raise self._translated(error, needed) from error
        return result

    def _attempt(self, commands: Sequence[Command], atomic: bool) -> list[Any]:
        with self._open(), self._client.pipeline(transaction=atomic) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)
            replies: list[Any] = pipeline.execute(raise_on_error=False)
            return replies

    def _converse(self, requests: Iterable[Request], window: int) -> list[Any]:
        with self._open():
            connection = self._pool.get_connection()
            try:
                connection.check_health()
                return converse(connection, requests, window)
            except ResponseError:
                raise
            except BaseException:
                # Replies may still be on their way.
                connection.disconnect()
                raise
            finally:
                self._pool.release(connection)

    @contextlib.contextmanager
    def _open(self) -> Iterator[None]:
        """What runs inside raises ConnectorClosedError, whatever else it would, after close()."""
        if self.closed:
            raise ConnectorClosedError(self.place.public)
        try:
            yield
        except Exception as error:
            # redis-py does not expect to find a connection closed by another thread, and may
            # stumble over it with an error of any kind.
            if self.closed:
                raise ConnectorClosedError(self.place.public) from error
            raise
        finally:
            # close() may have come before this attempt had taken its connection.
            if self.closed:
                self._pool.disconnect()

    def close(self) -> None:
        """Drop all connections; commands that still run in other threads fail."""
        self.closed = True
        self._pool.disconnect()

    def _translated(self, error: Exception, needed: int) -> ConnectorError:
        url = self.place.public
        reason = str(error)
        # The refusal may stand inside of another one, of a transaction or a script.
        if "OOM command not allowed" in reason or "used memory > 'maxmemory'" in reason:
            return ConnectorFullError(url, needed)
        if isinstance(error, AuthenticationError) and self.place.password is None:
            reason = (
                "the server asks for a password, which the address of a store does not carry; "
                "open the store in this process by its URL first, or unpickle its connector "
                f"({reason})"
            )
        return ConnectorUnavailableError(url, reason)


def _is_final(error: BaseException | None) -> bool:
    """Tell whether the server, or its certificate, would be refused again."""
    while error is not None:
        if isinstance(error, (AuthenticationError, ssl.SSLCertVerificationError)):
            return True
        error = error.__cause__ or error.__context__
    return False


_links: weakref.WeakSet[Link] = weakref.WeakSet()


def _renew_links_after_fork() -> None:
    # The parent's connections are the parent's, and another of its threads may have held a
    # lock of the pool, which nobody will ever release here.
    for link in list(_links):
        link.renew()


os.register_at_fork(after_in_child=_renew_links_after_fork)
